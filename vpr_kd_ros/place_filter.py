"""The belief fed with images: what each says about the places of a map, by the student's calibration.

Where the robot has several cameras, each has a map of its own, with the poses of the robot's base in one frame. The
belief is over the places of the first camera's map. What another camera says of such a place is what it says of the
place of its own map that was seen from there; where its map has none, it says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from vpr_kd_ros.belief import Belief, BeliefConfig, Posterior
from vpr_kd_ros.calibration import Evidence, Filtered
from vpr_kd_ros.errors import ConfigError
from vpr_kd_ros.geometry import Floats, Ints, Pose, yaw_from_quaternion
from vpr_kd_ros.place_map import PlaceMap
from vpr_kd_ros.student import Student

BACKGROUND = 256
"""So many of the map's places, or all, are what the similarities of an image are compared with."""
SAME_SPOT_M = 5.0
"""Places of two cameras this near, and headed alike, were seen from one spot: as near as the calibration's evidence."""
SAME_HEADING_RAD = math.radians(45.0)
"""A place headed this much otherwise is as far as one ``SAME_SPOT_M`` away."""


class PlaceFilter:
    """The belief over a map's places, fed with what the student's calibration says of each image.

    Args:
        student: its calibration must hold what the filter needs.
        maps: of each camera by its name, all in one frame; they must not change while they are filtered.
        cluster_radius_m: places farther apart are no neighbours.
        config: how to filter.

    Raises:
        ConfigError: the student carries no calibration, or one for single images only.
    """

    def __init__(
        self, student: Student, maps: Mapping[str, PlaceMap], cluster_radius_m: float, config: BeliefConfig
    ) -> None:
        self._evidence, self._with_odometry, self._without_odometry = _for_belief(student)
        first = next(iter(maps.values()))
        ids = first.ids
        self._row_of = {place_id: row for row, place_id in enumerate(ids.tolist())}
        self._positions = first.positions
        self._yaws = yaws_of([first.pose(place_id) for place_id in self._row_of])
        self._views = {camera: _View(m, _background(m), _matched(first, m)) for camera, m in maps.items()}
        spacing = min(first.spacing_m, cluster_radius_m)
        self.belief = Belief(ids, self._positions, self._yaws, spacing, config)

    def observe(
        self,
        stamp_ns: int,
        descriptor: NDArray[np.float32],
        retrieved: Ints,
        odometry: Pose | None,
        camera: str,
    ) -> Posterior:
        """Take in one image, (D,) float32, and the places of its camera's map that were retrieved for it.

        See ``Belief.observe``.
        """
        view = self._views[camera]
        background = view.background @ descriptor

        def log_ratios(place_ids: Ints) -> Floats:
            seen = self.seen_by(camera, place_ids)
            ratios = np.zeros(len(seen))
            known = seen >= 0
            similarities = view.place_map.descriptors_of(seen[known]) @ descriptor
            ratios[known] = self._evidence.log_ratios(similarities, background)
            return ratios

        spoken = self._evidence.log_ratios(background, background)
        return self.belief.observe(stamp_ns, view.places(retrieved), log_ratios, spoken, odometry, camera)

    def seen_by(self, camera: str, place_ids: Ints) -> Ints:
        """For places (h,) of the belief, those of a camera's map that were seen from there; -1 where it has none."""
        matched = self._views[camera].matched
        if matched is None:
            return place_ids
        return matched.of_place[[self._row_of[place_id] for place_id in place_ids.tolist()]]

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


def counterparts(places: PlaceMap, others: PlaceMap) -> Ints:
    """For each place of a map, in the order of its ids, the place of another map that was seen from the same spot.

    That is the nearest in position and heading, of the same session if that has one near enough: a place seen in the
    snow is compared with the other camera's image of that day.

    Returns:
        (N,) int64 ids of the other map, -1 where no place is near enough.
    """
    found = np.full(len(places), -1, dtype=np.int64)
    here, there = _spots(places), _spots(others)
    other_ids = others.ids

    def fill(rows: Ints, columns: Ints) -> None:
        if len(rows) and len(columns):
            distances, nearest = cKDTree(there[columns]).query(here[rows], distance_upper_bound=SAME_SPOT_M)
            near = np.isfinite(distances)
            found[rows[near]] = other_ids[columns[nearest[near]]]

    sessions, other_sessions = (
        np.array([place_map.session(i) for i in place_map.ids.tolist()]) for place_map in (places, others)
    )
    for session in np.unique(sessions).tolist():
        fill(np.flatnonzero(sessions == session), np.flatnonzero(other_sessions == session))
    fill(np.flatnonzero(found < 0), np.arange(len(others)))
    return found


@dataclass(frozen=True)
class _Matched:
    """``counterparts`` of the belief's places (N,) and those of the places (M,), with ids ``ids``, of another map."""

    of_place: Ints
    ids: Ints
    to_place: Ints


@dataclass(frozen=True)
class _View:
    """What one camera knows: its map, descriptors (m, D) of a sample of it; None matched where it is the belief's."""

    place_map: PlaceMap
    background: NDArray[np.float32]
    matched: _Matched | None

    def places(self, ids: Ints) -> Ints:
        """The belief's places that were seen from where these places (k,) of the camera's map were."""
        if self.matched is None:
            return ids
        found = self.matched.to_place[np.searchsorted(self.matched.ids, ids)]
        return np.unique(found[found >= 0])


def _matched(first: PlaceMap, place_map: PlaceMap) -> _Matched | None:
    if place_map is first:
        return None
    return _Matched(counterparts(first, place_map), place_map.ids, counterparts(place_map, first))


def _background(place_map: PlaceMap) -> NDArray[np.float32]:
    ids = place_map.ids
    chosen = np.unique(np.linspace(0, len(ids) - 1, min(BACKGROUND, len(ids))).astype(np.int64))
    return place_map.descriptors_of(ids[chosen])


def _spots(place_map: PlaceMap) -> Floats:
    """(N, 5) position, and heading on a circle on which ``SAME_HEADING_RAD`` are ``SAME_SPOT_M``."""
    yaws = yaws_of([place_map.pose(i) for i in place_map.ids.tolist()])
    radius = SAME_SPOT_M / (2.0 * math.sin(SAME_HEADING_RAD / 2.0))
    return np.column_stack([place_map.positions, radius * np.cos(yaws), radius * np.sin(yaws)])


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
