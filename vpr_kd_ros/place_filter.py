"""The belief fed with images: what each says about the places of a map, by the student's calibration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vpr_kd_ros.belief import Belief, BeliefConfig, Posterior
from vpr_kd_ros.calibration import Evidence, Filtered
from vpr_kd_ros.errors import ConfigError
from vpr_kd_ros.geometry import Floats, Ints, Pose, yaw_from_quaternion
from vpr_kd_ros.place_map import PlaceMap
from vpr_kd_ros.student import Student

BACKGROUND = 256
"""So many of the map's places, or all, are what the similarities of an image are compared with."""


class PlaceFilter:
    """The belief over a map's places, fed with what the student's calibration says of each image.

    Args:
        student: its calibration must hold what the filter needs.
        place_map: must not change while it is filtered.
        cluster_radius_m: places farther apart are no neighbours.
        config: how to filter.

    Raises:
        ConfigError: the student carries no calibration, or one for single images only.
    """

    def __init__(self, student: Student, place_map: PlaceMap, cluster_radius_m: float, config: BeliefConfig) -> None:
        self._evidence, self._with_odometry, self._without_odometry = _for_belief(student)
        self._place_map = place_map
        ids = place_map.ids
        chosen = np.unique(np.linspace(0, len(ids) - 1, min(BACKGROUND, len(ids))).astype(np.int64))
        self._background = place_map.descriptors_of(ids[chosen])
        self._row_of = {place_id: row for row, place_id in enumerate(ids.tolist())}
        self._positions = place_map.positions
        self._yaws = yaws_of([place_map.pose(place_id) for place_id in self._row_of])
        spacing = min(place_map.spacing_m, cluster_radius_m)
        self.belief = Belief(ids, self._positions, self._yaws, spacing, config)

    def observe(
        self, stamp_ns: int, descriptor: NDArray[np.float32], retrieved: Ints, odometry: Pose | None
    ) -> Posterior:
        """Take in one image, (D,) float32, and the places that were retrieved for it; see ``Belief.observe``."""
        background = self._background @ descriptor

        def log_ratios(place_ids: Ints) -> Floats:
            similarities = self._place_map.descriptors_of(place_ids) @ descriptor
            return self._evidence.log_ratios(similarities, background)

        spoken = self._evidence.log_ratios(background, background)
        return self.belief.observe(stamp_ns, retrieved, log_ratios, spoken, odometry)

    def places(self, place_ids: Ints) -> tuple[Floats, Floats]:
        """Positions (h, 3) and headings (h,) of places (h,)."""
        rows = [self._row_of[place_id] for place_id in place_ids.tolist()]
        return self._positions[rows], self._yaws[rows]

    def worth(self, posterior: Posterior) -> Filtered:
        """What the filter's probabilities are worth now."""
        return self._without_odometry if posterior.moved is None else self._with_odometry


def yaws_of(poses: Sequence[Pose]) -> Floats:
    """Headings (k,), radians."""
    return yaw_from_quaternion(np.array([pose.quaternion for pose in poses], dtype=np.float64).reshape(-1, 4))


def _for_belief(student: Student) -> tuple[Evidence, Filtered, Filtered]:
    """What mode belief needs of the calibration."""
    calibration = student.metadata.calibration
    if calibration is None:
        raise ConfigError(
            f"mode: 'belief' needs probabilities, and student {student.metadata.name!r} carries no calibration; export "
            f"it with one, or set mode to 'single'"
        )
    evidence, with_odometry, without = calibration.evidence, calibration.with_odometry, calibration.without_odometry
    if evidence is None or with_odometry is None or without is None:
        raise ConfigError(
            f"mode: 'belief', but student {student.metadata.name!r} was calibrated for single images only, by an older "
            f"version; export it again, or set mode to 'single'"
        )
    return evidence, with_odometry, without
