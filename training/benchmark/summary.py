"""A suite in Markdown: what was compared and how; tables, results by condition, the best row against the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from training.benchmark import tables
from training.benchmark.cells import Workplace
from training.benchmark.costs import Cost
from training.benchmark.statistics import Difference
from training.benchmark.suite import ALONE, TEACHER, Column, Table
from vpr_kd_ros import __version__
from vpr_kd_ros.backends.devices import cpu_name

Results = dict[int, dict[str, Any]]
"""What was measured, by seed."""


def summary(place: Workplace, filled: Mapping[str, tables.Filled], costs: Mapping[str, Cost]) -> str:
    """The suite's page for a repository: complete without the report's pictures.

    Args:
        place: whose cells are read.
        filled: the tables to show, see ``training.benchmark.report.write_tables``.
        costs: what the networks of ``place.suite.costs`` cost.
    """
    parts = [f"# {place.suite.title}", place.suite.about, *_protocol(place, filled)]
    for table in filled.values():
        parts.append(tables.markdown(table).rstrip())
        for column in table.table.columns:
            found = {row: _results(place, table.table, column, row) for row in table.entries}
            parts += [_split(column, found, "by_query_condition", "by the query's condition")]
            if any("by_query_batch" in result for results in found.values() for result in results.values()):
                parts += [_split(column, found, "by_query_batch", "by how many queries are described at once")]
            parts += _best_against_others(column, table.table, found)
    if place.suite.costs is not None:
        parts.append(tables.costs_markdown(place.suite.costs, costs).rstrip())
    return "\n\n".join(parts) + "\n"


def _protocol(place: Workplace, filled: Mapping[str, tables.Filled]) -> list[str]:
    cells = {
        cell.name: cell
        for table in filled.values()
        for column in table.table.columns
        for row in table.entries
        for seed in place.suite.seeds
        for cell in [place.suite.cell(table.table, column, row, seed)]
    }
    done = [result for cell in cells.values() if (result := place.result(cell)) is not None]
    if not done:
        return ["Nothing is trained yet."]
    hours = sum(result["seconds"] for result in done) / 3600
    commits = ", ".join(sorted({result["commit"] for result in done}))
    computed = ", ".join(f"{count} {how}" for how, count in Counter(_how(result["config"]) for result in done).items())
    return [
        f"AR@1: {place.suite.protocol}; {done[0]['ordered_pairs']} ordered pairs of test drives, {done[0]['queries']} "
        f"queries, {done[0]['excluded']} without a right answer left out. "
        f"Seeds {', '.join(map(str, place.suite.seeds))}; one teacher (seed {place.suite.teacher_seed}) teaches all, "
        "so the spread is the students' own. Checkpoints were chosen on the validation regions. ± is the standard "
        "deviation over seeds; in brackets, p of a paired t test over seeds, and 95 % confidence intervals of shares.",
        f"{len(done)} of {len(cells)} trainings ({computed}), {hours:.1f} hours of training; {cpu_name()}; commit "
        f"{commits}; vpr_kd_ros {__version__}.",
    ]


def _how(config: Mapping[str, Any]) -> str:
    # Results from before there was a choice were not compiled.
    return f"in {config['precision']}{', compiled' if config.get('compile') else ''}"


def _results(place: Workplace, table: Table, column: Column, row: str) -> Results:
    seeds = [place.suite.teacher_seed] if row == TEACHER else place.suite.seeds
    found = {seed: place.result(place.suite.cell(table, column, row, seed)) for seed in seeds}
    return {seed: result for seed, result in found.items() if result is not None}


def _split(column: Column, found: Mapping[str, Results], key: str, title: str) -> str:
    """AR@1 under each of the names that the results have under ``key``."""
    names = list(dict.fromkeys(n for results in found.values() for r in results.values() for n in r.get(key, {})))
    lines = [tables.line(["method", *names]), tables.line(["---"] * (1 + len(names)))]
    for row, results in found.items():
        values = [[r[key][name] for r in results.values() if name in r.get(key, {})] for name in names]
        lines.append(tables.line([row, *(f"{100 * np.mean(v):.1f}" if v else "–" for v in values)]))
    return "\n".join([f"{column.heading}: AR@1 {title}, %, mean over seeds", "", *lines])


def _best_against_others(column: Column, table: Table, found: Mapping[str, Results]) -> list[str]:
    """The best method against each other one, seed by seed; nothing where fewer than two are done."""
    scores = {row: {seed: 100 * r["ar1"] for seed, r in found[row].items()} for row in table.rows if found[row]}
    if len(scores) < 2:
        return []
    best = max(scores, key=lambda row: float(np.mean(list(scores[row].values()))))
    others = [row for row in (ALONE, *table.rows) if row != best and (row in scores or row == ALONE)]
    plain = {seed: 100 * r["ar1"] for seed, r in found[ALONE].items()}
    gains = {row: Difference.of(scores[best], scores.get(row, plain)) for row in others}
    told = [f"{row} {tables.gain_text(gain)}" for row, gain in gains.items() if gain.estimate.seeds]
    return [f"{column.heading}: {best} against the others, points of AR@1 (p): {'; '.join(told)}."]
