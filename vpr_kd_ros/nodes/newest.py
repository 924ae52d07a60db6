"""A worker that takes the newest frame, and rather the next than an old one; no ROS in here.

A robot wants the answer for now, not for the frame that has waited longest.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from vpr_kd_ros.nodes.statistics import Rate

T = TypeVar("T")
FRESH = 0.5
"""Share of a source's period that an item may have waited when it is taken at once."""
LATE = 1.5
"""Periods after an item by when the next of its source would have come."""


class NewestWorker(Generic[T]):
    """Runs ``process`` in a thread of its own on the newest item of each source, and counts those it never came to.

    Sources take turns: the one whose first item waits longest comes next. An only source's item that has waited too
    long while another was processed is left for the next one (``start_of``).

    Args:
        process: called with an item; it must not raise.
        max_rate_hz: at most this often for each source; 0 for no limit.
    """

    def __init__(self, process: Callable[[T], None], max_rate_hz: float = 0.0) -> None:
        self.replaced = 0
        self._process = process
        self.limit(max_rate_hz)
        self._items: dict[str, T] = {}
        self._arrivals: dict[str, Rate] = {}
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
            self._arrivals.setdefault(source, Rate()).tick()
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
                # Waiting with the slot open keeps the item fresh until it is taken.
                while not self._stopping:
                    now = time.monotonic()
                    starts = {source: self._start(source, now) for source in self._items}
                    source = next((source for source, start in starts.items() if start <= now), None)
                    if source is not None:
                        break
                    self._wake.wait(min(starts.values()) - now if starts else None)
                else:
                    return
                item = self._items.pop(source)
            if self._period_s > 0:
                self._due[source] = time.monotonic() + self._period_s
            self._process(item)

    def _start(self, source: str, now: float) -> float:
        due, arrivals = self._due.get(source, 0.0), self._arrivals[source]
        arrived = now - arrivals.silent_s(now)
        # Of several sources, one that is held would lose its turn to the others again and again.
        if len(self._arrivals) > 1 or due > arrived:
            return max(now, due)
        return start_of(now, arrived, 1 / arrivals.hertz if arrivals.hertz > 0 else math.inf)


def start_of(now: float, arrived: float, period: float) -> float:
    """When to start on the newest item of a source, should none come until then; all in seconds.

    A camera that is a little faster than the network makes the newest frame older at each turn, until it is a whole
    period old and the next replaces it. One that is older than ``FRESH`` of a period is better not begun: the next is
    due before long. Answers become fewer by up to a quarter, and yet what is known at any moment is newer, by a quarter
    of a period or so; the oldest are at least half a period newer. Where the next one does not come, the item is taken.

    Args:
        now: when the worker has time for it.
        arrived: when the item came.
        period: of the source; infinite before it is known.
    """
    waited = now - arrived
    return arrived + LATE * period if FRESH * period < waited < LATE * period else now
