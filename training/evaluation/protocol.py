"""Recall between traverses, as PointNetVLAD introduced it and DistilVPR reports it.

Each traverse of a region in turn is the database and each other one the queries; or query sessions are searched in all
database sessions of their region together, as in MSLS, Pittsburgh and Tokyo 24/7. What is right, ``Protocol`` says. A
query without any right answer in the database is left out of the recall. AR@1 is the mean over ordered pairs of
traverses of recall@1, AR@1 % that of the recall among the best 1 % of the database. Descriptors are L2-normalised and
compared by cosine, through the index that the robot searches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from training.data.pairing import same_place
from training.evaluation.metrics import first_right_rank, one_percent, recall_at
from training.evaluation.results import RECALLS, Answers, Evaluation, PairResult, Protocol
from training.sessions import Session
from vpr_kd_ros.errors import ConfigError, DataError
from vpr_kd_ros.index import PlaceIndex


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
    require_poses(sessions, protocol)
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


def evaluate_queries(
    databases: Sequence[Session], queries: Sequence[Session], of_databases: Sequence[NDArray[np.float32]],
    of_queries: Sequence[NDArray[np.float32]], protocol: Protocol,
) -> Evaluation:  # fmt: skip
    """Search query sessions in the database sessions of their region taken together, as MSLS, Pittsburgh and Tokyo do.

    Args:
        databases, queries: labelled sessions.
        of_databases, of_queries: their descriptors, (N_i, C) float32, any length.
        protocol: what counts as right; not by frames, which sessions taken together have none of.

    Returns:
        One pair for each query session.

    Raises:
        DataError: a session has no poses, or a query session's region has no database.
        ConfigError: the protocol counts frames.
    """
    if protocol.frames is not None:
        raise ConfigError("frames: counts within one traverse; give a radius where databases are joined")
    require_poses([*databases, *queries], protocol)
    pairs = []
    for region in sorted({query.region for query in queries}):
        members = [i for i, database in enumerate(databases) if database.region == region]
        if not members:
            raise DataError(f"region {region!r} has queries and no database session")
        joined = Traverse.joined([databases[i] for i in members])
        rows = normalised(np.concatenate([of_databases[i] for i in members]))
        index = PlaceIndex(rows.shape[1])
        index.add(np.arange(len(rows), dtype=np.int64), rows)
        for query, described in zip(queries, of_queries, strict=True):
            if query.region == region:
                pairs.append(_search_pair(index, joined, query, normalised(described), protocol))
    return Evaluation(protocol, tuple(pairs))


@dataclass(frozen=True)
class Traverse:
    """What is asked of a database: sessions are such, and several of them joined.

    Attributes:
        positions: (N, 3) float64, metres.
        yaws: (N,) float64, radians.
    """

    name: str
    region: str
    condition: str
    positions: NDArray[np.float64]
    yaws: NDArray[np.float64]

    @classmethod
    def joined(cls, sessions: Sequence[Session]) -> Traverse:
        """Several sessions of one region one after the other."""
        return cls(
            " + ".join(session.name for session in sessions),
            sessions[0].region,
            " + ".join(sorted({session.condition for session in sessions})),
            np.concatenate([session.positions for session in sessions]),
            np.concatenate([session.yaws for session in sessions]),
        )

    def __len__(self) -> int:
        return len(self.positions)


def require_poses(sessions: Sequence[Session], protocol: Protocol) -> None:
    """Raises:
    DataError: the protocol needs poses, and a session has none.
    """
    for session in sessions:
        if protocol.frames is None and not session.labelled:
            raise DataError(f"{session.path}: has no poses, so that nothing can be measured on it")


def require_answers(sessions: Sequence[Session], protocol: Protocol) -> None:
    """Refuse sessions of which none has a right answer in another of its region: no recall could be measured on them.

    Raises:
        DataError: naming the sessions and what would have been right, or as ``require_poses``.
    """
    require_poses(sessions, protocol)
    for database, query in permutations(sessions, 2):
        if query.region == database.region and right_answers(query, database, protocol).any():
            return
    names = ", ".join(session.name for session in sessions)
    raise DataError(
        f"none of the sessions {names} has a right answer in another one of its region ({protocol}), so that nothing "
        "can be measured on them: give two drives of one street the same way, or widen radius or heading"
    )


def right_answers(query: Session | Traverse, database: Session | Traverse, protocol: Protocol) -> NDArray[np.bool_]:
    """Whether each database keyframe is a right answer to each query keyframe; (Q, M) bool."""
    if protocol.frames is not None:
        apart = np.arange(len(query))[:, None] - np.arange(len(database))[None, :]
        return np.asarray(np.abs(apart) <= protocol.frames)
    return same_place(
        query.positions, query.yaws, database.positions, database.yaws, protocol.radius_m, protocol.heading_deg
    )


def normalised(descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows scaled to length one; a zero row stays zero."""
    length = np.linalg.norm(descriptors, axis=1, keepdims=True)
    return np.asarray(descriptors / np.maximum(length, 1e-12), dtype=np.float32)


def _search_pair(
    index: PlaceIndex, database: Session | Traverse, query: Session, queries: NDArray[np.float32], protocol: Protocol
) -> PairResult:
    right = right_answers(query, database, protocol)
    answerable = np.asarray(right.any(axis=1))
    top = one_percent(len(database))
    ranked, similarity = index.search(queries, min(max(*RECALLS, top), len(database)))
    ranks = first_right_rank(ranked[answerable], right[answerable])
    best = ranked[:, 0]
    answers = Answers(
        best=best,
        similarity=similarity[:, 0],
        right=right[np.arange(len(best)), best],
        answerable=answerable,
        error_m=np.linalg.norm(query.positions[:, :2] - database.positions[best, :2], axis=1),
    )
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
        answers=answers,
    )
