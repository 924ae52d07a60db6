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
    """Runs ``process`` in a thread of its own on the newest item of each source, and counts those it never came to.

    Sources take turns: the one whose first item waits longest comes next.

    Args:
        process: called with an item; it must not raise.
        max_rate_hz: at most this often for each source; 0 for no limit.
    """

    def __init__(self, process: Callable[[T], None], max_rate_hz: float = 0.0) -> None:
        self.replaced = 0
        self._process = process
        self.limit(max_rate_hz)
        self._items: dict[str, T] = {}
        self._due: dict[str, float] = {}
        self._stopping = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="newest frame", daemon=True)
        self._thread.start()

    def limit(self, max_rate_hz: float) -> None:
        """Process at most so often from the next item on; 0 for no limit."""
        self._period_s = 1.0 / max_rate_hz if max_rate_hz > 0 else 0.0

    def put(self, item: T, source: str = "") -> None:
        """Offer an item; it replaces the one of its source that waits, and takes its turn."""
        with self._wake:
            if source in self._items:
                self.replaced += 1
            self._items[source] = item
            self._wake.notify()

    def stop(self) -> None:
        """Finish the item in work and end the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                # Waiting for the period with the slot open keeps the item fresh until it is taken.
                while (source := self._next()) is None and not self._stopping:
                    dues = [self._due.get(waiting, 0.0) for waiting in self._items]
                    self._wake.wait(max(0.0, min(dues) - time.monotonic()) if dues else None)
                if self._stopping or source is None:
                    return
                item = self._items.pop(source)
            self._due[source] = time.monotonic() + self._period_s
            self._process(item)

    def _next(self) -> str | None:
        """The first source whose item is due."""
        now = time.monotonic()
        return next((source for source in self._items if self._due.get(source, now) <= now), None)
