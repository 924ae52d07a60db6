"""What is promised of speed and memory, as bounds on what the benchmarks measure.

A row of a benchmark that holds what ``where`` says is a target; every other row is there to show how a cost grows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.measuring import Row


@dataclass(frozen=True)
class Target:
    """One promise.

    Attributes:
        benchmark: whose rows are looked at.
        promise: in words.
        value: the column.
        comparison: ``>=`` or ``<=``.
        bound: a number, or the column to compare with.
        factor: of the bound, where that is a column.
        where: what a row must hold to be judged.
    """

    benchmark: str
    promise: str
    value: str
    comparison: str
    bound: float | str
    factor: float = 1.0
    where: Mapping[str, Any] = field(default_factory=dict)

    def judge(self, rows: Sequence[Row]) -> Row:
        """A line of the table of targets: the worst of the rows that it is about, or that there is none."""
        line = {"benchmark": self.benchmark, "target": self.promise}
        needed = [self.value, *([self.bound] if isinstance(self.bound, str) else [])]
        margins = {}
        for number, row in enumerate(rows):
            fits = all(row.get(key) == value for key, value in self.where.items())
            if fits and all(row.get(key) is not None for key in needed):
                gap = row[self.value] - self._bound(row)
                margins[number] = gap if self.comparison == ">=" else -gap
        if not margins:
            return {**line, "wanted": None, "worst": None, "rows": 0, "is": "not measured"}
        worst = rows[min(margins, key=lambda number: margins[number])]
        wanted = f"{self.value} {self.comparison} {self._bound(worst):g}"
        met = min(margins.values()) >= 0
        measured = {"worst": worst[self.value], "rows": len(margins)}
        return {**line, "wanted": wanted, **measured, "is": "met" if met else "missed"}

    def _bound(self, row: Row) -> float:
        return float(self.factor * row[self.bound]) if isinstance(self.bound, str) else self.bound


AT_512 = {"size": "512x384"}
EIGHT_CLOUDS = {"clouds": 8}
DISTILVPR_STUDENT = {"student": "minkloc++2d 240x320"}
LOSSES, SPARSE = "relational_losses", "sparse_convolution"
TARGETS = (
    Target(LOSSES, "80 times as fast as the broadcast form", "speedup", ">=", 80.0, where=AT_512),
    Target(LOSSES, "40 times as lean as the broadcast form", "leaner", ">=", 40.0, where=AT_512),
    Target(LOSSES, "equal values", "value_difference", "<=", 1e-5, where=AT_512),
    Target(LOSSES, "equal gradients", "gradient_difference", "<=", 1e-4, where=AT_512),
    Target(SPARSE, "no slower than im2col", "speedup_over_im2col", ">=", 1.0, where=EIGHT_CLOUDS),
    Target(SPARSE, "no slower than MinkowskiEngine", "speedup_over_minkowski", ">=", 1.0, where=EIGHT_CLOUDS),
    Target("image_path", "no slower than OpenCV and torch", "speedup", ">=", 1.0),
    Target("training_step", "faster with the teacher cached", "speedup", ">=", 1.0),
    Target("search", "exact, near the memory's rate", "ratio", "<=", 1.5, where={"places": 100_000}),
    Target("search", "a million places at once", "approximate_ms", "<=", 2.0, where={"places": 1_000_000}),
    Target("search", "a million places, found", "recall_at_1", ">=", 0.99, where={"places": 1_000_000}),
    Target("search", "memory as announced", "resident_mb", "<=", "announced_mb", factor=1.1),
    Target("node_share", "share of the node in a frame", "share", "<=", 0.15, where=DISTILVPR_STUDENT),
    Target("node_share", "age at most a period and an inference", "age_p99_ms", "<=", "age_allowed_ms"),
    Target("recording", "every message is written", "missing", "<=", 0),
    Target("ingest", "five times as fast as the drive", "times_real_time", ">=", 5.0),
    Target("ingest", "memory", "peak_mb", "<=", 1000.0),
)


def judge(rows_of: Mapping[str, Sequence[Row]]) -> list[Row]:
    """The table of targets, met, missed or not measured.

    Args:
        rows_of: rows by benchmark; targets of a benchmark that is not there are "not measured".
    """
    return [target.judge(rows_of.get(target.benchmark, ())) for target in TARGETS]
