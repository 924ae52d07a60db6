"""Recall between traverses, as PointNetVLAD introduced it and DistilVPR reports it.

Each traverse of a region in turn is the database and each other one the queries. A result is right within ``radius_m``
metres (25 m in the papers). A query without any right answer in the database is left out. AR@1 is the mean over
ordered pairs of traverses of recall@1, AR@1 % that of the recall among the best 1 % of the database. Descriptors are
L2-normalised and compared by cosine, through the index that the robot searches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.evaluation.metrics import first_right_rank, one_percent, recall_at
from training.sessions import Session
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.geometry import wrap_angle
from vpr_kd_ros.index import PlaceIndex

RECALLS = (1, 5, 10, 20, 25)


@dataclass(frozen=True)
class Protocol:
    """What counts as right.

    Attributes:
        radius_m: a result this near is right, metres.
        heading_deg: and heads the same way within this angle; None to ignore the heading, as PointNetVLAD does.
    """

    radius_m: float = 25.0
    heading_deg: float | None = None


@dataclass(frozen=True)
class PairResult:
    """One traverse searched in another.

    Attributes:
        recalls: recall@N for N in ``RECALLS``.
        queries: queries that have a right answer in the database; the others do not count.
    """

    region: str
    database: str
    query: str
    database_condition: str
    query_condition: str
    database_size: int
    queries: int
    excluded: int
    recalls: dict[int, float]
    recall_one_percent: float


@dataclass(frozen=True)
class Evaluation:
    """All ordered pairs of traverses and their means."""

    protocol: Protocol
    pairs: tuple[PairResult, ...]

    @property
    def ar_at_1(self) -> float:
        """Average recall@1 over ordered pairs, in [0, 1]."""
        return _mean(pair.recalls[1] for pair in self.pairs)

    @property
    def ar_at_1_percent(self) -> float:
        """Average recall@1 % over ordered pairs, in [0, 1]."""
        return _mean(pair.recall_one_percent for pair in self.pairs)

    @property
    def conditions(self) -> list[str]:
        """The conditions of the traverses, sorted."""
        return sorted({pair.query_condition for pair in self.pairs})

    def by_query_condition(self) -> dict[str, float]:
        """AR@1 of the queries of each condition against every database."""
        return {c: _mean(p.recalls[1] for p in self.pairs if p.query_condition == c) for c in self.conditions}

    def between_conditions(self) -> dict[str, dict[str, float]]:
        """AR@1 by condition of the query, then of the database; NaN where no pair has the two."""
        return {
            query: {
                database: _mean(
                    pair.recalls[1]
                    for pair in self.pairs
                    if (pair.query_condition, pair.database_condition) == (query, database)
                )
                for database in self.conditions
            }
            for query in self.conditions
        }

    def summary(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "ar1": self.ar_at_1,
            "ar1_percent": self.ar_at_1_percent,
            "recalls": {n: _mean(pair.recalls[n] for pair in self.pairs) for n in RECALLS},
            "by_query_condition": self.by_query_condition(),
            "between_conditions": self.between_conditions(),
            "protocol": asdict(self.protocol),
            "ordered_pairs": len(self.pairs),
            "queries": sum(pair.queries for pair in self.pairs),
            "excluded": sum(pair.excluded for pair in self.pairs),
        }


def evaluate(
    sessions: Sequence[Session], descriptors: Sequence[NDArray[np.float32]], protocol: Protocol,
    queries: Sequence[NDArray[np.float32]] | None = None,
) -> Evaluation:  # fmt: skip
    """Search every traverse in every other of its region.

    Args:
        sessions: labelled traverses; those of one region are compared.
        descriptors: of each session, (N_i, C) float32, any length; they are normalised here.
        protocol: what counts as right.
        queries: the same where the images are other ones as queries, degraded ones; None where not.

    Raises:
        DataError: a session has no poses, or no region has two sessions.
    """
    for session in sessions:
        if not session.labelled:
            raise DataError(f"{session.path}: has no poses, so that nothing can be measured on it")
    unit = [normalised(d) for d in descriptors]
    asked = unit if queries is None else [normalised(q) for q in queries]
    pairs = []
    for d, database in enumerate(sessions):
        index = PlaceIndex(unit[d].shape[1])
        index.add(np.arange(len(database), dtype=np.int64), unit[d])
        for q, query in enumerate(sessions):
            if q != d and query.region == database.region:
                pairs.append(_search_pair(index, database, query, asked[q], protocol))
    if not pairs:
        raise DataError("no region has two sessions, so that there is nothing to compare")
    return Evaluation(protocol, tuple(pairs))


def right_answers(query: Session, database: Session, protocol: Protocol) -> NDArray[np.bool_]:
    """Whether each database keyframe is a right answer to each query keyframe; (Q, M) bool."""
    gap = query.positions[:, None, :2] - database.positions[None, :, :2]
    right = np.linalg.norm(gap, axis=2) <= protocol.radius_m
    if protocol.heading_deg is not None:
        turn = np.abs(wrap_angle(query.yaws[:, None] - database.yaws[None, :]))
        right &= turn <= np.deg2rad(protocol.heading_deg)
    return np.asarray(right)


def normalised(descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows scaled to length one; a zero row stays zero."""
    length = np.linalg.norm(descriptors, axis=1, keepdims=True)
    return np.asarray(descriptors / np.maximum(length, 1e-12), dtype=np.float32)


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return float(np.mean(numbers)) if numbers else float("nan")


def _search_pair(
    index: PlaceIndex, database: Session, query: Session, queries: NDArray[np.float32], protocol: Protocol
) -> PairResult:
    right = right_answers(query, database, protocol)
    answerable = right.any(axis=1)
    top = one_percent(len(database))
    ranked, _ = index.search(queries[answerable], min(max(*RECALLS, top), len(database)))
    ranks = first_right_rank(ranked, right[answerable])
    return PairResult(
        region=query.region,
        database=database.name,
        query=query.name,
        database_condition=database.condition,
        query_condition=query.condition,
        database_size=len(database),
        queries=int(answerable.sum()),
        excluded=int((~answerable).sum()),
        recalls={n: recall_at(ranks, n) for n in RECALLS},
        recall_one_percent=recall_at(ranks, top),
    )
