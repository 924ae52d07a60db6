"""Search by inner product: exact while that is fast enough, approximate beyond.

The exact index reads all descriptors for each query, at the memory's speed; a map's are in float16: 128 MB for 250 000
places of 256 dimensions. The approximate one (an inverted file: Sivic and Zisserman, Video Google, 2003; IVF in FAISS)
sorts them into 8 sqrt(N) cells and reads only the ``PROBES`` cells nearest to the query: the similarities that it gives
are the same, but it may miss a place. Sorting takes time whenever a map is loaded: a million places 50 seconds on two
cores of a Xeon. ``benchmarks/search.py`` measures both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vpr_kd_ros.blas import known_processor
from vpr_kd_ros.choices import SEARCHES
from vpr_kd_ros.errors import ConfigError, DataError, did_you_mean

with known_processor():
    import faiss

Ids = NDArray[np.int64]
Descriptors = NDArray[np.float32]

EXACT_UP_TO = 250_000
"""Places that ``auto`` searches exactly."""
PROBES = 128
_MIN_APPROXIMATE = 1000
_TRAINING_PER_CELL = 16
_ITERATIONS = 5
_BLOCK = 50_000


class PlaceIndex:
    """Descriptors by id, searched by inner product. Safe to use from several threads.

    Args:
        descriptor_dim: length D of a descriptor.
        half: keep descriptors in float16, half the memory and nearly twice as fast for a single query; the inner
            product of unit vectors moves by less than 2^-11 + 1e-5.
    """

    def __init__(self, descriptor_dim: int, half: bool = False) -> None:
        if descriptor_dim < 1:
            raise DataError(f"index: descriptors of length {descriptor_dim}")
        self.descriptor_dim = descriptor_dim
        self.approximate = False
        flat = _half_flat(descriptor_dim) if half else faiss.IndexFlatIP(descriptor_dim)
        self._index: Any = faiss.IndexIDMap2(flat)
        self._ids: set[int] = set()
        # FAISS crashes when one thread searches while another adds.
        self._lock = Lock()

    @classmethod
    def build(cls, ids: Ids, descriptors: NDArray[np.floating[Any]], search: str = "auto") -> PlaceIndex:
        """An index of many descriptors at once, kept in float16.

        Args:
            ids: (N,) int64, not negative, none twice.
            descriptors: (N, D) float16 or float32, finite.
            search: ``exact``, ``approximate``, or ``auto``: approximate above ``EXACT_UP_TO`` places. Fewer than 1000
                places are always searched exactly. The choice stays when places are added later.

        Raises:
            ConfigError: ``search`` is none of these.
            DataError: as ``add``.
        """
        if search not in SEARCHES:
            raise ConfigError(f"search: {search!r} is none of {', '.join(SEARCHES)}{did_you_mean(search, SEARCHES)}")
        index = cls(descriptors.shape[1], half=True)
        wanted = search == "approximate" or (search == "auto" and len(ids) > EXACT_UP_TO)
        if wanted and len(ids) >= _MIN_APPROXIMATE:
            index._index = _inverted_file(descriptors)
            index.approximate = True
        for start in range(0, len(ids), _BLOCK):
            index.add(ids[start : start + _BLOCK], descriptors[start : start + _BLOCK])
        if index.approximate:
            _halve_centres(index._index)
        return index

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, ids: ArrayLike, descriptors: ArrayLike) -> None:
        """Add (N, D) descriptors under (N,) ids, not negative and not in use.

        Raises:
            DataError: the shapes do not fit, a descriptor is not finite, or an id is negative or in use;
                then nothing was added.
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
                keys = np.fromiter(there, dtype=np.int64)
                # The inverted file knows where its ids are, and takes no other selector.
                self._index.remove_ids((faiss.IDSelectorArray if self.approximate else faiss.IDSelectorBatch)(keys))
                self._ids -= there
            return len(there)

    def search(self, queries: ArrayLike, k: int) -> tuple[Ids, Descriptors]:
        """The ``k`` most similar places of each query, best first.

        Args:
            queries: (Q, D) float32.
            k: at least 1.

        Returns:
            Ids (Q, k) int64 and inner products (Q, k) float32; id -1 and -inf where fewer than ``k`` places were found,
            and in the whole row of a query that is not finite.

        Raises:
            DataError: the queries' shape does not fit, or ``k`` is not positive.
        """
        rows = self._rows(queries)
        if k < 1:
            raise DataError(f"index: k is {k}, wants at least 1")
        finite = np.asarray(np.isfinite(rows).all(axis=1))
        # A single query is as fast on one thread, and waking others costs more than the search.
        with self._lock, _one_thread() if len(rows) == 1 else nullcontext():
            similarities, ids = self._index.search(np.where(finite[:, None], rows, np.float32(0)), k)
        ids[~finite] = -1
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


@contextmanager
def _one_thread() -> Iterator[None]:
    """FAISS works on one thread meanwhile. The number outlives a search, so that it is put back for what comes next."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def _half_flat(descriptor_dim: int) -> Any:
    return faiss.IndexScalarQuantizer(descriptor_dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)


def _inverted_file(descriptors: NDArray[np.floating[Any]]) -> Any:
    """An empty inverted file whose cells fit these descriptors, (N, D)."""
    count, dim = descriptors.shape
    cells = 8 * round(count**0.5)
    centres = faiss.IndexFlatIP(dim)
    # Cells keep descriptors, not differences from the cell's centre: similarities stay those of the exact search.
    index: Any = faiss.IndexIVFScalarQuantizer(
        centres, dim, cells, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    index.referenced_objects = [centres]
    index.nprobe = min(PROBES, cells)
    index.cp.niter, index.cp.seed = _ITERATIONS, 1
    # Centres of one length: else the longer would draw descriptors that are not nearest to them.
    index.cp.spherical = True
    index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = _TRAINING_PER_CELL, 1
    every = max(1, count // (cells * _TRAINING_PER_CELL))
    index.train(np.ascontiguousarray(descriptors[::every], dtype=np.float32))
    # Places are looked up and removed by their id.
    index.set_direct_map_type(faiss.DirectMap.Hashtable)  # type: ignore[attr-defined]
    return index


def _halve_centres(index: Any) -> None:
    """Keep the centres of an inverted file's cells in float16, once the bulk of its descriptors is sorted.

    A query reads all of them; sorting many descriptors at once is faster by float32.
    """
    centres = _half_flat(index.d)
    centres.add(index.quantizer.reconstruct_n(0, index.nlist))
    index.quantizer = centres
    index.referenced_objects = [centres]
