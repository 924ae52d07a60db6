"""Reading ahead: order, bounds, errors and an end before the end."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from training.ingest.ahead import read_ahead


def test_everything_comes_in_its_order_and_from_another_thread() -> None:
    threads = set()

    def items() -> Iterator[int]:
        for number in range(500):
            threads.add(threading.current_thread())
            yield number

    with read_ahead(items(), 3) as coming:
        assert list(coming) == list(range(500))
    assert threads.isdisjoint({threading.current_thread()})
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("limit", [1, 4])
def test_no_more_is_read_than_may_wait(limit: int) -> None:
    begun, full = [], threading.Event()

    def items() -> Iterator[int]:
        for number in range(100):
            begun.append(number)
            if len(begun) > limit:
                full.set()
            yield number

    with read_ahead(items(), limit) as coming:
        assert full.wait(10)
        for taken in range(20):
            # Those that wait, and one in the hand of the thread, which has no room for it.
            assert len(begun) <= taken + limit + 1
            assert next(coming) == taken


def test_an_error_comes_where_its_item_would_have() -> None:
    def items() -> Iterator[str]:
        yield "first"
        yield "second"
        raise ValueError("the disk is gone")

    got: list[str] = []

    def take() -> None:
        with read_ahead(items(), 5) as coming:
            while True:
                got.append(next(coming))

    with pytest.raises(ValueError, match="the disk is gone"):
        take()
    assert got == ["first", "second"]


def test_a_block_that_is_left_early_ends_the_reading_and_closes_its_source() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            closed.set()

    def interrupted() -> None:
        with read_ahead(items(), 2) as coming:
            for item in coming:
                if item == 5:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert closed.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
