"""Learning, on labelled sessions, how likely a match is right.

Each labelled traverse in turn is a map and each other one of its region drives through it, as the robot would. Every
query is asked twice: of the whole map, and of the map without the query's surroundings, so that the calibration has
also seen what the best match looks like where the robot has never been.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from training.evaluation.protocol import Protocol, normalised, right_answers
from training.sessions import Session
from vpr_kd_ros.calibration import Calibration
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.geometry import Floats


def calibrate(
    sessions: Sequence[Session],
    descriptors: Sequence[NDArray[np.float32]],
    radius_m: float = 10.0,
    cluster_radius_m: float = 25.0,
    surroundings_m: float = 50.0,
) -> Calibration:
    """Fit P(right | similarity, margin) on every ordered pair of labelled traverses of a region.

    Args:
        sessions: labelled sessions that were not trained on.
        descriptors: of each session, (N_i, C) float32, any length.
        radius_m: a match this near is right, metres.
        cluster_radius_m: candidates farther than this from the best are another place, metres; the localizer must use
            the same.
        surroundings_m: what is taken out of the map for the second question, metres around the query.

    Raises:
        DataError: no region has two labelled sessions.
    """
    unit = [normalised(d) for d in descriptors]
    samples: list[tuple[float, float, bool]] = []
    for d, database in enumerate(sessions):
        for q, query in enumerate(sessions):
            if q == d or query.region != database.region:
                continue
            similarity = unit[q] @ unit[d].T
            right = right_answers(query, database, Protocol(radius_m))
            near = right_answers(query, database, Protocol(surroundings_m))
            samples.extend(_answers(similarity, right, near, database.positions[:, :2], cluster_radius_m))
    if not samples:
        raise DataError("calibration needs two labelled sessions of one region that were not trained on")
    similarities, margins, rights = zip(*samples, strict=True)
    return Calibration.fit(similarities, margins, rights, cluster_radius_m)


def _answers(
    similarity: NDArray[np.float32],
    right: NDArray[np.bool_],
    near: NDArray[np.bool_],
    places: Floats,
    cluster_radius_m: float,
) -> Iterator[tuple[float, float, bool]]:
    """The best match of each query, in the whole map and in the map without the query's surroundings."""
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
