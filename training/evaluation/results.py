"""What an evaluation finds: of every query, of every pair of traverses, and on the average."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.evaluation.precision import PrecisionRecall, precision_recall

RECALLS = (1, 5, 10, 20, 25)
PRECISIONS = (1.0, 0.99)


@dataclass(frozen=True)
class Protocol:
    """What counts as right.

    Attributes:
        radius_m: a result this near is right, metres.
        heading_deg: and heads the same way within this angle, the rule of training (``training.data.pairing``); None,
            the default, to ignore the heading, as PointNetVLAD and DistilVPR do: their numbers are by distance alone.
        frames: right is what is this many keyframes from the query's own number or less, whatever the poses, which are
            not needed then (Nordland: 2 in StructVPR, in others 1 or 10); None for the radius.
    """

    radius_m: float = 25.0
    heading_deg: float | None = None
    frames: int | None = None

    def __str__(self) -> str:
        if self.frames is not None:
            return f"right within {self.frames} frames"
        heading = ", whichever way it heads" if self.heading_deg is None else f" and {self.heading_deg:g} degrees"
        return f"right within {self.radius_m:g} m{heading}"


@dataclass(frozen=True)
class Answers:
    """What came of each of Q queries.

    Attributes:
        best: (Q,) int64, database keyframe that is most alike.
        similarity: (Q,) float32, its cosine.
        right: (Q,) bool, whether it is right.
        answerable: (Q,) bool, whether the database holds a right answer.
        error_m: (Q,) float64, from the query to it, metres; NaN without poses.
    """

    best: NDArray[np.int64]
    similarity: NDArray[np.float32]
    right: NDArray[np.bool_]
    answerable: NDArray[np.bool_]
    error_m: NDArray[np.float64]


@dataclass(frozen=True)
class PairResult:
    """One traverse searched in another.

    Attributes:
        recalls: recall@N for N in ``RECALLS``.
        queries: queries that have a right answer in the database; the others do not count.
        answers: of all queries.
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
    answers: Answers


@dataclass(frozen=True)
class Evaluation:
    """All ordered pairs of traverses and their means.

    A pair without any answerable query, such as a drive and one the other way where headings count, has no recall and
    is in no mean of recalls. Its queries are among the excluded, and count for the precision: accepting one is wrong.
    """

    protocol: Protocol
    pairs: tuple[PairResult, ...]

    @property
    def answerable_pairs(self) -> int:
        """How many ordered pairs have a recall."""
        return sum(pair.queries > 0 for pair in self.pairs)

    @property
    def ar_at_1(self) -> float:
        """Average recall@1 over ordered pairs, in [0, 1]."""
        return _mean(pair.recalls[1] for pair in self.pairs)

    @property
    def ar_at_1_percent(self) -> float:
        """Average recall@1 % over ordered pairs, in [0, 1]."""
        return _mean(pair.recall_one_percent for pair in self.pairs)

    @property
    def precision_recall(self) -> PrecisionRecall:
        """Of the best matches of all pairs under one threshold, as a robot has it."""
        answers = [pair.answers for pair in self.pairs]
        return precision_recall(
            np.concatenate([a.similarity for a in answers]).astype(np.float64),
            np.concatenate([a.right for a in answers]),
            np.concatenate([a.answerable for a in answers]),
        )

    def error_m(self, precision: float) -> float:
        """Median distance of the matches that the threshold for this precision accepts; NaN where it accepts none."""
        threshold = self.precision_recall.threshold_at(precision)
        accepted = [a.error_m[a.similarity >= threshold] for a in (pair.answers for pair in self.pairs)]
        errors = np.concatenate(accepted)
        return float(np.median(errors)) if len(errors) else float("nan")

    @property
    def conditions(self) -> list[str]:
        """The conditions of the traverses, sorted."""
        return sorted({pair.query_condition for pair in self.pairs})

    @property
    def regions(self) -> list[str]:
        """The regions, sorted."""
        return sorted({pair.region for pair in self.pairs})

    def recalls(self) -> dict[int, float]:
        """Average recall@N over ordered pairs for N in ``RECALLS``."""
        return {n: _mean(pair.recalls[n] for pair in self.pairs) for n in RECALLS}

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
        """Plain values for JSON, which has no NaN: what has no recall is left out."""
        curve = self.precision_recall
        return {
            "ar1": self.ar_at_1,
            "ar1_percent": self.ar_at_1_percent,
            "recalls": self.recalls(),
            "by_region": _known({r: _mean(p.recalls[1] for p in self.pairs if p.region == r) for r in self.regions}),
            "pr_auc": curve.auc,
            "recall_at_precision": {str(p): curve.recall_at(p) for p in PRECISIONS},
            "error_m_at_precision": {str(p): _or_none(self.error_m(p)) for p in PRECISIONS},
            "by_query_condition": _known(self.by_query_condition()),
            "between_conditions": {query: _known(row) for query, row in self.between_conditions().items()},
            "protocol": asdict(self.protocol),
            "ordered_pairs": self.answerable_pairs,
            "queries": sum(pair.queries for pair in self.pairs),
            "excluded": sum(pair.excluded for pair in self.pairs),
        }


def _mean(values: Iterable[float]) -> float:
    numbers = [value for value in values if not np.isnan(value)]
    return float(np.mean(numbers)) if numbers else float("nan")


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value


def _known(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if not np.isnan(value)}
