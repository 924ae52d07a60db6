"""A subscription with a thread of its own, for what comes often or is large.

For every message, rclpy's executor prepares to wait for all that the node has, timers, services and events included:
one and a half milliseconds of a processor in our nodes, more than an image takes to be decoded and resized. Here a
thread waits for one subscription alone. It asks for the serialized bytes where the caller reads them without rclpy,
which would copy them twice more.

What the middleware knows of a message can be had here in every release of ROS 2: Humble's executor keeps it to itself.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.impl.implementation_singleton import rclpy_implementation

# Where these callbacks are defined differs between releases of ROS 2; here they can be had in all of them.
from rclpy.node import Node, SubscriptionEventCallbacks
from rclpy.qos import QoSProfile

# How long stopping may take, and how long a failing subscription is left alone.
WAIT_NS = 100_000_000


class Listener:
    """Calls back with each message of a topic, in a thread of its own, until it is stopped.

    What the callback raises is logged, and the next message is waited for. With a queue of one message, what comes
    while the callback runs is replaced by what comes later.

    Args:
        node: whose subscription it is.
        message_type: of the messages.
        topic: resolved as the node's other topics are.
        callback: called with a message, or with its bytes.
        qos: of the subscription.
        serialized: hand over the serialized bytes.
        informed: hand over also what the middleware knows, by name: ``received_timestamp`` in nanoseconds, which some
            leave 0, and from Jazzy on ``publication_sequence_number``, None where there is none.
    """

    def __init__(
        self,
        node: Node,
        message_type: Any,
        topic: str,
        callback: Callable[..., None],
        qos: QoSProfile,
        serialized: bool = False,
        informed: bool = False,
    ) -> None:
        self._node = node
        self._callback = callback
        self._informed = informed
        self._subscription = node.create_subscription(
            message_type,
            topic,
            callback,
            qos,
            raw=serialized,
            callback_group=_NotForTheExecutor(),
            # With them the executor would be woken by each message after all.
            event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=False),
        )
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"listener {topic}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Finish the message in work, end the thread and unsubscribe."""
        self._stopping = True
        self._thread.join()
        self._node.destroy_subscription(self._subscription)

    @staticmethod
    def stop_all(listeners: Iterable[Listener]) -> None:
        """Stop several, which takes as long as one."""
        listeners = list(listeners)
        for listener in listeners:
            listener._stopping = True
        for listener in listeners:
            listener.stop()

    def _run(self) -> None:
        context = self._node.context
        with context.handle, self._subscription.handle:
            waiting = rclpy_implementation.WaitSet(1, 0, 0, 0, 0, 0, context.handle)
            while not self._stopping and context.ok():
                self._wait(waiting)

    def _wait(self, waiting: Any) -> None:
        """Wait for a message, not for long, and call back with it."""
        subscription = self._subscription
        try:
            waiting.clear_entities()
            waiting.add_subscription(subscription.handle)
            waiting.wait(WAIT_NS)
            if waiting.get_ready_entities("subscription"):
                taken = subscription.handle.take_message(subscription.msg_type, subscription.raw)
                if taken is not None:
                    self._callback(*(taken if self._informed else taken[:1]))
        except Exception:
            # One message that fails must not end the thread; the text says which.
            self._node.get_logger().error(
                f"{subscription.topic_name}: a message failed, going on:\n{traceback.format_exc()}",
                throttle_duration_sec=5.0,
            )
            time.sleep(WAIT_NS * 1e-9)


class _NotForTheExecutor(CallbackGroup):  # type: ignore[misc]  # rclpy has no types
    """The group of a subscription that the executor leaves alone."""

    def can_execute(self, entity: Any) -> bool:
        return False

    def beginning_execution(self, entity: Any) -> bool:
        return False

    def ending_execution(self, entity: Any) -> None:
        pass
