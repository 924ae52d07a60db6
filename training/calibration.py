"""Learning, on labelled sessions, how likely a match is right.

Each labelled traverse in turn is a map and each other one of its region drives through it, as the robot would. Every
query is asked twice: of the whole map, and of the map without the query's surroundings, so that the calibration has
also seen what the best match looks like where the robot has never been.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.evaluation.protocol import Protocol, normalised, right_answers
from training.sessions import Session
from vpr_kd_ros.calibration import Calibration, margins
from vpr_kd_ros.errors import DataError

CANDIDATES = 10
"""How many candidates the margin is taken among; the localizer searches as many by default."""


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
            for row in range(len(query)):
                everywhere = np.ones(len(database), dtype=np.bool_)
                for asked in (everywhere, ~near[row]):
                    places = np.flatnonzero(asked)
                    if len(places) > 1:
                        samples.append(_best_match(similarity[row], right[row], database, places, cluster_radius_m))
    if not samples:
        raise DataError("calibration needs two labelled sessions of one region that were not trained on")
    similarities, best_margins, rights = zip(*samples, strict=True)
    return Calibration.fit(similarities, best_margins, rights, cluster_radius_m)


def _best_match(
    similarity: NDArray[np.float32],
    right: NDArray[np.bool_],
    database: Session,
    places: NDArray[np.int64],
    cluster_radius_m: float,
) -> tuple[float, float, bool]:
    """Similarity, margin and rightness of the best match, as the robot sees it: among the few best candidates."""
    best = places[np.argsort(-similarity[places], kind="stable")[:CANDIDATES]]
    margin = margins(similarity[best], database.positions[best], cluster_radius_m)[0]
    return float(similarity[best[0]]), float(margin), bool(right[best[0]])
