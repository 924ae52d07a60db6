"""The papers' tables from a suite's results, in their layout: a row for each method, a column for each pairing; and
what networks cost.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch

from training.benchmark.cells import Workplace
from training.benchmark.costs import Cost, CostTable
from training.benchmark.statistics import Difference, Estimate, gap_closed
from training.benchmark.suite import ALONE, TEACHER, Column, Table
from vpr_kd_ros.backends.devices import cpu_name

Seeds = dict[int, float]
METRICS = {"ar1_percent": "AR@1 %", "ar1": "AR@1"}
COSTS = {
    "milliseconds": "ms",
    "trainable": "weights that learn",
    "parameters": "weights",
    "multiply_adds": "G multiply-adds",
}
"""Headings of what ``training.benchmark.costs`` measures."""


@dataclass(frozen=True)
class Entry:
    """A row in a column; figures in percent.

    Attributes:
        measured: metric to estimate over seeds.
        gain: AR@1 against the plain student; None for the first two rows.
        closed: share of the gap to the teacher that is closed, in percent; None likewise.
        paper: the paper's (AR@1 %, AR@1); None where it has none.
    """

    measured: dict[str, Estimate]
    gain: Difference | None
    closed: Estimate | None
    paper: tuple[float, float] | None


@dataclass(frozen=True)
class Filled:
    """A table with what was measured.

    Attributes:
        table: with those of its columns in which a student is done.
        entries: row, then column's number, to the entry.
        missing: cells that are not done, in all its columns.
    """

    table: Table
    entries: dict[str, list[Entry]]
    missing: int

    def best(self, column: int, metric: str) -> list[str]:
        """The students' rows of a column, best mean first; the teacher is no student."""
        means = {
            row: entries[column].measured[metric].mean
            for row, entries in self.entries.items()
            if row != TEACHER and entries[column].measured[metric].seeds
        }
        return sorted(means, key=lambda row: -means[row])


def fill(place: Workplace, table: Table) -> Filled:
    """A table from the cells that are done."""
    entries: dict[str, list[Entry]] = {row: [] for row in (TEACHER, ALONE, *table.rows)}
    missing = 0
    started = []
    for column in table.columns:
        found: dict[str, dict[str, Seeds]] = {}
        for row in entries:
            found[row] = {metric: {} for metric in METRICS}
            for seed in [place.suite.teacher_seed] if row == TEACHER else place.suite.seeds:
                result = place.result(place.suite.cell(table, column, row, seed))
                missing += result is None
                for metric in METRICS if result else ():
                    found[row][metric][seed] = 100 * result[metric]  # type: ignore[index]
        if not any(found[row]["ar1"] for row in table.rows):
            continue
        started.append(column)
        for row, measured in found.items():
            entries[row].append(_entry(row, column, measured, found))
    return Filled(replace(table, columns=tuple(started)), entries, missing)


def _entry(row: str, column: Column, measured: Mapping[str, Seeds], found: Mapping[str, Mapping[str, Seeds]]) -> Entry:
    estimates = {metric: Estimate.of(list(values.values())) for metric, values in measured.items()}
    paper = column.paper.get(row)
    if row in (TEACHER, ALONE):
        return Entry(estimates, None, None, paper)
    base, teacher = found[ALONE]["ar1"], list(found[TEACHER]["ar1"].values())
    closed = gap_closed(measured["ar1"], base, teacher[0]) if teacher else Estimate.of([])
    percent = Estimate(100 * closed.mean, 100 * closed.deviation, 100 * closed.half_width, closed.seeds)
    return Entry(estimates, Difference.of(measured["ar1"], base), percent, paper)


def markdown(filled: Filled) -> str:
    """The table for a README: best student bold, second in italics; gains with their p, then the paper's figures."""
    table = filled.table
    head = ["method"]
    for column in table.columns:
        head += [f"{column.heading}: AR@1 %", "AR@1", "gain (p)", "gap closed, %"]
        head += ["paper: AR@1 % / AR@1"] if column.paper else []
    lines = [line(head), line(["---"] * len(head))]
    for row, entries in filled.entries.items():
        cells = [row]
        for number, (column, entry) in enumerate(zip(table.columns, entries, strict=True)):
            for metric in METRICS:
                place = filled.best(number, metric).index(row) if row in filled.best(number, metric) else -1
                cells.append(_marked(number_text(entry.measured[metric]), place))
            cells += [gain_text(entry.gain), interval_text(entry.closed)]
            if column.paper:
                cells.append("–" if entry.paper is None else f"{entry.paper[0]:.1f} / {entry.paper[1]:.1f}")
        lines.append(line(cells))
    notes = [table.note] if table.note else []
    if filled.missing:
        notes.append(f"{filled.missing} trainings of this table are not done.")
    return "\n".join([f"### {table.title}", "", *lines, "", *notes]).rstrip() + "\n"


