"""Which keyframes make a batch.

A batch has a labelled part, for the task loss, and, when a teacher supplies relations, an unlabelled part. The labelled
part is made of windows of neighbouring places, each place seen in several drives: neighbours are the hard negatives and
near misses that make a batch worth its cost. With one place a window and two views it is the batch of positive pairs of
the papers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from training.data.dataset import Keyframes
from training.data.pairing import Pairing, positives_pairwise
from vpr_kd_ros.errors import ConfigError, DataError
from vpr_kd_ros.geometry import Ints


@dataclass(frozen=True)
class BatchConfig:
    """The make-up of a batch.

    Attributes:
        windows: windows of neighbouring places in the labelled part.
        places: neighbouring places a window.
        views: drives in which each place is seen, at most.
        anchors: keyframes of any drive drawn for the relational part; 0 for none.
        neighbours: the teacher's nearest keyframes that join each anchor.
        among: they are drawn from this many nearest.
    """

    windows: int = 4
    places: int = 4
    views: int = 2
    anchors: int = 0
    neighbours: int = 3
    among: int = 12

    def __post_init__(self) -> None:
        if min(self.windows, self.places, self.views) < 1:
            raise ConfigError("batch: windows, places and views must be at least 1")
        if self.windows * self.places * self.views < 2:
            raise ConfigError("batch: one keyframe has no pair; raise windows, places or views")
        if self.anchors < 0 or self.neighbours < 0 or self.among < self.neighbours:
            raise ConfigError("batch: wants anchors >= 0 and 0 <= neighbours <= among")


class PlaceSampler:
    """Draws the labelled part of a batch: windows x places x views.

    Raises:
        DataError: no labelled keyframe has a positive in another drive, so that nothing can be learnt.
    """

    def __init__(self, keyframes: Keyframes, pairing: Pairing, batch: BatchConfig, rng: np.random.Generator) -> None:
        self._keyframes = keyframes
        self._batch = batch
        self._rng = rng
        self._views = _views_in_other_sessions(keyframes, pairing)
        self._anchors: Ints = np.array([i for i, views in enumerate(self._views) if len(views)], dtype=np.int64)
        if len(self._anchors) == 0:
            raise DataError(
                f"no labelled keyframe has another drive's keyframe within {pairing.positive_m} m and "
                f"{pairing.heading_deg} degrees: record the same streets twice with poses, or widen the pairing"
            )

    def __iter__(self) -> Iterator[Ints]:
        """Batches without end: (B,) int64 keyframe numbers, each at most once."""
        while True:
            chosen: dict[int, None] = {}
            for _ in range(self._batch.windows):
                for place in self._window(int(self._rng.choice(self._anchors))):
                    chosen[place] = None
                    views = self._views[place]
                    count = min(self._batch.views - 1, len(views))
                    for view in self._rng.choice(views, count, replace=False) if count else ():
                        chosen[int(view)] = None
            yield np.fromiter(chosen, dtype=np.int64)

    def _window(self, anchor: int) -> range:
        """Neighbouring keyframes of the anchor's own session, the anchor among them."""
        session = self._keyframes.session_of[anchor]
        first = int(np.searchsorted(self._keyframes.session_of, session, side="left"))
        last = int(np.searchsorted(self._keyframes.session_of, session, side="right"))
        places = min(self._batch.places, last - first)
        start = anchor - int(self._rng.integers(places))
        start = min(max(start, first), last - places)
        return range(start, start + places)


class RelationSampler:
    """Draws the relational part of a batch: anchors of any drive and the teacher's nearest keyframes to each.

    The teacher's neighbours stand in for poses: of a drive that was simply recorded nobody knows which keyframes belong
    together, but the LiDAR teacher does.

    Args:
        descriptors: (N, C) float32, the teacher's, of every keyframe.
        sessions: (N,) int64, the session of each keyframe.
        pool: (P,) int64, the keyframes from which anchors are drawn.
        batch: the make-up of the batch.
        rng: source of chance.
    """

    def __init__(
        self, descriptors: np.ndarray, sessions: Ints, pool: Ints, batch: BatchConfig, rng: np.random.Generator
    ) -> None:
        if len(pool) == 0:
            raise DataError("relations are wanted but there is no keyframe to draw them from")
        self._rng = rng
        self._batch = batch
        self._pool = pool
        self._nearest = nearest_in_other_sessions(descriptors, sessions, pool, batch.among)

    def __iter__(self) -> Iterator[Ints]:
        """Batches without end: (B,) int64 keyframe numbers, each at most once."""
        while True:
            chosen: dict[int, None] = {}
            for row in self._rng.choice(len(self._pool), min(self._batch.anchors, len(self._pool)), replace=False):
                chosen[int(self._pool[row])] = None
                near = self._nearest[row]
                near = near[near >= 0]
                count = min(self._batch.neighbours, len(near))
                for neighbour in self._rng.choice(near, count, replace=False) if count else ():
                    chosen[int(neighbour)] = None
            yield np.fromiter(chosen, dtype=np.int64)


def nearest_in_other_sessions(descriptors: np.ndarray, sessions: Ints, rows: Ints, k: int) -> Ints:
    """The k nearest descriptors (Euclidean) of other sessions for each of ``rows``; (P, k) int64, -1 where fewer.

    Neighbours of the own session are the frames before and after, which teach nothing about light and weather.
    """
    squares = (descriptors**2).sum(axis=1)
    found = np.full((len(rows), k), -1, dtype=np.int64)
    for start in range(0, len(rows), 512):
        block = rows[start : start + 512]
        distance = squares[None, :] - 2.0 * descriptors[block] @ descriptors.T
        distance[sessions[block][:, None] == sessions[None, :]] = np.inf
        count = min(k, distance.shape[1] - 1)
        if count < 1:
            continue
        near = np.argpartition(distance, count - 1, axis=1)[:, :count]
        near = np.where(np.isfinite(np.take_along_axis(distance, near, axis=1)), near, -1)
        found[start : start + len(block), :count] = near
    return found


def _views_in_other_sessions(keyframes: Keyframes, pairing: Pairing) -> list[Ints]:
    """For each keyframe its positive of each other labelled session: the nearest one."""
    views: list[Ints] = [np.empty(0, dtype=np.int64) for _ in range(len(keyframes))]
    labelled = np.flatnonzero(keyframes.labelled)
    for region in np.unique(keyframes.region_of[labelled]):
        members = labelled[keyframes.region_of[labelled] == region]
        tree = cKDTree(keyframes.positions[members, :2])
        for anchor, near in zip(
            members, tree.query_ball_point(keyframes.positions[members, :2], pairing.positive_m), strict=True
        ):
            others = members[np.asarray(near, dtype=np.int64)]
            others = others[keyframes.session_of[others] != keyframes.session_of[anchor]]
            places, yaws = keyframes.positions, keyframes.yaws
            others = others[positives_pairwise(places[anchor], yaws[anchor], places[others], yaws[others], pairing)]
            distance = np.linalg.norm(keyframes.positions[others, :2] - keyframes.positions[anchor, :2], axis=1)
            others = others[np.argsort(distance, kind="stable")]
            _, first = np.unique(keyframes.session_of[others], return_index=True)
            views[anchor] = others[np.sort(first)]
    return views
