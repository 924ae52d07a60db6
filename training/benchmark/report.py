"""A suite's report: tables, and pictures of where its models differ, in one HTML file that opens without a network."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.benchmark import pictures, tables
from training.benchmark.cells import ANSWERS, Workplace, load_answers
from training.benchmark.costs import Cost
from training.benchmark.suite import ALONE, TEACHER, Cell, Column, Table
from training.benchmark.summary import summary
from training.data.dataset import Keyframes
from training.engine.descriptors import describe, preprocess_of
from training.engine.runs import load_run
from training.evaluation import plots
from training.evaluation.precision import PrecisionRecall, precision_recall
from training.evaluation.protocol import normalised
from training.evaluation.saliency import saliency
from training.evaluation.training_log import read_curve
from training.pages import data_uri, template
from training.sessions import Session, load_sessions
from vpr_kd_ros import __version__

EXAMPLES = 5
"""Pictures of each kind."""


@dataclass(frozen=True)
class Measured:
    """A row of a column with its first seed that is done."""

    row: str
    cell: Cell
    result: dict[str, Any]
    answers: dict[tuple[str, str], dict[str, Any]]


def write_tables(place: Workplace, costs: Mapping[str, Cost]) -> dict[str, tables.Filled]:
    """Write ``tables/NAME.md`` and ``.csv``, ``summary.md`` and ``results.json``; returns the tables with results.

    Args:
        place: whose cells are read.
        costs: what the networks of ``place.suite.costs`` cost, see ``training.benchmark.costs.measure``.
    """
    folder = place.out / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    filled = {name: tables.fill(place, table) for name, table in place.suite.tables.items()}
    filled = {name: table for name, table in filled.items() if table.table.columns}
    for name, table in filled.items():
        (folder / f"{name}.md").write_text(tables.markdown(table))
        (folder / f"{name}.csv").write_text(tables.comma_separated(table))
    if place.suite.costs is not None:
        (folder / "costs.md").write_text(tables.costs_markdown(place.suite.costs, costs))
        (folder / "costs.csv").write_text(tables.costs_comma_separated(place.suite.costs, costs))
    results = {cell.name: place.result(cell) for cell in place.suite.cells()}
    (place.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (place.out / "summary.md").write_text(summary(place, filled, costs))
    return filled


def write_report(place: Workplace, filled: dict[str, tables.Filled], costs: Mapping[str, Cost]) -> Path:
    """Write ``report.html`` of what is done so far; returns its path. Arguments as those of ``write_tables``."""
    parts = []
    for name, table in filled.items():
        columns = [_column_part(place, table.table, column) for column in table.table.columns]
        parts.append({"name": name, "table": table, "columns": [part for part in columns if part is not None]})
    done = [result for result in map(place.result, place.suite.cells()) if result is not None]
    page = template(
        Path(__file__).parent / "report.html.j2",
        number=tables.number_text,
        interval=tables.interval_text,
        gain=tables.gain_text,
    ).render(
        suite=place.suite,
        protocol=str(place.suite.protocol),
        pairs=done[0]["ordered_pairs"] if done else 0,
        queries=done[0]["queries"] if done else 0,
        excluded=done[0]["excluded"] if done else 0,
        parts=parts,
        costs=None
        if place.suite.costs is None
        else {
            "title": place.suite.costs.title,
            "rows": tables.cost_rows(place.suite.costs, costs),
            "note": tables.costs_note(place.suite.costs),
        },
        metrics=tables.METRICS,
        alone=ALONE,
        teacher=TEACHER,
        trained=len(done),
        cells=len(place.suite.cells()),
        hours=sum(result["seconds"] for result in done) / 3600,
        commits=sorted({result["commit"] for result in done}),
        version=__version__,
    )
    path = place.out / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _column_part(place: Workplace, table: Table, column: Column) -> dict[str, Any] | None:
    """The pictures of a column; None where there is nothing to show."""
    measured = [m for row in (TEACHER, ALONE, *table.rows) if (m := _measured(place, table, column, row)) is not None]
    if not measured:
        return None
    students = {m.row: m for m in measured if m.row != TEACHER}
    best = max((m for m in students.values() if m.row != ALONE), key=lambda m: m.result["ar1"], default=None)
    compared = [m for m in (students.get(ALONE), best) if m is not None]
    figures = {
        "recall": pictures.recall_at_n({m.row: {int(n): v for n, v in m.result["recalls"].items()} for m in measured}),
        "precision": pictures.precision_recall_curves({m.row: _curve(m) for m in measured}),
        "cost": pictures.cost_bars({m.row: m.result["seconds_per_step"] for m in measured if m.row != TEACHER}),
    }
    if compared:
        curves = [read_curve(place.folder(m.cell.name) / "metrics.jsonl", m.row) for m in compared]
        figures["training"] = plots.training_curves(curves)
        figures |= _drive_pictures(place, compared)
    return {
        "heading": column.heading,
        "best": None if best is None else best.row,
        "seed": compared[0].cell.config.seed if compared else place.suite.teacher_seed,
        "by_condition": {m.row: m.result["by_query_condition"] for m in measured},
        "by_query_batch": {m.row: m.result["by_query_batch"] for m in measured if "by_query_batch" in m.result},
        "costs": [
            (m.row, m.result["parameters"], m.result["descriptor_dim"], m.result["seconds"] / 60) for m in measured
        ],
        "pictures": {name: data_uri("image/png", plots.png(figure, dpi=110)) for name, figure in figures.items()},
    }


def _measured(place: Workplace, table: Table, column: Column, row: str) -> Measured | None:
    """The row's first seed of which more than the result was kept: curves and pictures want answers and weights."""
    for seed in place.suite.seeds:
        cell = place.suite.cell(table, column, row, seed)
        result, answers = place.result(cell), place.folder(cell.name) / ANSWERS
        if result is not None and place.trained(cell.name) and answers.exists():
            return Measured(row, cell, result, load_answers(answers))
    return None


