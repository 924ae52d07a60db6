"""Learning, on labelled sessions, how likely a match is right and how far its pose is off.

Each labelled traverse in turn is a map and each other one of its region drives through it, as the robot would.

Right is what is near and heads the same way: on the way back a camera that looks ahead sees other walls, and a pose
that is turned by half a circle is wrong wherever it lies. So drives of both ways also teach what the robot's answers
are worth where only the other way was mapped.

- Single images: every query is asked twice, of the whole map, and of the map without the query's surroundings, so that
  the calibration has also seen what the best match looks like where the robot has never been.
- The filter over time: what an image says about a place is learnt from pairs of an image and a place. Then the robot's
  own localizer drives: through the whole map, and through either half of it, so that it leaves the map and comes back.
  What its answers were worth is learnt from these drives, with odometry (the drive's own poses) and without.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from training.data.pairing import Pairing
from training.evaluation.protocol import normalised, right_answers
from training.evaluation.results import Protocol
from training.sessions import Session
from vpr_kd_ros.calibration import Calibration, Evidence, Filtered, Spread, scores
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.geometry import Floats, Pose, wrap_angle
from vpr_kd_ros.localizer import Localizer, LocalizerConfig
from vpr_kd_ros.place_filter import BACKGROUND
from vpr_kd_ros.place_map import PlaceMap
from vpr_kd_ros.preprocess import Preprocess
from vpr_kd_ros.student import Student, StudentMetadata

NEAR_M = 5.0
"""An image taken within this distance of a place, and headed the same way, shows that place."""
HEADING_DEG = Pairing().heading_deg
"""What heads the same way, degrees."""
ELSEWHERE = 50
"""So many places of each map, where it has as many, are the other places of an image."""
ANYTHING = 1e-9
"""Accepted from this probability on."""


def calibrate(
    sessions: Sequence[Session],
    descriptors: Sequence[NDArray[np.float32]],
    radius_m: float = 10.0,
    cluster_radius_m: float = 25.0,
    surroundings_m: float = 50.0,
) -> Calibration:
    """Learn a calibration on every ordered pair of labelled traverses of a region.

    Args:
        sessions: labelled sessions that were not trained on.
        descriptors: of each session, (N_i, C) float32, any length.
        radius_m: a match, or a pose, this near is right if it heads the same way, metres.
        cluster_radius_m: candidates farther than this from the best are another place, metres; the localizer must use
            the same.
        surroundings_m: what is taken out of the map for the second question, metres around the query.

    Raises:
        DataError: no region has two labelled sessions, or no drive passes through another's places.
    """
    unit = [normalised(d) for d in descriptors]
    pairs = [
        _Pair(sessions[d], unit[d], sessions[q], unit[q])
        for d in range(len(sessions))
        for q in range(len(sessions))
        if q != d and sessions[q].region == sessions[d].region
    ]
    samples = [sample for pair in pairs for sample in _answers(pair, radius_m, cluster_radius_m, surroundings_m)]
    if not samples:
        raise DataError("calibration needs two labelled sessions of one region that were not trained on")
    similarities, margins, rights = zip(*samples, strict=True)
    single = Calibration.fit(similarities, margins, rights, cluster_radius_m)
    as_it_is = Filtered(intercept=0.0, slope=1.0, spread=Spread(0.0, 0.0), right=0, wrong=0)
    draft = replace(
        single,
        spread=Spread(0.0, 0.0),
        evidence=_evidence(pairs, cluster_radius_m),
        with_odometry=as_it_is,
        without_odometry=as_it_is,
    )
    whole = [np.ones(len(pair.database), dtype=np.bool_) for pair in pairs]
    drives = [(pair, kept) for pair, all_of_it in zip(pairs, whole, strict=True) for kept in _maps(all_of_it)]
    alone = [_drive(pair, kept, draft, "single", False) for pair, kept in zip(pairs, whole, strict=True)]
    # Without odometry a sure image answers for the filter; here the filter has to answer.
    silent = replace(draft, intercept=-1e3)
    filtered = {
        odometry: [
            _drive(pair, kept, silent, "belief", odometry)
            for pair, kept in tqdm(drives, f"calibrating {'with' if odometry else 'without'} odometry", leave=False)
        ]
        for odometry in (True, False)
    }
    return replace(
        draft,
        spread=_fit_spread(alone, radius_m),
        with_odometry=_fit_filtered(filtered[True], radius_m),
        without_odometry=_fit_filtered(filtered[False], radius_m),
    )


@dataclass(frozen=True)
class _Pair:
    """Two drives of one region: one is the map."""

    database: Session
    places: NDArray[np.float32]
    query: Session
    images: NDArray[np.float32]


# --- single images ----------------------------------------------------------------------------------------------------


def _answers(
    pair: _Pair, radius_m: float, cluster_radius_m: float, surroundings_m: float
) -> Iterator[tuple[float, float, bool]]:
    """The best match of each query, in the whole map and in the map without the query's surroundings."""
    similarity = pair.images @ pair.places.T
    right = right_answers(pair.query, pair.database, Protocol(radius_m, HEADING_DEG))
    near = right_answers(pair.query, pair.database, Protocol(surroundings_m))
    places = pair.database.positions[:, :2]
    for row in range(len(similarity)):
        for asked in (np.ones(len(places), dtype=np.bool_), ~near[row]):
            if asked.any():
                yield _best_match(similarity[row][asked], right[row][asked], places[asked], cluster_radius_m)


