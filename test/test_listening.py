"""A subscription with a thread of its own, in a real ROS graph."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from rclpy.duration import Duration
from rclpy.qos import QoSProfile
from rclpy.serialization import serialize_message
from std_msgs.msg import String

from support.ros import Graph, ros_graph, wait_until
from vpr_kd_ros.nodes.listening import Listener

RELIABLE = QoSProfile(depth=10)


def speak(graph: Graph, publisher: Any, *texts: str) -> None:
    wait_until(publisher.get_subscription_count, "a listener")
    for text in texts:
        publisher.publish(String(data=text))


def test_it_hears_every_message_in_a_thread_of_its_own(graph: Graph) -> None:
    heard: list[tuple[str, str]] = []
    raw: list[bytes] = []

    def hear(message: String) -> None:
        heard.append((message.data, threading.current_thread().name))

    listeners = [
        Listener(graph.node, String, "words", hear, RELIABLE),
        Listener(graph.node, String, "words", raw.append, RELIABLE, serialized=True),
    ]
    publisher = graph.publisher(String, "words")
    wait_until(lambda: publisher.get_subscription_count() == 2, "both listeners")
    texts = [f"word {i}" for i in range(8)]
    speak(graph, publisher, *texts)
    wait_until(lambda: len(heard) == len(raw) == len(texts), "all words")
    assert heard == [(text, "listener words") for text in texts]
    assert raw == [serialize_message(String(data=text)) for text in texts]
    for listener in listeners:
        listener.stop()


def test_it_tells_when_a_message_came_and_several_stop_together(graph: Graph) -> None:
    heard: list[tuple[str, dict[str, Any]]] = []

    def hear(message: String, info: dict[str, Any]) -> None:
        heard.append((message.data, info))

    begun = time.time_ns()
    listeners = [Listener(graph.node, String, topic, hear, RELIABLE, informed=True) for topic in ("words", "others")]
    publisher = graph.publisher(String, "words")
    speak(graph, publisher, "word")
    wait_until(lambda: heard, "the word")
    ((word, info),) = heard
    assert word == "word"
    assert begun < info["received_timestamp"] < time.time_ns()
    Listener.stop_all(listeners)
    wait_until(lambda: publisher.get_subscription_count() == 0, "the subscription to be gone")
    assert not {"listener words", "listener others"} & {thread.name for thread in threading.enumerate()}


def test_a_callback_that_fails_is_told_of_and_the_next_message_comes(graph: Graph) -> None:
    heard: list[str] = []

    def callback(message: String) -> None:
        heard.append(message.data)
        if message.data == "bad":
            raise ValueError("what a word")

    listener = Listener(graph.node, String, "words", callback, RELIABLE)
    speak(graph, graph.publisher(String, "words"), "bad", "good")
    wait_until(lambda: heard == ["bad", "good"], "the word after the bad one")
    listener.stop()


def test_stopped_it_is_gone_and_what_was_in_work_is_finished(graph: Graph) -> None:
    begun, go_on, finished = threading.Event(), threading.Event(), threading.Event()

    def callback(message: String) -> None:
        begun.set()
        assert go_on.wait(30.0)
        finished.set()

    publisher = graph.publisher(String, "words")
    listener = Listener(graph.node, String, "words", callback, RELIABLE)
    speak(graph, publisher, "slow")
    assert begun.wait(30.0)
    stopper = threading.Thread(target=listener.stop)
    stopper.start()
    go_on.set()
    stopper.join(30.0)
    assert not stopper.is_alive()
    assert finished.is_set()
    wait_until(lambda: publisher.get_subscription_count() == 0, "the subscription to be gone")
    assert "listener words" not in {thread.name for thread in threading.enumerate()}


def test_a_busy_listener_skips_to_the_newest_message(graph: Graph) -> None:
    heard: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def callback(message: String) -> None:
        heard.append(message.data)
        begun.set()
        assert go_on.wait(30.0)

    listener = Listener(graph.node, String, "words", callback, QoSProfile(depth=1))
    publisher = graph.publisher(String, "words")
    speak(graph, publisher, "first")
    assert begun.wait(30.0)
    speak(graph, publisher, *[f"word {i}" for i in range(20)])
    # Reliable: once these are acknowledged, they have arrived.
    assert publisher.wait_for_all_acked(Duration(seconds=30))
    go_on.set()
    wait_until(lambda: len(heard) == 2, "the newest word")
    assert heard == ["first", "word 19"]
    listener.stop()


def test_the_node_may_be_shut_down_under_it(tmp_path: Path) -> None:
    with ros_graph(tmp_path) as graph:
        Listener(graph.node, String, "words", print, RELIABLE)
    wait_until(lambda: "listener words" not in {t.name for t in threading.enumerate()}, "the thread to end", 10.0)
