"""The last poses, asked for the one at an image's stamp; no ROS in here."""

from __future__ import annotations

from bisect import bisect_left
from enum import Enum

import numpy as np

from vpr_kd_ros.geometry import Pose, Trajectory
from vpr_kd_ros.stamps import JUMP_NS


class Missing(Enum):
    """Why there is no pose at a stamp."""

    NOT_YET = "no pose after the image yet"
    TOO_OLD = "the image is older than the poses kept"
    NO_TRANSFORM = "tf2 knows no chain of transforms at the image's stamp"
    GAP = "the poses around the image are too far apart in time"


class PoseBuffer:
    """Poses by stamp, interpolated and never extrapolated.

    Args:
        seconds: poses older than the newest by more than this are forgotten.
        max_gap_s: a stamp is answered only between poses at most this far apart.
    """

    def __init__(self, seconds: float = 10.0, max_gap_s: float = 0.5) -> None:
        self._keep_ns = int(seconds * 1e9)
        self._max_gap_ns = int(max_gap_s * 1e9)
        self._stamps: list[int] = []
        self._poses: list[Pose] = []

    def __len__(self) -> int:
        return len(self._stamps)

    def add(self, stamp_ns: int, pose: Pose) -> bool:
        """Add a pose; False when time jumped back with it, by more than ``JUMP_NS``, and the others were forgotten."""
        jumped = bool(self._stamps) and stamp_ns < self._stamps[-1] - JUMP_NS
        if jumped:
            self.clear()
        place = bisect_left(self._stamps, stamp_ns)
        if place < len(self._stamps) and self._stamps[place] == stamp_ns:
            self._poses[place] = pose
        else:
            self._stamps.insert(place, stamp_ns)
            self._poses.insert(place, pose)
        old = bisect_left(self._stamps, self._stamps[-1] - self._keep_ns)
        del self._stamps[:old], self._poses[:old]
        return not jumped

    def clear(self) -> None:
        """Forget all poses."""
        self._stamps.clear()
        self._poses.clear()

    def at(self, stamp_ns: int) -> Pose | Missing:
        """The pose at a stamp in nanoseconds, or why there is none."""
        right = bisect_left(self._stamps, stamp_ns)
        if right == len(self._stamps):
            return Missing.NOT_YET
        if self._stamps[right] == stamp_ns:
            return self._poses[right]
        if right == 0:
            return Missing.TOO_OLD
        pair = slice(right - 1, right + 1)
        trajectory = Trajectory(
            np.array(self._stamps[pair]),
            np.array([pose.position for pose in self._poses[pair]]),
            np.array([pose.quaternion for pose in self._poses[pair]]),
        )
        positions, quaternions, valid = trajectory.at(np.array([stamp_ns]), self._max_gap_ns)
        return Pose(positions[0], quaternions[0]) if valid[0] else Missing.GAP