def _best_match(
    similarity: NDArray[np.float32], right: NDArray[np.bool_], places: Floats, cluster_radius_m: float
) -> tuple[float, float, bool]:
    """Similarity of the best match, its margin over the best of another place, and whether it is right."""
    best = int(similarity.argmax())
    elsewhere = similarity[np.linalg.norm(places - places[best], axis=1) > cluster_radius_m]
    margin = similarity[best] - (elsewhere.max() if len(elsewhere) else similarity.min())
    return float(similarity[best]), float(margin), bool(right[best])


# --- the filter over time ---------------------------------------------------------------------------------------------


def _evidence(pairs: Sequence[_Pair], cluster_radius_m: float) -> Evidence:
    """What an image says about a place, from images with their own places and with some others."""
    rng = np.random.default_rng(0)
    found: list[tuple[Floats, Floats, NDArray[np.bool_]]] = []
    for pair in pairs:
        similarity = (pair.images @ pair.places.T).astype(np.float64)
        distances = np.linalg.norm(pair.query.positions[:, None, :2] - pair.database.positions[None, :, :2], axis=2)
        shown = right_answers(pair.query, pair.database, Protocol(NEAR_M, HEADING_DEG))
        sample = np.linspace(0, len(pair.places) - 1, min(BACKGROUND, len(pair.places))).astype(np.int64)
        for row, away, there in zip(similarity, distances, shown, strict=True):
            others = np.flatnonzero(away > cluster_radius_m)
            others = rng.choice(others, min(ELSEWHERE, len(others)), replace=False)
            chosen = np.concatenate([np.flatnonzero(there), others])
            found.append((row[chosen], scores(row[chosen], row[sample]), there[chosen]))
    similarities, scored, there = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Evidence.fit(similarities, scored, there)


def _maps(whole: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Which keyframes (N,) of a traverse are the map: all, its first half, its second half."""
    first = np.arange(len(whole)) < len(whole) / 2
    return [whole, first, ~first]


@dataclass(frozen=True)
class _Driven:
    """Answers of a drive: probability (F,), true minus announced position along and across the announced heading
    (F, 2), metres, the announced covariance in that frame (F, 2, 2), and true minus announced heading (F,), radians.
    """

    probabilities: Floats
    residuals: Floats
    covariances: Floats
    turned: Floats

    def right(self, radius_m: float) -> NDArray[np.bool_]:
        """(F,) bool, near the truth and headed the same way."""
        near = np.linalg.norm(self.residuals, axis=1) <= radius_m
        return np.asarray(near & (np.abs(self.turned) <= np.deg2rad(HEADING_DEG)))


def _drive(pair: _Pair, kept: NDArray[np.bool_], calibration: Calibration, mode: str, with_odometry: bool) -> _Driven:
    """Drive through the kept places of the map with the robot's localizer; images without an answer are left out."""
    dim = pair.places.shape[1]
    metadata = StudentMetadata("calibration", "none", dim, Preprocess(8, 8), calibration=calibration)
    place_map = PlaceMap(dim, metadata.fingerprint, "map")
    for i in np.flatnonzero(kept).tolist():
        place_map.add(pair.places[i], _pose(pair.database, i), int(pair.database.stamps_ns[i]), "map")
    config = LocalizerConfig(min_probability=ANYTHING, mode=mode)
    localizer = Localizer(Student(metadata, _Described()), place_map, config)
    answers: list[tuple[float, Floats, Floats, float]] = []
    for i in range(len(pair.query)):
        truth = _pose(pair.query, i)
        odometry = truth if with_odometry else None
        match = localizer.find(pair.images[i], int(pair.query.stamps_ns[i]), odometry)
        if match.pose is None or match.covariance is None:
            continue
        cos, sin = np.cos(match.pose.yaw), np.sin(match.pose.yaw)
        axes = np.array([[cos, sin], [-sin, cos]])
        residual = axes @ (truth.position[:2] - match.pose.position[:2])
        turned = float(wrap_angle(np.array(truth.yaw - match.pose.yaw)))
        answers.append((match.probability, residual, axes @ match.covariance[:2, :2] @ axes.T, turned))
    if not answers:
        return _Driven(np.empty(0), np.empty((0, 2)), np.empty((0, 2, 2)), np.empty(0))
    return _Driven(*(np.array(column) for column in zip(*answers, strict=True)))


def _fit_filtered(drives: Sequence[_Driven], radius_m: float) -> Filtered:
    probabilities = np.concatenate([drive.probabilities for drive in drives])
    right = np.concatenate([drive.right(radius_m) for drive in drives])
    if len(right) == 0:
        raise DataError("calibration: no drive got an answer; its sessions have no usable descriptors")
    return Filtered.fit(probabilities, right, _fit_spread(drives, radius_m))


def _fit_spread(drives: Sequence[_Driven], radius_m: float) -> Spread:
    """Of the right answers, the more probable half, as those are the ones that will be accepted."""
    probabilities = np.concatenate([drive.probabilities for drive in drives])
    right = np.concatenate([drive.right(radius_m) for drive in drives])
    if not right.any():
        # Nothing is known but what right would mean.
        return Spread(radius_m, radius_m)
    chosen = right & (probabilities >= np.median(probabilities[right]))
    residuals = np.concatenate([drive.residuals for drive in drives])[chosen]
    return Spread.fit(residuals, np.concatenate([drive.covariances for drive in drives])[chosen])


def _pose(session: Session, index: int) -> Pose:
    return Pose(session.positions[index], session.quaternions[index])


class _Described:
    """The backend of a student whose images were described already."""

    device = torch.device("cpu")

    def describe(self, batch: torch.Tensor) -> torch.Tensor:
        """Never called."""
        raise NotImplementedError
