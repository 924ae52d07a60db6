"""Mapping: which frames of a drive become places."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vpr_kd_ros.errors import ConfigError
from vpr_kd_ros.geometry import VIEW_ANGLE_RAD, Pose, angle_between, same_view
from vpr_kd_ros.place_map import PlaceMap
from vpr_kd_ros.student import Student


@dataclass(frozen=True)
class MapperConfig:
    """When a frame becomes a place.

    Attributes:
        min_distance_m: moved at least this far since the last place, metres; or
        min_angle_rad: turned at least this far, radians, about any axis; or
        min_novelty: looks this different from the last place, 1 - inner product of the descriptors, in (0, 2]. Every
            frame is described then. None leaves it out.
        max_views: keep at most so many views of one spot, at least 1: where a new place makes one too many within
            ``view_radius_m`` and ``min_angle_rad`` of it, the two views most alike are found and the one added first
            goes. A map that is driven again under other conditions so keeps what differs. None keeps all.
        view_radius_m: places nearer than this are views of one spot, metres; below ``min_distance_m``, or one drive's
            neighbours would replace each other.
        session: name of the drive.
    """

    min_distance_m: float = 2.0
    min_angle_rad: float = VIEW_ANGLE_RAD
    session: str = "session"
    min_novelty: float | None = None
    max_views: int | None = None
    view_radius_m: float = 1.0

    def __post_init__(self) -> None:
        if not self.min_distance_m > 0:
            raise ConfigError(f"min_distance_m: {self.min_distance_m} must be positive")
        if not 0 < self.min_angle_rad <= math.pi:
            raise ConfigError(f"min_angle_rad: {self.min_angle_rad} must be in (0, pi]")
        if not self.session:
            raise ConfigError("session: it is empty; give the drive a name")
        if self.min_novelty is not None and not 0 < self.min_novelty <= 2:
            raise ConfigError(f"min_novelty: {self.min_novelty} must be in (0, 2]")
        if self.max_views is not None and self.max_views < 1:
            raise ConfigError(f"max_views: {self.max_views} must be at least 1")
        if not self.view_radius_m > 0:
            raise ConfigError(f"view_radius_m: {self.view_radius_m} must be positive")
        if self.max_views is not None and self.view_radius_m >= self.min_distance_m:
            raise ConfigError(
                f"view_radius_m: {self.view_radius_m} must be below min_distance_m, {self.min_distance_m}"
            )


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
        self.replaced = 0
        """Number of views that gave way to newer ones."""
        self._sessions = 1
        self._last: _Last | None = None

    def observe(self, image: NDArray[np.uint8], pose: Pose, stamp_ns: int) -> int | None:
        """Add a frame if it is far or different enough from the last place; the first frame always is added.

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
        if self._last is not None and stamp_ns < self._last.stamp_ns:
            self._begin_session()
        moved = self._has_moved(pose)
        if not moved and self.config.min_novelty is None:
            return None
        descriptor = self.student.describe([image])[0]
        if not moved and not self._is_novel(descriptor):
            return None
        place_id = self.place_map.add(descriptor, pose, stamp_ns, self.session, image)
        self._last = _Last(pose, stamp_ns, descriptor)
        self._limit_views(pose)
        return place_id

    def _begin_session(self) -> None:
        self._sessions += 1
        self.session = f"{self.config.session}-{self._sessions}"
        self._last = None

    def _has_moved(self, pose: Pose) -> bool:
        if self._last is None:
            return True
        moved = float(np.linalg.norm(pose.position - self._last.pose.position))
        turned = float(angle_between(pose.quaternion, self._last.pose.quaternion))
        # Written so that a pose that is not finite counts as a keyframe: the map then refuses it aloud.
        return not (moved < self.config.min_distance_m and turned < self.config.min_angle_rad)

    def _is_novel(self, descriptor: NDArray[np.float32]) -> bool:
        assert self._last is not None
        assert self.config.min_novelty is not None
        return 1.0 - float(descriptor @ self._last.descriptor) >= self.config.min_novelty

    def _limit_views(self, pose: Pose) -> None:
        """Drop views of this spot until there are not too many."""
        place_map, config, most = self.place_map, self.config, self.config.max_views
        if most is None:
            return
        alike = same_view(place_map.positions, place_map.quaternions, pose, config.view_radius_m, config.min_angle_rad)
        views = place_map.ids[alike].tolist()
        while len(views) > most:
            descriptors = place_map.descriptors_of(views)
            likeness = np.triu(descriptors @ descriptors.T + 2.0, k=1)
            # Ids ascend in the order of adding: the row of the upper triangle is the older one.
            older = views.pop(int(np.unravel_index(np.argmax(likeness), likeness.shape)[0]))
            self.replaced += place_map.remove([older])


@dataclass(frozen=True)
class _Last:
    """The last place that was added."""

    pose: Pose
    stamp_ns: int
    descriptor: NDArray[np.float32]
