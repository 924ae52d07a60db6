"""Exact search by inner product.

A flat index runs at the memory's speed: 10 ms, one thread, for about 250 000 places of 256 dimensions.
"""

from __future__ import annotations

from threading import Lock

import faiss
import numpy as np
from numpy.typing import ArrayLike, NDArray

from vpr_kd_ros.errors import DataError

Ids = NDArray[np.int64]
Descriptors = NDArray[np.float32]


class PlaceIndex:
    """Descriptors by id, searched by inner product. Safe to use from several threads."""

    def __init__(self, descriptor_dim: int) -> None:
        if descriptor_dim < 1:
            raise DataError(f"index: descriptors of length {descriptor_dim}")
        self.descriptor_dim = descriptor_dim
        self._index = faiss.IndexIDMap2(faiss.IndexFlatIP(descriptor_dim))
        self._ids: set[int] = set()
        self._threads = faiss.omp_get_max_threads()
        # FAISS crashes when one thread searches while another adds.
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, ids: ArrayLike, descriptors: ArrayLike) -> None:
        """Add (N, D) float32 descriptors under (N,) ids, not negative and not in use.

        Raises:
            DataError: the shapes do not fit, a descriptor is not finite, or an id is negative or in use; then nothing
                was added.
        """
        rows = self._rows(descriptors)
        keys = np.ascontiguousarray(ids, dtype=np.int64).reshape(-1)
        if len(keys) != len(rows):
            raise DataError(f"index: {len(keys)} ids for {len(rows)} descriptors")
        if not np.isfinite(rows).all():
            raise DataError("index: a descriptor is not finite")
        new = set(keys.tolist())
        with self._lock:
            if len(new) != len(keys) or not self._ids.isdisjoint(new) or (keys < 0).any():
                raise DataError("index: an id is negative or in use already")
            self._index.add_with_ids(rows, keys)
            self._ids |= new

    def remove(self, ids: ArrayLike) -> int:
        """Remove ids, those that are there, and return how many were."""
        with self._lock:
            there = self._ids.intersection(np.asarray(ids, dtype=np.int64).reshape(-1).tolist())
            if there:
                self._index.remove_ids(faiss.IDSelectorBatch(np.fromiter(there, dtype=np.int64)))
                self._ids -= there
            return len(there)

    def search(self, queries: ArrayLike, k: int) -> tuple[Ids, Descriptors]:
        """The ``k`` most similar places of each query, best first.

        Args:
            queries: (Q, D) float32.
            k: at least 1.

        Returns:
            Ids (Q, k) int64 and inner products (Q, k) float32; id -1 and -inf where there are fewer than ``k`` places,
            and in the whole row of a query that is not finite.

        Raises:
            DataError: the queries' shape does not fit, or ``k`` is not positive.
        """
        rows = self._rows(queries)
        if k < 1:
            raise DataError(f"index: k is {k}, wants at least 1")
        ids = np.full((len(rows), k), -1, dtype=np.int64)
        similarities = np.full((len(rows), k), -np.inf, dtype=np.float32)
        finite = np.isfinite(rows).all(axis=1)
        with self._lock:
            if finite.any() and self._ids:
                # A single query is as fast on one thread, and waking others costs more than the search.
                faiss.omp_set_num_threads(1 if len(rows) == 1 else self._threads)
                similarities[finite], ids[finite] = self._index.search(rows[finite], k)
        similarities[ids < 0] = -np.inf
        return ids, similarities

    def descriptors(self, ids: ArrayLike) -> Descriptors:
        """The descriptors, (N, D) float32, of (N,) ids.

        Raises:
            DataError: an id is not there.
        """
        keys = np.ascontiguousarray(ids, dtype=np.int64).reshape(-1)
        with self._lock:
            if missing := set(keys.tolist()) - self._ids:
                raise DataError(f"index: no place has the id {min(missing)}")
            if len(keys) == 0:
                return np.empty((0, self.descriptor_dim), dtype=np.float32)
            return np.asarray(self._index.reconstruct_batch(keys), dtype=np.float32)

    def _rows(self, descriptors: ArrayLike) -> Descriptors:
        rows = np.ascontiguousarray(descriptors, dtype=np.float32)
        if rows.ndim != 2 or rows.shape[1] != self.descriptor_dim:
            raise DataError(f"index: descriptors of shape {rows.shape}, wants (N, {self.descriptor_dim})")
        return rows
