"""Learning, on labelled sessions, how likely a match is right.

Each labelled traverse in turn is a map and each other one of its region drives through it, as the robot would. Every
query is asked twice: of the whole map, and of the map without the query's surroundings, so that the calibration has also
seen what the best match looks like where the robot has never been.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.evaluation.protocol import Protocol, normalised, right_answers
from training.sessions import Session
from vpr_kd_ros.calibration import Calibration
from vpr_kd_ros.errors import DataError


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
    parts: list[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]] = []
    for d, database in enumerate(sessions):
        for q, query in enumerate(sessions):
            if q == d or query.region != database.region:
                continue
            similarity = (unit[q] @ unit[d].T).astype(np.float64)
            right = right_answers(query, database, Protocol(radius_m))
            near = right_answers(query, database, Protocol(surroundings_m))
            apart = np.linalg.norm(database.positions[:, None, :2] - database.positions[None, :, :2], axis=2)
            other = apart > cluster_radius_m
            parts.append(_best_matches(similarity, right, other))
            parts.append(_best_matches(np.where(near, -1.0, similarity), right & ~near, other))
    if not parts:
        raise DataError("calibration needs two labelled sessions of one region that were not trained on")
    similarities, margins, rights = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Calibration.fit(similarities, margins, rights)


def _best_matches(
    similarity: NDArray[np.float64], right: NDArray[np.bool_], other: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Similarity, margin to the best other place, and rightness of each query's best match; (Q,) each."""
    rows = np.arange(len(similarity))
    best = similarity.argmax(axis=1)
    elsewhere = np.where(other[best], similarity, -1.0).max(axis=1)
    top = similarity[rows, best]
    return top, top - elsewhere, right[rows, best]
