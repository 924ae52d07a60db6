"""Small running statistics for diagnostics; no ROS in here."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter, deque


class Rate:
    """How often something happens, over the last seconds, and its longest gaps.

    Args:
        window: intervals remembered.
        gap_factor: an interval longer than this many medians is a gap.
    """

    def __init__(self, window: int = 100, gap_factor: float = 3.0) -> None:
        self.count = 0
        self.gaps = 0
        self.longest_gap_s = 0.0
        self._gap_factor = gap_factor
        self._intervals: deque[float] = deque(maxlen=window)
        self._last: float | None = None

    def tick(self, now_s: float | None = None) -> None:
        """Count one event, now or at the given time in seconds."""
        now = time.monotonic() if now_s is None else now_s
        self.count += 1
        if self._last is not None:
            interval = now - self._last
            if len(self._intervals) >= 5 and self._is_gap(interval):
                self.gaps += 1
                self.longest_gap_s = max(self.longest_gap_s, interval)
            self._intervals.append(interval)
        self._last = now

    def _is_gap(self, interval: float) -> bool:
        # The median takes too long for every event; few are that late against the least.
        factor = self._gap_factor
        return interval > factor * min(self._intervals) and interval > factor * statistics.median(self._intervals)

    @property
    def hertz(self) -> float:
        """Events per second over the window; 0 before the second event."""
        total = sum(self._intervals)
        return len(self._intervals) / total if total > 0 else 0.0

    def silent_s(self, now_s: float | None = None) -> float:
        """Seconds since the last event; infinite before the first."""
        return math.inf if self._last is None else (time.monotonic() if now_s is None else now_s) - self._last


class Window:
    """The last values of a quantity and their percentiles."""

    def __init__(self, size: int = 200) -> None:
        self._values: deque[float] = deque(maxlen=size)

    def add(self, value: float) -> None:
        """Remember one value."""
        self._values.append(value)

    def __len__(self) -> int:
        return len(self._values)

    def percentile(self, percent: float) -> float:
        """A percentile of the values, between two of them interpolated; NaN where there are none."""
        # A copy, because another thread may be adding.
        values = sorted(self._values.copy())
        if not values:
            return math.nan
        # NumPy's takes a hundred times as long for so few.
        place = (len(values) - 1) * percent / 100.0
        below = int(place)
        above = min(below + 1, len(values) - 1)
        return values[below] + (values[above] - values[below]) * (place - below)


class Drops:
    """Counts what was dropped, by reason."""

    # Reasons may name values; a stream of bad messages must not fill the memory with them.
    MAX_REASONS = 20
    # What happened longer ago is over, seconds; and so many are remembered for that at most.
    RECENT_S = 10.0
    MAX_RECENT = 1000

    def __init__(self) -> None:
        self._reasons: Counter[str] = Counter()
        self._recent: deque[tuple[float, str]] = deque(maxlen=self.MAX_RECENT)

    def add(self, reason: str, now_s: float | None = None) -> None:
        """Count one, now or at the given time in seconds; only the first line of the reason is kept."""
        line = reason.splitlines()[0]
        if line not in self._reasons and len(self._reasons) >= self.MAX_REASONS:
            line = "other reasons"
        self._reasons[line] += 1
        self._recent.append((time.monotonic() if now_s is None else now_s, line))

    @property
    def total(self) -> int:
        """All drops."""
        return sum(self._reasons.values())

    def most_common(self) -> str:
        """The most frequent reason and its count; empty where nothing was dropped."""
        return _most_common(self._reasons, "dropped")

    def recent(self, now_s: float | None = None) -> str:
        """The same of the last ``RECENT_S`` seconds."""
        since = (time.monotonic() if now_s is None else now_s) - self.RECENT_S
        # A copy, because another thread may be adding.
        reasons = Counter(reason for dropped_s, reason in self._recent.copy() if dropped_s >= since)
        return _most_common(reasons, f"dropped in the last {self.RECENT_S:g} s")


def _most_common(reasons: Counter[str], what: str) -> str:
    return "".join(f"{count} {what}: {reason}" for reason, count in reasons.most_common(1))
