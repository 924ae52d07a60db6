"""What a threshold on similarity buys: precision and recall of the best matches, and how far off they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vpr_kd_ros.geometry import Floats


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall of the best matches at every threshold.

    Queries with the same similarity are accepted together, so that no order among ties flatters the curve.

    Attributes:
        thresholds: (T,) the distinct similarities, falling; a best match at or above one is accepted.
        precision: (T,) share of the accepted that are right.
        recall: (T,) share of the answerable queries that are accepted and right.
    """

    thresholds: Floats
    precision: Floats
    recall: Floats

    @property
    def auc(self) -> float:
        """Area under the curve as average precision: sum of precision times the step in recall; NaN without queries."""
        if not len(self.recall):
            return float("nan")
        return float(self.precision @ np.diff(self.recall, prepend=0.0))

    def recall_at(self, precision: float) -> float:
        """The highest recall of a threshold with at least this precision; 0 where there is none."""
        return float(self.recall[self.precision >= precision].max(initial=0.0))

    def threshold_at(self, precision: float) -> float:
        """The lowest threshold with at least this precision, that of ``recall_at``; infinity where there is none."""
        good = self.precision >= precision
        return float(self.thresholds[good].min()) if good.any() else float("inf")


def precision_recall(similarity: Floats, right: NDArray[np.bool_], answerable: NDArray[np.bool_]) -> PrecisionRecall:
    """The curve of Q queries.

    Args:
        similarity: (Q,) of each query's best match.
        right: (Q,) bool, whether that match is right.
        answerable: (Q,) bool, whether the database holds a right answer. A query without one can only be accepted
            wrongly: it counts for the precision, not for the recall.
    """
    order = np.argsort(-similarity, kind="stable")
    falling = similarity[order].astype(np.float64)
    last_of_tie = np.flatnonzero(np.diff(falling, append=-np.inf) != 0)
    hits = np.cumsum(right[order])[last_of_tie]
    answers = max(int(answerable.sum()), 1)
    return PrecisionRecall(falling[last_of_tie], hits / (last_of_tie + 1), hits / answers)
