"""Localisation: from one image to a match in the map, or to the reason why there is none."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vpr_kd_ros.belief import Belief, BeliefConfig, Posterior
from vpr_kd_ros.calibration import Spread, margins
from vpr_kd_ros.choices import MODES
from vpr_kd_ros.errors import ConfigError, DataError, did_you_mean
from vpr_kd_ros.geometry import Floats, Pose, wrap_angle
from vpr_kd_ros.match import Candidates, Match
from vpr_kd_ros.motion import Motion
from vpr_kd_ros.place_filter import PlaceFilter, yaws_of
from vpr_kd_ros.place_map import Neighbours, PlaceMap
from vpr_kd_ros.pose_estimate import estimate_pose
from vpr_kd_ros.student import Student
from vpr_kd_ros.verification import VerificationConfig, Verifier

DEFAULT_CLUSTER_RADIUS_M = 10.0


@dataclass(frozen=True)
class LocalizerConfig:
    """How candidates are found and when a match is accepted.

    Attributes:
        candidates: places retrieved for each image, at least; more where all of them are one place.
        min_probability: a match is accepted from this probability of being right on, in (0, 1]. Applies to students
            that carry a calibration.
        min_similarity: and from this similarity of the best candidate on, in [-1, 1]. Needed where the student carries
            no calibration.
        cluster_radius_m: candidates closer than this to one another are the same place. None takes the calibration's,
            which is the only one its probabilities hold for, or 10 m where there is no calibration.
        yaw_window_rad: candidates whose heading differs more than this from the best one's do not enter the pose.
        mode: ``single`` judges each image alone; ``belief`` filters them over time (see ``vpr_kd_ros.belief``) and
            needs a calibration.
        belief: of mode ``belief``.
        verification: of accepted matches by the map's pictures; off by default.
    """

    candidates: int = 10
    min_probability: float = 0.9
    min_similarity: float | None = None
    cluster_radius_m: float | None = None
    yaw_window_rad: float = math.radians(45.0)
    mode: str = "single"
    belief: BeliefConfig = BeliefConfig()
    verification: VerificationConfig = VerificationConfig()

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
        if self.mode not in MODES:
            raise ConfigError(f"mode: {self.mode!r} is none of {', '.join(MODES)}{did_you_mean(self.mode, MODES)}")


class Localizer:
    """Finds images in a map.

    Args:
        student: describes the images.
        maps: the map; or, of a robot with several cameras, that of each by its name, all in one frame. Single images
            are found in their camera's; the belief is one, over the places of the first (see
            ``vpr_kd_ros.place_filter``).
        config: how to find and when to accept.

    Raises:
        DataError: a map was made with another student, or is in another frame than the first.
        ConfigError: the student carries no calibration and ``min_similarity`` is not given or the mode needs one, or
            ``cluster_radius_m`` is not the one it was calibrated with.
    """

    def __init__(self, student: Student, maps: PlaceMap | Mapping[str, PlaceMap], config: LocalizerConfig) -> None:
        self.maps = {"": maps} if isinstance(maps, PlaceMap) else dict(maps)
        self.place_map = next(iter(self.maps.values()))
        for camera, place_map in self.maps.items():
            name = f"place map of camera {camera!r}" if camera else "place map"
            place_map.require_student(student.metadata.fingerprint, name)
            if place_map.frame_id != self.place_map.frame_id:
                raise DataError(
                    f"{name}: it is in frame {place_map.frame_id!r}, the first camera's in "
                    f"{self.place_map.frame_id!r}; make the maps of all cameras with one source of poses"
                )
        self.student = student
        self.config = config
        self.cluster_radius_m = _cluster_radius(student, config)
        self.filter = (
            PlaceFilter(student, self.maps, self.cluster_radius_m, config.belief) if config.mode == "belief" else None
        )
        self._verifier = Verifier(config.verification)

    @property
    def belief(self) -> Belief | None:
        """The filter of mode ``belief``."""
        return None if self.filter is None else self.filter.belief

    def localise(
        self, image: NDArray[np.uint8], stamp_ns: int, odometry: Pose | None = None, camera: str = ""
    ) -> Match:
        """Find one RGB image, (H, W, 3) uint8, in the map.

        Args:
            image: RGB, (H, W, 3) uint8.
            stamp_ns: of the image, nanoseconds. In mode ``belief``, one that jumps back from the same camera's newest
                (``vpr_kd_ros.stamps``) resets the belief.
            odometry: for mode ``belief``: pose of the robot's base in any frame that stays fixed, at the stamp.
            camera: its name, where there are several.

        Raises:
            DataError: the image is not RGB uint8.
        """
        watch = _Stopwatch()
        descriptor = self._describe(image)
        watch.lap("describe")
        match = self.find(descriptor, stamp_ns, odometry, camera)
        watch.lap("find")
        if self.config.verification.places:
            match = self._verified(match, image)
            watch.lap("verify")
        # What finding took is told step by step.
        del watch.seconds["find"]
        return replace(match, seconds={**watch.seconds, **match.seconds})

    def find(
        self, descriptor: NDArray[np.float32], stamp_ns: int, odometry: Pose | None = None, camera: str = ""
    ) -> Match:
        """``localise`` for an image that was described already: (D,) float32, of length 1 or without a value."""
        watch = _Stopwatch()
        neighbours = self._search(descriptor, self.maps[camera])
        watch.lap("search")
        candidates = self._weigh(neighbours)
        watch.lap("weigh")
        answer = self._answer(descriptor, neighbours, candidates, stamp_ns, odometry, camera)
        watch.lap("decide")
        pose, covariance = (None, None) if answer.reason else self._pose(answer)
        watch.lap("pose")
        return Match(
            stamp_ns=stamp_ns,
            accepted=not answer.reason,
            reason=answer.reason,
            pose=pose,
            covariance=covariance,
            candidates=candidates,
            place_id=answer.place_id,
            similarity=float(candidates.similarities[0]) if len(candidates) else math.nan,
            probability=answer.probability,
            seconds=watch.seconds,
            camera=camera,
        )

    def reset(self) -> None:
        """Forget what earlier images told."""
        if self.filter is not None:
            self.filter.belief.reset()

    def _verified(self, match: Match, image: NDArray[np.uint8]) -> Match:
        """The match, refused unless the picture of one of its best places agrees with the image."""
        config, pose = self.config.verification, match.pose
        if pose is None:
            return match
        near = np.linalg.norm(match.candidates.positions - pose.position, axis=1) <= self.cluster_radius_m
        ids = dict.fromkeys([match.place_id, *match.candidates.place_ids[near].tolist()])
        pictures = [self.maps[match.camera].thumbnail(i) for i in list(ids)[: config.places] if i is not None]
        agree = max((self._verifier.inliers(image, picture) for picture in pictures if picture is not None), default=0)
        if agree >= config.min_inliers:
            return match
        reason = f"{agree} local features agree with the map's pictures, below {config.min_inliers}"
        return replace(match, accepted=False, reason=reason, pose=None, covariance=None)

    def _describe(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(self.student.describe([image])[0])

    def _search(self, descriptor: NDArray[np.float32], place_map: PlaceMap) -> Neighbours:
        """The nearest places: as many as configured, and more until another place than the best is among them.

        Densely mapped streets would otherwise fill the list with one place, and its margin would mean nothing.
        """
        wanted = self.config.candidates
        while True:
            neighbours = place_map.neighbours(descriptor, wanted)
            if len(neighbours.ids) < wanted or self._spans_places(neighbours):
                return neighbours
            wanted *= 2

    def _spans_places(self, neighbours: Neighbours) -> bool:
        first = neighbours.poses[0].position.tolist()
        # Mostly the second or third is another place already; NumPy would take longer to begin.
        return any(math.dist(first, pose.position) > self.cluster_radius_m for pose in neighbours.poses)

    def _weigh(self, neighbours: Neighbours) -> Candidates:
        """Give each candidate its probability of being the right place."""
        positions = np.array([pose.position for pose in neighbours.poses], dtype=np.float64).reshape(-1, 3)
        calibration = self.student.metadata.calibration
        if calibration is None:
            probabilities = np.full(len(neighbours.ids), np.nan)
        else:
            above = margins(neighbours.similarities, positions, self.cluster_radius_m)
            probabilities = calibration.probabilities(neighbours.similarities, above)
        return Candidates(neighbours.ids, neighbours.similarities, probabilities, positions, yaws_of(neighbours.poses))

    def _answer(
        self,
        descriptor: NDArray[np.float32],
        neighbours: Neighbours,
        candidates: Candidates,
        stamp_ns: int,
        odometry: Pose | None,
        camera: str,
    ) -> _Answer:
        """The best place, and why it is not accepted, if it is not."""
        usable = bool(descriptor.any()) and bool(np.isfinite(descriptor).all())
        if usable and self.filter is not None:
            posterior = self.filter.observe(stamp_ns, descriptor, candidates.place_ids, odometry, camera)
            answer = self._filtered(posterior, camera)
            if posterior.moved is None:
                # A motion prior adds little: an image that is surer by itself answers.
                alone = self._best(neighbours, candidates)
                sure = answer.probability >= alone.probability
                answer = self._caught_up(answer, neighbours, candidates) if sure else alone
        else:
            answer = self._best(neighbours, candidates)
        if not usable:
            return replace(answer, reason="the student gave no usable descriptor for this image")
        if len(candidates) == 0:
            return replace(answer, reason="the map is empty")
        return replace(answer, reason=self._refusal(answer, float(candidates.similarities[0])))

    def _refusal(self, answer: _Answer, similarity: float) -> str:
        """Why the best place is not accepted, or an empty string."""
        if not answer.poses:
            return "nothing that was seen so far tells where"
        if self.config.min_similarity is not None and similarity < self.config.min_similarity:
            return f"similarity {similarity:.3f} below {self.config.min_similarity:g}"
        if self.student.metadata.calibration is not None and answer.probability < self.config.min_probability:
            return f"probability {answer.probability:.3f} below {self.config.min_probability:g}"
        return ""

    def _best(self, neighbours: Neighbours, candidates: Candidates) -> _Answer:
        """The best candidate, and those that agree with it."""
        if len(candidates) == 0:
            return _NOTHING
        near = self._near(candidates.positions)
        agree = near & self._alike(candidates.yaws)
        calibration = self.student.metadata.calibration
        return _Answer(
            place_id=int(candidates.place_ids[0]),
            probability=float(candidates.probabilities[0]),
            poses=[neighbours.poses[i] for i in np.flatnonzero(agree)],
            weights=_by_likeness(candidates, near, agree),
            moved=None,
            spread=None if calibration is None else calibration.spread,
        )

    def _caught_up(self, answer: _Answer, neighbours: Neighbours, candidates: Candidates) -> _Answer:
        """The filter's answer where the image itself sees it.

        Without odometry the filter's places are of its last step, and the robot has gone on since.
        """
        if not answer.poses or len(candidates) == 0:
            return answer
        there = answer.poses[0]
        near = self._near(np.vstack([there.position, candidates.positions]))[1:]
        agree = near & self._alike(np.append(there.yaw, candidates.yaws))[1:]
        if not agree.any():
            return answer
        return replace(
            answer,
            place_id=int(candidates.place_ids[agree][0]),
            poses=[neighbours.poses[i] for i in np.flatnonzero(agree)],
            weights=_by_likeness(candidates, near, agree),
        )

    def _filtered(self, posterior: Posterior, camera: str) -> _Answer:
        """The most probable place, with the probability of all hypotheses that are the same place."""
        if self.filter is None or len(posterior.place_ids) == 0:
            return _NOTHING
        worth = self.filter.worth(posterior)
        positions, yaws = self.filter.places(posterior.place_ids)
        near = self._near(positions)
        agree = near & self._alike(yaws)
        weights = posterior.weights[agree]
        place_id = int(self.filter.seen_by(camera, posterior.place_ids[:1])[0])
        return _Answer(
            place_id=place_id if place_id >= 0 else None,
            probability=worth.probability(float(posterior.weights[near].sum())),
            poses=[self.place_map.pose(place_id) for place_id in posterior.place_ids[agree].tolist()],
            weights=weights / weights.sum(),
            moved=posterior.moved,
            spread=worth.spread,
        )

    def _near(self, positions: Floats) -> NDArray[np.bool_]:
        """Which positions (k, 3) are the same place as the first."""
        return np.asarray(np.linalg.norm(positions - positions[0], axis=1) <= self.cluster_radius_m)

    def _alike(self, yaws: Floats) -> NDArray[np.bool_]:
        """Which headings (k,) are that of the first."""
        return np.asarray(np.abs(wrap_angle(yaws - yaws[0])) <= self.config.yaw_window_rad)

    def _pose(self, answer: _Answer) -> tuple[Pose, Floats]:
        """Of the places that agree, moved on to the image."""
        # A map of single keyframes says nothing nearer than the cluster radius.
        spacing = self.place_map.spacing_m or self.cluster_radius_m
        return estimate_pose(answer.poses, answer.weights, answer.moved, spacing, answer.spread)


@dataclass(frozen=True)
class _Answer:
    """The best place, its probability, the places that agree with it (best first), their weights (sum 1), the motion
    since then, and the spread of such answers; ``reason`` why it is not accepted.
    """

    place_id: int | None
    probability: float
    poses: list[Pose]
    weights: Floats
    moved: Motion | None
    spread: Spread | None
    reason: str = ""


_NOTHING = _Answer(None, math.nan, [], np.empty(0), None, None)


def _by_likeness(candidates: Candidates, near: NDArray[np.bool_], agree: NDArray[np.bool_]) -> Floats:
    """Weights, sum 1, of the candidates that agree: how far each stands above the best that is not near."""
    similarities = candidates.similarities.astype(np.float64)
    elsewhere = similarities.min() if near.all() else similarities[~near].max()
    weights = np.maximum(similarities[agree] - elsewhere, 0.0)
    if not weights.any():
        weights[0] = 1.0
    return np.asarray(weights / weights.sum())


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
