"""The odometry at the moment of an image, waited for where that helps, and when it starts over; no ROS in here."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.motion import Motion
from vpr_kd_ros.nodes.pose_buffer import Missing, PoseBuffer
from vpr_kd_ros.stamps import JUMP_NS, NewestStamps

# An image waits this long for the odometry after it; half a second between two poses says too little.
WAIT_S = 0.1
GAP_S = 0.5
# Odometry that goes farther than the robot can by this, metres, or turns by this more, radians, has started over.
JUMP_M, JUMP_RAD = 1.0, 0.5
MAX_TURN_RADPS = math.pi


@dataclass(frozen=True)
class OdometryPose:
    """The robot's pose in the odometry's frame; ``start`` counts how often the odometry had started over by then."""

    pose: Pose
    frame_id: str
    start: int


class Odometry:
    """The last poses of the odometry; one thread adds them, another asks.

    Args:
        max_speed_mps: of the robot, metres per second.
        on_start: called when what was known of the odometry's frame does not hold any more: it jumped, as when its
            driver starts again, changed its frame, or time jumped back.
        wait_s: an image waits this long for the odometry after it, seconds.
    """

    def __init__(self, max_speed_mps: float, on_start: Callable[[], None], wait_s: float = WAIT_S) -> None:
        self.start = 0
        self._max_speed_mps, self._on_start, self._wait_s = max_speed_mps, on_start, wait_s
        self._poses = PoseBuffer(max_gap_s=GAP_S)
        self._newest: tuple[int, Pose] | None = None
        self._frame_id = ""
        self._images = NewestStamps()
        # Whether an image waited in vain since the last pose.
        self._silent = False
        self._arrived = threading.Condition()

    def add(self, stamp_ns: int, pose: Pose, frame_id: str) -> bool:
        """Add a pose; False where the odometry started over with it, and the others were forgotten."""
        with self._arrived:
            newest = self._newest
            goes_on = newest is None or (frame_id == self._frame_id and self._follows(newest, stamp_ns, pose))
            if not goes_on:
                self._start_over()
            if self._newest is None or stamp_ns > self._newest[0]:
                self._newest = stamp_ns, pose
            self._frame_id = frame_id
            self._silent = False
            self._poses.add(stamp_ns, pose)
            self._arrived.notify()
            return goes_on

    def at(self, stamp_ns: int, camera: str = "") -> OdometryPose | None:
        """The pose when an image was taken; waits for the one after it. None where there is none.

        Where the odometry has died, one image waits in vain, and none after it.
        """
        with self._arrived:
            if self._images.jumped_back(stamp_ns, camera):
                # The poses kept are of another drive.
                self._start_over()
                self._images.clear()
            self._images.add(stamp_ns, camera)
            pose = self._arrived.wait_for(lambda: self._found(stamp_ns), timeout=self._wait_s)
            self._silent = self._silent or pose is None
            return OdometryPose(pose, self._frame_id, self.start) if isinstance(pose, Pose) else None

    def _found(self, stamp_ns: int) -> Pose | Missing | None:
        """The pose at a stamp, or why there is none; None where it may yet come."""
        pose = self._poses.at(stamp_ns)
        if pose is not Missing.NOT_YET or self._newest is None:
            return pose
        # The next pose would be too far from so old a one; but an image may overtake the first pose after a pause.
        died = self._silent and (stamp_ns - self._newest[0]) * 1e-9 > GAP_S
        return pose if died else None

    def _follows(self, newest: tuple[int, Pose], stamp_ns: int, pose: Pose) -> bool:
        """Whether the robot can have come from the newest pose to this one."""
        newest_ns, before = newest
        motion = Motion.between(before, pose)
        # Nothing tells that the odometry went on during a gap.
        seconds = min(abs(stamp_ns - newest_ns) * 1e-9, GAP_S)
        return (
            stamp_ns >= newest_ns - JUMP_NS
            and motion.distance <= self._max_speed_mps * seconds + JUMP_M
            and abs(motion.turn) <= MAX_TURN_RADPS * seconds + JUMP_RAD
        )

    def _start_over(self) -> None:
        self._poses.clear()
        self._newest = None
        self.start += 1
        self._on_start()
