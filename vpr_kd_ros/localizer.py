"""Localisation: from one image to a match in the map, or to the reason why there is none."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vpr_kd_ros.calibration import margins
from vpr_kd_ros.errors import ConfigError
from vpr_kd_ros.geometry import Floats, Pose, wrap_angle
from vpr_kd_ros.place_map import Neighbours, PlaceMap
from vpr_kd_ros.student import Student

DEFAULT_CLUSTER_RADIUS_M = 10.0
MIN_DEVIATION_M = 0.1
ANGLE_DEVIATION_RAD = math.radians(5.0)
"""Least standard deviation of an angle; a keyframe of similar content may have been seen some degrees off."""


@dataclass(frozen=True)
class LocalizerConfig:
    """How candidates are found and when a match is accepted.

    Attributes:
        candidates: places retrieved for each image, at least; more where all of them are one place.
        min_probability: a match is accepted from this probability of being right on, in (0, 1]. Applies to students
            that carry a calibration.
        min_similarity: and from this similarity on, in [-1, 1]. Needed where the student carries no calibration.
        cluster_radius_m: candidates closer than this to one another are the same place. None takes the calibration's,
            which is the only one its probabilities hold for, or 10 m where there is no calibration.
        yaw_window_rad: candidates whose heading differs more than this from the best one's do not enter the pose.
    """

    candidates: int = 10
    min_probability: float = 0.9
    min_similarity: float | None = None
    cluster_radius_m: float | None = None
    yaw_window_rad: float = math.radians(45.0)

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ConfigError(f"candidates: {self.candidates} must be at least 1")
        if not 0 < self.min_probability <= 1:
            raise ConfigError(f"min_probability: {self.min_probability} must be in (0, 1]")
        if self.min_similarity is not None and not -1 <= self.min_similarity <= 1:
            raise ConfigError(f"min_similarity: {self.min_similarity} must be in [-1, 1]")
        if self.cluster_radius_m is not None and not 0 < self.cluster_radius_m < math.inf:
            raise ConfigError(f"cluster_radius_m: {self.cluster_radius_m} must be positive")
        if not 0 < self.yaw_window_rad <= math.pi:
            raise ConfigError(f"yaw_window_rad: {self.yaw_window_rad} must be in (0, pi]")


@dataclass(frozen=True)
class Candidates:
    """Retrieved places, best first.

    Attributes:
        place_ids: (k,) int64.
        similarities: (k,) float32, inner products of unit descriptors.
        probabilities: (k,) float64, each of being the right place; NaN where the student carries no calibration.
        positions: (k, 3) float64, metres in the map's frame.
        yaws: (k,) float64, radians.
    """

    place_ids: NDArray[np.int64]
    similarities: NDArray[np.float32]
    probabilities: Floats
    positions: Floats
    yaws: Floats

    def __len__(self) -> int:
        return len(self.place_ids)


@dataclass(frozen=True)
class Match:
    """What one image told.

    Attributes:
        stamp_ns: of the image, nanoseconds.
        accepted: whether the pose may be used.
        reason: why not; empty when accepted.
        pose: of the robot's base in the map's frame; None when not accepted.
        covariance: (6, 6) float64 in the order x, y, z, rotation about x, y, z (metres, radians); None with ``pose``.
        candidates: the retrieved places; none when the map is empty.
        place_id: the best candidate's; None without candidates.
        similarity: the best candidate's; NaN without candidates.
        probability: that the best candidate is right; NaN without candidates or without a calibration.
        seconds: wall time of each step.
    """

    stamp_ns: int
    accepted: bool
    reason: str
    pose: Pose | None
    covariance: Floats | None
    candidates: Candidates
    place_id: int | None
    similarity: float
    probability: float
    seconds: dict[str, float]


class Localizer:
    """Finds images in a map.

    Raises:
        DataError: the map was made with another student.
        ConfigError: the student carries no calibration and ``min_similarity`` is not given, or ``cluster_radius_m`` is
            not the one it was calibrated with.
    """

    def __init__(self, student: Student, place_map: PlaceMap, config: LocalizerConfig) -> None:
        place_map.require_student(student.metadata.fingerprint)
        self.student = student
        self.place_map = place_map
        self.config = config
        self.cluster_radius_m = _cluster_radius(student, config)

    def localise(self, image: NDArray[np.uint8], stamp_ns: int) -> Match:
        """Find one RGB image, (H, W, 3) uint8, in the map.

        Raises:
            DataError: the image is not RGB uint8.
        """
        watch = _Stopwatch()
        descriptor = self._describe(image)
        watch.lap("describe")
        neighbours = self._search(descriptor)
        watch.lap("search")
        candidates = self._weigh(neighbours)
        watch.lap("weigh")
        reason = self._refusal(descriptor, candidates)
        watch.lap("decide")
        pose, covariance = (None, None) if reason else self._pose(neighbours, candidates)
        watch.lap("pose")
        found = len(candidates) > 0
        return Match(
            stamp_ns=stamp_ns,
            accepted=not reason,
            reason=reason,
            pose=pose,
            covariance=covariance,
            candidates=candidates,
            place_id=int(candidates.place_ids[0]) if found else None,
            similarity=float(candidates.similarities[0]) if found else math.nan,
            probability=float(candidates.probabilities[0]) if found else math.nan,
            seconds=watch.seconds,
        )

    def _describe(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(self.student.describe([image])[0])

    def _search(self, descriptor: NDArray[np.float32]) -> Neighbours:
        """The nearest places: as many as configured, and more until another place than the best is among them.

        Densely mapped streets would otherwise fill the list with one place, and its margin would mean nothing.
        """
        wanted = self.config.candidates
        while True:
            neighbours = self.place_map.neighbours(descriptor, wanted)
            if len(neighbours.ids) < wanted or self._spans_places(neighbours):
                return neighbours
            wanted *= 2

    def _spans_places(self, neighbours: Neighbours) -> bool:
        positions = np.array([pose.position for pose in neighbours.poses])
        return bool((np.linalg.norm(positions - positions[0], axis=1) > self.cluster_radius_m).any())

    def _weigh(self, neighbours: Neighbours) -> Candidates:
        """Give each candidate its probability of being the right place."""
        positions = np.array([pose.position for pose in neighbours.poses], dtype=np.float64).reshape(-1, 3)
        calibration = self.student.metadata.calibration
        if calibration is None:
            probabilities = np.full(len(neighbours.ids), np.nan)
        else:
            above = margins(neighbours.similarities, positions, self.cluster_radius_m)
            probabilities = calibration.probabilities(neighbours.similarities, above)
        yaws = np.array([pose.yaw for pose in neighbours.poses], dtype=np.float64)
        return Candidates(neighbours.ids, neighbours.similarities, probabilities, positions, yaws)

    def _refusal(self, descriptor: NDArray[np.float32], candidates: Candidates) -> str:
        """Why the best candidate is not accepted, or an empty string."""
        if not descriptor.any() or not np.isfinite(descriptor).all():
            return "the student gave no usable descriptor for this image"
        if len(candidates) == 0:
            return "the map is empty"
        similarity, probability = float(candidates.similarities[0]), float(candidates.probabilities[0])
        if self.config.min_similarity is not None and similarity < self.config.min_similarity:
            return f"similarity {similarity:.3f} below {self.config.min_similarity:g}"
        if self.student.metadata.calibration is not None and probability < self.config.min_probability:
            return f"probability {probability:.3f} below {self.config.min_probability:g}"
        return ""

    def _pose(self, neighbours: Neighbours, candidates: Candidates) -> tuple[Pose, Floats]:
        """Mean of the candidates that agree with the best one, and how sure it is.

        The weight of a candidate is how far its similarity stands above that of the best candidate of another place.
        """
        near = np.linalg.norm(candidates.positions - candidates.positions[0], axis=1) <= self.cluster_radius_m
        turned = np.abs(wrap_angle(candidates.yaws - candidates.yaws[0]))
        agree = near & (turned <= self.config.yaw_window_rad)
        similarities = candidates.similarities.astype(np.float64)
        elsewhere = similarities[0] - margins(similarities, candidates.positions, self.cluster_radius_m)[0]
        weights = np.clip(similarities[agree] - elsewhere, 0.0, None)
        if not weights.any():
            weights[0] = 1.0
        weights /= weights.sum()
        positions, yaws = candidates.positions[agree], candidates.yaws[agree]
        position = weights @ positions
        yaw = math.atan2(float(weights @ np.sin(yaws)), float(weights @ np.cos(yaws)))
        # Roll and pitch are the best candidate's: only its heading is turned.
        turn = Rotation.from_euler("z", yaw - float(candidates.yaws[0]))
        quaternion = (turn * Rotation.from_quat(neighbours.poses[0].quaternion)).as_quat()
        covariance = np.diag([self._position_variance()] * 3 + [ANGLE_DEVIATION_RAD**2] * 3)
        offsets = positions - position
        covariance[:3, :3] += (weights[:, None] * offsets).T @ offsets
        covariance[5, 5] += weights @ wrap_angle(yaws - yaw) ** 2
        return Pose(position, np.asarray(quaternion, dtype=np.float64)), covariance

    def _position_variance(self) -> float:
        """Least variance of a coordinate, square metres: a robot may be anywhere between two keyframes."""
        # A uniform error over one spacing; a map of single keyframes says nothing nearer than the cluster radius.
        spacing = self.place_map.spacing_m or self.cluster_radius_m
        return max(spacing**2 / 12.0, MIN_DEVIATION_M**2)


class _Stopwatch:
    """Wall time of consecutive steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step] = now - self._last
        self._last = now


def _cluster_radius(student: Student, config: LocalizerConfig) -> float:
    """The radius that the student's calibration, if any, and the configuration agree on."""
    calibration = student.metadata.calibration
    if calibration is None:
        if config.min_similarity is None:
            raise ConfigError(
                f"min_similarity: not set, and student {student.metadata.name!r} carries no calibration that "
                f"min_probability could apply to; set min_similarity, or export the student with a calibration"
            )
        return config.cluster_radius_m or DEFAULT_CLUSTER_RADIUS_M
    if config.cluster_radius_m not in (None, calibration.cluster_radius_m):
        raise ConfigError(
            f"cluster_radius_m: {config.cluster_radius_m}, but student {student.metadata.name!r} was calibrated with "
            f"{calibration.cluster_radius_m}; leave it out"
        )
    return calibration.cluster_radius_m