def comma_separated(filled: Filled) -> str:
    """The table for a program: one line for each row of each column."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    names = [f"{metric}_{what}" for metric in METRICS for what in ("mean", "deviation")]
    writer.writerow(
        ["teacher", "student", "variant", "method", "seeds", *names, "gain", "gain_half_width_95", "p"]
        + ["gap_closed_percent", "gap_closed_half_width_95", "paper_ar1_percent", "paper_ar1"]
    )
    for row, entries in filled.entries.items():
        for column, entry in zip(filled.table.columns, entries, strict=True):
            measured = [v for m in METRICS for v in (entry.measured[m].mean, entry.measured[m].deviation)]
            gain = (math.nan,) * 3
            if entry.gain is not None:
                gain = (entry.gain.estimate.mean, entry.gain.estimate.half_width, entry.gain.p)
            closed = (math.nan,) * 2 if entry.closed is None else (entry.closed.mean, entry.closed.half_width)
            variant = " ".join(f"{key}={value}" for key, value in column.options.items())
            numbers = (*measured, *gain, *closed, *(entry.paper or (math.nan, math.nan)))
            writer.writerow(
                [column.teacher, column.student, variant, row, entry.measured["ar1"].seeds]
                + ["" if math.isnan(value) else f"{value:.4g}" for value in numbers]
            )
    return buffer.getvalue()


def costs_markdown(table: CostTable, found: Mapping[str, Cost]) -> str:
    """What networks cost, for a README: the paper's figures, those that it gives, behind ours."""
    rows = cost_rows(table, found)
    head = list(rows[0])
    lines = [line(head), line(["---"] * len(head)), *(line(list(row.values())) for row in rows)]
    return "\n".join([f"### {table.title}", "", *lines, "", costs_note(table)]) + "\n"


def costs_comma_separated(table: CostTable, found: Mapping[str, Cost]) -> str:
    """What networks cost, for a program."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["network", *COSTS, *(f"paper_{key}" for key in COSTS)])
    for name, cost in found.items():
        values = [*asdict(cost).values(), *asdict(table.networks[name][1]).values()]
        writer.writerow([name, *("" if math.isnan(value) else f"{value:.8g}" for value in values)])
    return buffer.getvalue()


def cost_rows(table: CostTable, found: Mapping[str, Cost]) -> list[dict[str, str]]:
    """A row for each network, heading to text."""
    papers = {name: asdict(paper) for name, (_, paper) in table.networks.items()}
    given = [key for key in COSTS if not all(math.isnan(paper[key]) for paper in papers.values())]
    return [
        {"network": name}
        | {COSTS[key]: _cost_text(key, value) for key, value in asdict(cost).items()}
        | {f"paper: {COSTS[key]}": _cost_text(key, papers[name][key]) for key in given}
        for name, cost in found.items()
    ]


def costs_note(table: CostTable) -> str:
    """How it was measured, and what the suite says of it."""
    how = f"One image of {table.height} x {table.width} pixels, {torch.get_num_threads()} threads, {cpu_name()}."
    return f"{how} {table.note}".strip()


def _cost_text(key: str, value: float) -> str:
    decimals = {"milliseconds": 1, "multiply_adds": 2}.get(key, 0)
    return "–" if math.isnan(value) else f"{value:,.{decimals}f}"


def number_text(estimate: Estimate) -> str:
    """Mean and standard deviation."""
    if not estimate.seeds:
        return "–"
    return f"{estimate.mean:.1f}" + ("" if math.isnan(estimate.deviation) else f" ± {estimate.deviation:.1f}")


def interval_text(estimate: Estimate | None) -> str:
    """Mean and 95 % confidence interval."""
    if estimate is None or not estimate.seeds:
        return "–"
    if math.isnan(estimate.half_width):
        return f"{estimate.mean:.0f}"
    low, high = estimate.mean - estimate.half_width, estimate.mean + estimate.half_width
    return f"{estimate.mean:.0f} ({low:.0f} to {high:.0f})"


def gain_text(gain: Difference | None) -> str:
    """Mean difference, its p in brackets."""
    if gain is None or not gain.estimate.seeds:
        return "–"
    return f"{gain.estimate.mean:+.1f}" + ("" if math.isnan(gain.p) else f" ({gain.p:.2g})")


def line(cells: list[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def _marked(text: str, place: int) -> str:
    return {0: f"**{text}**", 1: f"_{text}_"}.get(place, text)
