"""Real nodes in processes of their own, and a node in the test to talk with them, on a ROS domain of their own."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["ROS_PYTHON_CHECK_FIELDS"] = "1"

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile

REPOSITORY = Path(__file__).parents[2]
PROFILES = REPOSITORY / "config" / "fastdds.xml"
# Domains above 101 use ports that the system gives to others.
_domains = itertools.count(os.getpid() * 7)


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    """Wait for a condition and return its value; fail with ``what`` when it does not come true."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {timeout_s:g} s")


class NodeProcess:
    """One of our nodes, started as ``python -m vpr_kd_ros.nodes.NAME``."""

    def __init__(
        self,
        name: str,
        domain: int,
        log: Path,
        parameters: dict[str, Any],
        remaps: dict[str, str],
        python_path: Sequence[Path] = (),
    ) -> None:
        arguments = [f"-p{key}:={_yaml(value)}" for key, value in parameters.items()]
        arguments = [part for argument in arguments for part in ("-p", argument[2:])]
        arguments += [part for old, new in remaps.items() for part in ("-r", f"{old}:={new}")]
        self.log = log
        self._file = log.open("wb")
        environment = {
            **os.environ,
            "ROS_DOMAIN_ID": str(domain),
            "FASTRTPS_DEFAULT_PROFILES_FILE": str(PROFILES),
            "RCUTILS_LOGGING_BUFFERED_STREAM": "0",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(str(path) for path in (REPOSITORY, *python_path)),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"vpr_kd_ros.nodes.{name}", "--ros-args", *arguments],
            stdout=self._file,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=log.parent,
        )

    @property
    def output(self) -> str:
        """What it printed so far."""
        return self.log.read_text(errors="replace")

    def wait_for_output(self, text: str, timeout_s: float = 60.0) -> None:
        """Wait until it has printed a text; fail when it ends before."""
        end = time.monotonic() + timeout_s
        while text not in self.output:
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.output}"
            assert time.monotonic() < end, f"{text!r} was not printed:\n{self.output}"
            time.sleep(0.05)

    def end(self, number: int = signal.SIGINT, timeout_s: float = 60.0) -> int:
        """Send a signal and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = 60.0) -> int:
        """Wait for its end and return the exit status."""
        try:
            return self.process.wait(timeout_s)
        finally:
            self.kill()

    def kill(self) -> None:
        """End it however it is."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._file.close()


class Graph:
    """A node of the test's own, spun in the background, and the processes that share its domain."""

    def __init__(self, folder: Path) -> None:
        self.domain = 1 + next(_domains) % 100
        self.folder = folder
        self._context = rclpy.Context()
        os.environ["FASTRTPS_DEFAULT_PROFILES_FILE"] = str(PROFILES)
        rclpy.init(context=self._context, domain_id=self.domain)
        self.node = Node("test", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()
        self._processes: list[NodeProcess] = []

    def start(
        self,
        name: str,
        parameters: dict[str, Any] | None = None,
        remaps: dict[str, str] | None = None,
        python_path: Sequence[Path] = (),
    ) -> NodeProcess:
        """Start one of our nodes on this domain, with further folders that it imports from."""
        log = self.folder / f"{name}-{len(self._processes)}.log"
        process = NodeProcess(name, self.domain, log, parameters or {}, remaps or {}, python_path)
        self._processes.append(process)
        return process

    def publisher(self, message_type: Any, topic: str, qos: QoSProfile | int = 10) -> Any:
        """A publisher of the test's node."""
        return self.node.create_publisher(message_type, topic, qos)

    def wait_for_subscriber(self, topic: str) -> None:
        """Wait until somebody subscribes to a topic and, where the test publishes it, is matched with its publisher.

        The other side may still have to match; to be heard for certain, repeat until it says so (``repeat_until``).
        """
        wait_until(lambda: self.node.count_subscribers(topic), f"a subscriber of {topic}")
        for publisher in self.node.publishers:
            if publisher.topic_name == topic:
                wait_until(publisher.get_subscription_count, f"a match with the subscriber of {topic}")

    def repeat_until(self, action: Callable[[], object], condition: Callable[[], Any], what: str) -> Any:
        """Do something every half second until a condition comes true, and return its value."""
        end = time.monotonic() + 60.0
        while time.monotonic() < end:
            action()
            for _ in range(25):
                value = condition()
                if value:
                    return value
                time.sleep(0.02)
        raise AssertionError(f"{what}: not within a minute")

    def collect(self, message_type: Any, topic: str, qos: QoSProfile | int = 10, raw: bool = False) -> list[Any]:
        """A list that fills with the messages of a topic."""
        received: list[Any] = []
        self.node.create_subscription(message_type, topic, received.append, qos, raw=raw)
        return received

    def call(self, service_type: Any, name: str, request: Any, timeout_s: float = 60.0) -> Any:
        """Call a service and return its response."""
        client = self.node.create_client(service_type, name)
        try:
            assert client.wait_for_service(timeout_sec=timeout_s), f"no service {name}"
            future = client.call_async(request)
            wait_until(future.done, f"an answer of {name}", timeout_s)
            return future.result()
        finally:
            self.node.destroy_client(client)

    def close(self) -> None:
        """End the processes and leave the domain."""
        for process in self._processes:
            process.kill()
        rclpy.shutdown(context=self._context)
        self._thread.join(timeout=5.0)
        self.node.destroy_node()

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            return


@contextmanager
def ros_graph(folder: Path) -> Iterator[Graph]:
    """A ``Graph`` for as long as the block lasts."""
    graph = Graph(folder)
    try:
        yield graph
    finally:
        graph.close()


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(f"'{item}'" for item in value) + "]"
    return str(value)
