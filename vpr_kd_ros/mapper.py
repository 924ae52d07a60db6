"""Mapping: which frames of a drive become places."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vpr_kd_ros.errors import ConfigError
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.place_map import PlaceMap
from vpr_kd_ros.student import Student


@dataclass(frozen=True)
class MapperConfig:
    """When a frame becomes a place.

    Attributes:
        min_distance_m: moved at least this far since the last place, metres; or
        min_angle_rad: turned at least this far, radians, about any axis.
        session: name of the drive.
    """

    min_distance_m: float = 2.0
    min_angle_rad: float = math.radians(30.0)
    session: str = "session"

    def __post_init__(self) -> None:
        if not self.min_distance_m > 0:
            raise ConfigError(f"min_distance_m: {self.min_distance_m} must be positive")
        if not 0 < self.min_angle_rad <= math.pi:
            raise ConfigError(f"min_angle_rad: {self.min_angle_rad} must be in (0, pi]")
        if not self.session:
            raise ConfigError("session: it is empty; give the drive a name")


class Mapper:
    """Adds the frames of one drive to a map.

    Raises:
        DataError: the map was made with another student.
    """

    def __init__(self, student: Student, place_map: PlaceMap, config: MapperConfig) -> None:
        place_map.require_student(student.metadata.fingerprint)
        self.student = student
        self.place_map = place_map
        self.config = config
        self.session = config.session
        """The session that the next place is added to."""
        self._sessions = 1
        self._last: tuple[Pose, int] | None = None

    def observe(self, image: NDArray[np.uint8], pose: Pose, stamp_ns: int) -> int | None:
        """Add a frame if the robot moved or turned enough since the last place; the first frame always is added.

        Where time jumps back behind the last place (a bag that starts over, a simulation that was reset), a new
        session begins, named ``SESSION-2`` and so on.

        Args:
            image: RGB, (H, W, 3) uint8.
            pose: of the robot's base in the map's frame when the image was taken.
            stamp_ns: of the image, nanoseconds.

        Returns:
            The new place's id, or None where the frame is not a keyframe.

        Raises:
            DataError: the image is not RGB uint8, the pose is not finite, or the student gives no descriptor for it.
        """
        if self._last is not None and stamp_ns < self._last[1]:
            self._begin_session()
        if not self._is_keyframe(pose):
            return None
        descriptor = self.student.describe([image])[0]
        place_id = self.place_map.add(descriptor, pose, stamp_ns, self.session, image)
        self._last = (pose, stamp_ns)
        return place_id

    def _begin_session(self) -> None:
        self._sessions += 1
        self.session = f"{self.config.session}-{self._sessions}"
        self._last = None

    def _is_keyframe(self, pose: Pose) -> bool:
        if self._last is None:
            return True
        moved = float(np.linalg.norm(pose.position - self._last[0].position))
        turned = _angle_between(pose.quaternion, self._last[0].quaternion)
        # Written so that a pose that is not finite counts as a keyframe: the map then refuses it aloud.
        return not (moved < self.config.min_distance_m and turned < self.config.min_angle_rad)


def _angle_between(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Angle of the rotation between two unit quaternions, radians in [0, pi]."""
    # q and -q are the same rotation. This form of the angle, unlike arccos, is precise near 0.
    nearer = b if float(a @ b) >= 0 else -b
    return 4.0 * math.atan2(float(np.linalg.norm(a - nearer)), float(np.linalg.norm(a + nearer)))
