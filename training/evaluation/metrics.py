"""Recall of ranked search results."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def one_percent(database_size: int) -> int:
    """How many results "top 1 %" means: ``max(round(M / 100), 1)``, as PointNetVLAD's evaluation counts."""
    return max(round(database_size / 100), 1)


def first_right_rank(ranked: NDArray[np.int64], right: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Rank, from 0, of the first right result of each query.

    Args:
        ranked: (Q, k) int64, database rows from best to worst, -1 where there are fewer.
        right: (Q, M) bool, whether the database row answers the query.

    Returns:
        (Q,) int64; k where none of the k results is right.
    """
    hit = np.take_along_axis(right, np.maximum(ranked, 0), axis=1) & (ranked >= 0)
    return np.asarray(np.where(hit.any(axis=1), hit.argmax(axis=1), ranked.shape[1]), dtype=np.int64)


def recall_at(ranks: NDArray[np.int64], n: int) -> float:
    """Share of queries whose first right result is among the best ``n``; NaN without queries."""
    return float((ranks < n).mean()) if len(ranks) else float("nan")