def _curve(measured: Measured) -> PrecisionRecall:
    pairs = list(measured.answers.values())
    similarity, right, answerable = (
        np.concatenate([pair[key] for pair in pairs]) for key in ("similarity", "right", "answerable")
    )
    return precision_recall(similarity.astype(np.float64), right, answerable)


# --- one drive against another, where the best distilled student gains most -------------------------------------------


def _drive_pictures(place: Workplace, compared: Sequence[Measured]) -> dict[str, Any]:
    sessions = {session.name: session for session in load_sessions([place.data / "test"])}
    database, query = _telling_pair(compared)
    right = {m.row: np.asarray(m.answers[database, query]["right"], dtype=bool) for m in compared}
    figures = {}
    if place.suite.protocol.frames is None:
        figures["route"] = pictures.success_maps(sessions[query].positions[:, :2], right)
    figures["matrix"] = pictures.distance_matrices(
        {m.row: _distances(place, m, sessions[query], sessions[database]) for m in compared}
    )
    answers = compared[-1].answers[database, query]
    shown = _telling_queries(right, answers)
    figures["gallery"] = plots.gallery(
        [_comparison(sessions[query], sessions[database], answers, i) for i in shown], columns=EXAMPLES
    )
    figures["saliency"] = _saliency(place, compared, sessions[query], sessions[database], shown[:EXAMPLES])
    for name, figure in figures.items():
        if name in ("route", "matrix"):
            figure.suptitle(f"{query} searched in {database}", fontsize=9)
    return figures


def _telling_pair(compared: Sequence[Measured]) -> tuple[str, str]:
    """The pair of drives whose recall the last model raises most over the first."""

    def rise(names: tuple[str, str]) -> float:
        first, last = (float(m.answers[names]["right"].mean()) for m in (compared[0], compared[-1]))
        return last - first

    return max(sorted(compared[-1].answers), key=rise)


def _telling_queries(right: dict[str, NDArray[np.bool_]], answers: dict[str, Any]) -> list[int]:
    """Queries that the last model gets right and the first does not, then its surest right and surest wrong ones."""
    masks = list(right.values())
    first, last = masks[0], masks[-1]
    sure = np.argsort(-answers["similarity"])
    groups = [sure[(last & ~first)[sure]], sure[last[sure]], sure[~last[sure]]]
    chosen: dict[int, None] = {}
    for group in groups:
        fresh = [int(i) for i in group if int(i) not in chosen]
        chosen.update(dict.fromkeys(fresh[:EXAMPLES]))
    return list(chosen)


def _comparison(query: Session, database: Session, answers: dict[str, Any], i: int) -> plots.Comparison:
    error = float(answers["error_m"][i])
    away = "" if math.isnan(error) else f"\n{error:.1f} m away"
    return plots.Comparison(
        "right" if answers["right"][i] else "wrong",
        query.image(i),
        database.image(int(answers["best"][i])),
        f"similarity {answers['similarity'][i]:.2f}{away}",
    )


def _distances(place: Workplace, measured: Measured, query: Session, database: Session) -> NDArray[np.float64]:
    """Distances of unit descriptors, (Q, M)."""
    model, config = load_run(place.folder(measured.cell.name))
    preprocess = preprocess_of(config)
    q, d = (normalised(describe(model, Keyframes([s], preprocess), preprocess)) for s in (query, database))
    return np.asarray(np.sqrt(np.maximum(2 - 2 * (q @ d.T).astype(np.float64), 0)))


def _saliency(
    place: Workplace, compared: Sequence[Measured], query: Session, database: Session, shown: Sequence[int]
) -> Any:
    gaps = np.linalg.norm(query.positions[:, None, :2] - database.positions[None, :, :2], axis=2)
    truth = [int(gaps[i].argmin()) if np.isfinite(gaps[i]).any() else i for i in shown]
    heats = {}
    for measured in compared:
        model, config = load_run(place.folder(measured.cell.name))
        if model.map_layers() and not (model.uses_clouds or model.uses_labels):
            preprocess = preprocess_of(config)
            heats[measured.row] = [
                saliency(model, preprocess, query.image(i), database.image(j))
                for i, j in zip(shown, truth, strict=True)
            ]
    return pictures.saliency_gallery([query.image(i) for i in shown], heats)
