"""The index against brute force, its edges, and many threads at once."""

from __future__ import annotations

import threading

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from vpr_kd_ros.errors import DataError
from vpr_kd_ros.index import PlaceIndex


def unit(rng: np.random.Generator, count: int, dim: int) -> NDArray[np.float32]:
    rows = rng.standard_normal((count, dim))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


@pytest.mark.parametrize("queries", [1, 7])
def test_search_is_brute_force(queries: int) -> None:
    rng = np.random.default_rng(0)
    rows, ids = unit(rng, 300, 24), rng.permutation(10_000)[:300]
    index = PlaceIndex(24)
    index.add(ids[:100], rows[:100])
    index.add(ids[100:], rows[100:])
    index.remove(ids[50:120])
    kept = np.concatenate([np.arange(50), np.arange(120, 300)])
    asked = unit(rng, queries, 24)
    found, similarities = index.search(asked, 12)
    for q in range(queries):
        products = [float(np.dot(rows[i].astype(np.float64), asked[q])) for i in kept]
        order = np.argsort(products)[::-1][:12]
        np.testing.assert_array_equal(found[q], ids[kept][order])
        np.testing.assert_allclose(similarities[q], np.array(products)[order], atol=1e-6)


def test_too_few_places_and_none() -> None:
    rng = np.random.default_rng(1)
    index = PlaceIndex(8)
    ids, similarities = index.search(unit(rng, 2, 8), 3)
    assert (ids == -1).all()
    assert np.isneginf(similarities).all()
    rows = unit(rng, 2, 8)
    index.add([5, 9], rows)
    ids, similarities = index.search(rows[1:], 3)
    assert ids.tolist()[0][0] == 9
    assert ids.tolist()[0][2] == -1
    assert np.isneginf(similarities[0, 2])
    assert np.isfinite(similarities[0, :2]).all()
    assert index.remove([5, 9, 77]) == 2
    assert len(index) == 0
    assert (index.search(rows, 1)[0] == -1).all()


def test_a_query_that_is_not_finite_finds_nothing_and_harms_no_other() -> None:
    rng = np.random.default_rng(2)
    rows = unit(rng, 5, 8)
    index = PlaceIndex(8)
    index.add(range(5), rows)
    asked = rows[:3].copy()
    asked[1, 4] = np.nan
    asked[2, 0] = np.inf
    ids, similarities = index.search(asked, 2)
    assert ids[0, 0] == 0
    assert (ids[1:] == -1).all()
    assert np.isneginf(similarities[1:]).all()


def test_a_refused_addition_changes_nothing() -> None:
    rng = np.random.default_rng(3)
    rows = unit(rng, 4, 8)
    index = PlaceIndex(8)
    index.add([0, 1], rows[:2])
    broken = rows[2:].copy()
    broken[1, 0] = np.nan
    for ids, descriptors in (
        ([2, 3], broken),
        ([1, 2], rows[2:]),
        ([2, 2], rows[2:]),
        ([-1, 2], rows[2:]),
        ([2], rows[2:]),
        ([2, 3], rows[2:, :7]),
    ):
        with pytest.raises(DataError, match="index"):
            index.add(ids, descriptors)
    assert len(index) == 2
    np.testing.assert_array_equal(index.descriptors([1, 0]), rows[[1, 0]])
    with pytest.raises(DataError, match="id 2"):
        index.descriptors([0, 2])


def test_searching_while_another_thread_adds_and_removes() -> None:
    rng = np.random.default_rng(4)
    rows = unit(rng, 3000, 32)
    index = PlaceIndex(32)
    index.add(range(10), rows[:10])
    errors: list[BaseException] = []
    done = threading.Event()

    def search() -> None:
        try:
            while not done.is_set():
                ids, similarities = index.search(rows[:10], 3)
                # The first ten stay for good, so each finds itself.
                np.testing.assert_array_equal(ids[:, 0], np.arange(10))
                np.testing.assert_allclose(similarities[:, 0], 1.0, atol=1e-5)
        except BaseException as error:
            errors.append(error)

    readers = [threading.Thread(target=search) for _ in range(3)]
    for reader in readers:
        reader.start()
    for start in range(10, 3000, 10):
        index.add(range(start, start + 10), rows[start : start + 10])
        if start % 100 == 0:
            index.remove(range(start, start + 5))
    done.set()
    for reader in readers:
        reader.join()
    assert not errors
    assert len(index) == 3000 - 5 * 29


def test_a_single_query_leaves_the_number_of_threads_to_others() -> None:
    index = PlaceIndex(8)
    index.add([1], np.ones((1, 8), dtype=np.float32))
    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(3)
        index.search(np.ones((1, 8), dtype=np.float32), 1)
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)
