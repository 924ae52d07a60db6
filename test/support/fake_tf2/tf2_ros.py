"""The part of tf2_ros that the nodes use, over a topic of geometry_msgs, for machines that have no tf2_msgs.

It shows what the nodes do with transforms; that they reach ``/tf``, only a machine with the real package can show.
"""

from __future__ import annotations

from typing import Any

from geometry_msgs.msg import TransformStamped

TOPIC = "/fake_tf"


class TransformException(Exception):  # noqa: N818, tf2 calls it so
    pass


class TransformBroadcaster:
    def __init__(self, node: Any) -> None:
        self._publisher = node.create_publisher(TransformStamped, TOPIC, 100)

    def sendTransform(self, transform: TransformStamped) -> None:  # noqa: N802, tf2's name
        self._publisher.publish(transform)


class Buffer:
    def __init__(self, cache_time: Any) -> None:
        self.transforms: dict[int, TransformStamped] = {}
        self._cache_ns = cache_time.nanoseconds

    def set_transform(self, transform: TransformStamped, authority: str) -> None:
        stamp = transform.header.stamp.sec * 10**9 + transform.header.stamp.nanosec
        # As tf2 does, which only warns of it.
        if stamp >= max(self.transforms, default=stamp) - self._cache_ns:
            self.transforms[stamp] = transform

    def lookup_transform(self, target: str, source: str, time: Any) -> TransformStamped:
        # 0 is the newest for tf2.
        found = self.transforms.get(time.nanoseconds or max(self.transforms, default=0))
        if found is None or (found.header.frame_id, found.child_frame_id) != (target, source):
            raise TransformException(f"{target} <- {source} at {time.nanoseconds}")
        return found

    def clear(self) -> None:
        self.transforms.clear()


class TransformListener:
    def __init__(self, buffer: Buffer, node: Any) -> None:
        self._buffer, self._node = buffer, node
        self._subscription = node.create_subscription(TransformStamped, TOPIC, self._on_transform, 100)

    def unregister(self) -> None:
        self._node.destroy_subscription(self._subscription)

    def _on_transform(self, message: TransformStamped) -> None:
        self._buffer.set_transform(message, "")
