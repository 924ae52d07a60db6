"""Reading ahead: what comes next is read and decoded by a thread while the caller works on what came last."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")


@contextmanager
def read_ahead(items: Iterable[Item], limit: int) -> Iterator[Iterator[Item]]:
    """Give an iterator over the same items, in their order; a thread takes them from ``items``.

    An error in ``items`` is raised where the item would have come. When the block is left, however it is, the thread
    has ended: it finishes at most the item that it is at.

    Args:
        items: iterated over by the thread alone.
        limit: items that may wait; memory does not grow beyond them.
    """
    room, stop = threading.Semaphore(limit), threading.Event()
    waiting: SimpleQueue[tuple[Item] | None] = SimpleQueue()

    def fill() -> None:
        try:
            for item in items:
                room.acquire()
                if stop.is_set():
                    return
                waiting.put((item,))
        finally:
            waiting.put(None)

    def taken() -> Iterator[Item]:
        while (found := waiting.get()) is not None:
            room.release()
            yield found[0]
        filling.result()

    with ThreadPoolExecutor(1, "ahead") as pool:
        filling = pool.submit(fill)
        try:
            yield taken()
        finally:
            stop.set()
            room.release()
