"""Recording only while the robot moves; no ROS in here."""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass

import numpy as np

from vpr_kd_ros.geometry import Pose

# A robot that turns on the spot sees new places too.
TURN_RAD = math.radians(15.0)


@dataclass(frozen=True)
class Arrival:
    """A serialized message as it came: topic, type, when it was received in nanoseconds, and its bytes."""

    topic: str
    type_name: str
    stamp_ns: int
    data: bytes


class MovementGate:
    """Lets messages through while the robot moves, and the last ones before it moved again.

    The robot moves when it is ``distance_m`` away from where it was noticed last, or has turned by 15 degrees; it
    stands when that was ``standing_s`` ago. A message waits until a pose of its time tells, so that a machine that is
    late with either loses nothing. While it cannot be told, because no pose comes, the robot is taken to move: odometry
    that breaks down must not cost a recording.

    Args:
        distance_m: metres, positive.
        standing_s: seconds, positive.
        buffer_s: seconds of messages kept while it stands, for when it moves again.
        max_buffer_bytes: and not more than this of them.

    Attributes:
        left_out: topic to messages that were not let through.
    """

    def __init__(self, distance_m: float, standing_s: float, buffer_s: float, max_buffer_bytes: int) -> None:
        self.left_out: Counter[str] = Counter()
        self._distance_m = distance_m
        self._standing_ns = int(standing_s * 1e9)
        self._buffer_ns = int(buffer_s * 1e9)
        self._max_buffer_bytes = max_buffer_bytes
        self._buffer: deque[Arrival] = deque()
        self._buffer_bytes = 0
        self._anchor: Pose | None = None
        self._moved_ns = 0
        self._heard_ns = 0

    def pose(self, stamp_ns: int, pose: Pose) -> None:
        """Take in where the robot is, and when that was received."""
        self._heard_ns = stamp_ns
        if self._anchor is None or stamp_ns < self._moved_ns or self._is_away(self._anchor, pose):
            self._anchor = pose
            self._moved_ns = stamp_ns

    def stands(self, now_ns: int) -> bool:
        """Whether the robot is known to stand."""
        return not self._is_unknown(now_ns) and self._heard_ns - self._moved_ns >= self._standing_ns

    def pass_on(self, message: Arrival) -> list[Arrival]:
        """Take in a message and return those that are to be recorded now, oldest first."""
        self._buffer.append(message)
        self._buffer_bytes += len(message.data)
        passed = []
        unknown = self._is_unknown(message.stamp_ns)
        while self._buffer and (unknown or self._buffer[0].stamp_ns < self._moved_ns + self._standing_ns):
            passed.append(self._take())
        while self._buffer and (
            self._buffer_bytes > self._max_buffer_bytes or self._buffer[0].stamp_ns < self._heard_ns - self._buffer_ns
        ):
            self.left_out[self._take().topic] += 1
        return passed

    def close(self) -> None:
        """Count what waits as left out."""
        while self._buffer:
            self.left_out[self._take().topic] += 1

    def _is_unknown(self, now_ns: int) -> bool:
        # Also where the clock was set back, or a simulation began again, and no pose came since.
        return self._anchor is None or not -self._standing_ns < now_ns - self._heard_ns < self._standing_ns

    def _take(self) -> Arrival:
        message = self._buffer.popleft()
        self._buffer_bytes -= len(message.data)
        return message

    def _is_away(self, anchor: Pose, pose: Pose) -> bool:
        distance = float(np.linalg.norm(pose.position - anchor.position))
        turn = abs(math.remainder(pose.yaw - anchor.yaw, math.tau))
        return distance >= self._distance_m or turn >= TURN_RAD
