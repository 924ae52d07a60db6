"""A worker that always takes the newest frame; no ROS in here.

A robot wants the answer for now, not for the frame that has waited longest.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class NewestWorker(Generic[T]):
    """Runs ``process`` in a thread of its own on the newest item, and counts those it never came to.

    Args:
        process: called with an item; it must not raise.
        max_rate_hz: at most this often; 0 for no limit.
    """

    def __init__(self, process: Callable[[T], None], max_rate_hz: float = 0.0) -> None:
        self.replaced = 0
        self._process = process
        self.limit(max_rate_hz)
        self._item: T | None = None
        self._stopping = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="newest frame", daemon=True)
        self._thread.start()

    def limit(self, max_rate_hz: float) -> None:
        """Process at most so often from the next item on; 0 for no limit."""
        self._period_s = 1.0 / max_rate_hz if max_rate_hz > 0 else 0.0

    def put(self, item: T) -> None:
        """Offer an item; it replaces the one that waits."""
        with self._wake:
            if self._item is not None:
                self.replaced += 1
            self._item = item
            self._wake.notify()

    def stop(self) -> None:
        """Finish the item in work and end the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        while True:
            with self._wake:
                # Waiting for the period with the slot open keeps the item fresh until it is taken.
                while not self._stopping and (self._item is None or time.monotonic() < due):
                    self._wake.wait(None if self._item is None else due - time.monotonic())
                if self._stopping:
                    return
                item, self._item = self._item, None
            due = time.monotonic() + self._period_s
            if item is not None:
                self._process(item)
