"""Pictures of results. Each function returns a figure of its own; nothing is shared between calls."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from vpr_kd_ros.geometry import Floats

INK, FAINT, PALE = "#1f2933", "#7b8794", "#eef1f4"
SERIES = ("#9aa5b1", "#e9a23b", "#1f6f8b")
"""Colours of up to three models: told apart without colour vision by their lightness."""
OUTCOMES = {"right": "#1f6f8b", "wrong": "#d1495b", "unknown": "#b8c0ca"}


@dataclass(frozen=True)
class TrainingCurve:
    """What a run logged: (step, loss) and (step, AR@1 in [0, 1]) pairs; either may be empty."""

    name: str
    loss: Sequence[tuple[int, float]]
    validation: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Comparison:
    """A query beside its best match.

    Attributes:
        outcome: a key of ``OUTCOMES``.
        query: RGB, (H, W, 3) uint8.
        match: RGB, (H, W, 3) uint8, any other size; None where there is no picture of it.
        caption: one or two lines.
    """

    outcome: str
    query: NDArray[np.uint8]
    match: NDArray[np.uint8] | None
    caption: str


def png(figure: Figure, dpi: int = 150) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def recall_by_condition(
    recalls: Mapping[str, Mapping[str, float]], groups: Mapping[str, Sequence[str]], title: str = "AR@1, %"
) -> Figure:
    """Bars of each model for each query condition; a condition that a model lacks, or NaN, is left out.

    Args:
        recalls: model to condition to recall in [0, 1]; at most three models.
        groups: heading to its conditions, in the order to draw; a heading without conditions is not drawn.
        title: of the vertical axis.
    """
    groups = {heading: list(conditions) for heading, conditions in groups.items() if conditions}
    order = [condition for conditions in groups.values() for condition in conditions]
    figure = new_figure(9.0, 3.9)
    axes = figure.subplots()
    width = 0.8 / max(len(recalls), 1)
    for number, (model, by_condition) in enumerate(recalls.items()):
        at = np.arange(len(order)) + (number - (len(recalls) - 1) / 2) * width
        heights = [100 * by_condition.get(condition, np.nan) for condition in order]
        bars = axes.bar(at, heights, width * 0.94, label=model, color=SERIES[number])
        labels = ["" if np.isnan(height) else f"{height:.0f}" for height in heights]
        axes.bar_label(bars, labels, fontsize=7, padding=1.5, color=INK)
    left = 0
    for number, (heading, conditions) in enumerate(groups.items()):
        right = left + len(conditions)
        if number % 2 == 0:
            axes.axvspan(left - 0.5, right - 0.5, color=PALE, zorder=0, lw=0)
        axes.text((left + right - 1) / 2, 107, heading, ha="center", va="bottom", fontsize=8, color=FAINT)
        left = right
    axes.set(xlim=(-0.5, max(len(order), 1) - 0.5), ylim=(0, 116), ylabel=title, yticks=range(0, 101, 20))
    axes.set_xticks(range(len(order)), order)
    quiet(axes)
    axes.tick_params(length=0)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def recall_between_conditions(tables: Mapping[str, Mapping[str, Mapping[str, float]]], order: Sequence[str]) -> Figure:
    """A heat map per model of AR@1 by condition of query (rows) and database (columns).

    Args:
        tables: model to query condition to database condition to recall in [0, 1]; missing or NaN: no such pair.
        order: of the conditions.
    """
    figure = new_figure(3.3 * max(len(tables), 1), 3.9)
    row = np.atleast_1d(figure.subplots(1, max(len(tables), 1), sharey=True))
    for axes, (model, table) in zip(row, tables.items(), strict=False):
        values = np.array([[100 * table.get(query, {}).get(base, np.nan) for base in order] for query in order])
        axes.set_facecolor(PALE)
        axes.imshow(np.ma.masked_invalid(values.reshape(len(order), len(order))), cmap="YlGnBu", vmin=0, vmax=100)
        for (y, x), value in np.ndenumerate(values):
            known = np.isfinite(value)
            colour = FAINT if not known else ("white" if value > 60 else INK)
            axes.text(x, y, f"{value:.0f}" if known else "–", ha="center", va="center", fontsize=8, color=colour)
        axes.set_title(model, fontsize=10)
        axes.set_xticks(range(len(order)), order, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(order)), order)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    row[0].set_ylabel("query")
    figure.supxlabel("database", fontsize=9, color=INK)
    return figure


def route(
    truth: Floats, estimates: Floats, accepted: NDArray[np.bool_], right: NDArray[np.bool_], places: Floats
) -> Figure:
    """A drive from above, coloured by what the localizer said, each published position joined to the truth.

    Args:
        truth: (F, 2) metres.
        estimates: (F, 2) metres; NaN where nothing was published.
        accepted: (F,) bool, whether a position was published.
        right: (F,) bool, whether it was right.
        places: (P, 2) metres, the map.
    """
    figure = new_figure(7.0, 7.2)
    axes = figure.subplots()
    axes.scatter(places[:, 0], places[:, 1], s=9, color="#cbd2d9", label=f"place of the map ({len(places)})", zorder=1)
    for name, label, mask, marker, size in (
        ("unknown", "unknown: nothing published", ~accepted, "o", 16),
        ("right", "accepted and right", accepted & right, "o", 16),
        ("wrong", "accepted and wrong", accepted & ~right, "X", 44),
    ):
        edge, face = ("#8d99a6", "white") if name == "unknown" else (OUTCOMES[name], OUTCOMES[name])
        text = f"{label} ({mask.sum()})"
        x, y = truth[mask, 0], truth[mask, 1]
        axes.scatter(x, y, s=size, marker=marker, label=text, zorder=3, lw=0.9, edgecolors=edge, facecolors=face)
        for start, end in zip(truth[mask & accepted], estimates[mask & accepted], strict=True):
            axes.plot([start[0], end[0]], [start[1], end[1]], color=OUTCOMES[name], lw=0.9, alpha=0.7, zorder=2)
    if len(truth):
        inwards = 1 if truth[0, 0] < truth[:, 0].mean() else -1
        align = "left" if inwards > 0 else "right"
        axes.annotate(
            "start", truth[0], (10 * inwards, 0), textcoords="offset points", ha=align, va="center", color=INK
        )
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(xlabel="x, metres", ylabel="y, metres")
    axes.margins(0.06)
    axes.grid(color=PALE)
    quiet(axes)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def latency_histogram(seconds: Floats) -> Figure:
    """Histogram of (L,) latencies in seconds, drawn in milliseconds, with median and 99th percentile."""
    figure = new_figure(7.0, 2.7)
    axes = figure.subplots()
    milliseconds = 1e3 * np.asarray(seconds, dtype=np.float64)
    if not len(milliseconds):
        return nothing(figure, axes, "no latency was measured")
    axes.hist(milliseconds, bins=min(40, max(5, len(milliseconds) // 4)), color=SERIES[2], rwidth=0.92)
    top = axes.get_ylim()[1]
    for percent, height in ((50, 0.97), (99, 0.82)):
        value = float(np.percentile(milliseconds, percent))
        axes.axvline(value, color=INK, lw=1.0, ls="--" if percent == 99 else "-")
        beyond = value > np.mean(axes.get_xlim())
        label = f" p{percent} {value:.0f} ms "
        axes.text(value, height * top, label, va="top", ha="right" if beyond else "left", fontsize=9, color=INK)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    quiet(axes)
    axes.set(xlabel="milliseconds from the image to the answer", ylabel="frames")
    return figure


def training_curves(curves: Sequence[TrainingCurve]) -> Figure:
    """Loss and validation AR@1 over the steps, a line for each of up to three runs."""
    figure = new_figure(9.0, 3.4)
    left, right = figure.subplots(1, 2)
    quiet(left, right)
    for number, curve in enumerate(curves):
        for axes, points, factor, marker in ((left, curve.loss, 1.0, ""), (right, curve.validation, 100.0, "o")):
            if points:
                steps, values = zip(*points, strict=True)
                line = [factor * value for value in values]
                axes.plot(steps, line, color=SERIES[number], marker=marker, ms=4, lw=1.5, label=curve.name)
    for axes, title in ((left, "training loss (sum of the run's own terms)"), (right, "AR@1 on validation, %")):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.grid(color=PALE)
        if not axes.lines:
            nothing(figure, axes, "nothing was logged")
    left.set_ylim(bottom=min(0.0, left.get_ylim()[0]))
    drawn = left if left.lines else right
    figure.legend(*drawn.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


def gallery(comparisons: Sequence[Comparison], columns: int = 4) -> Figure:
    """Queries, above, with their best matches, below, framed in the colour of the outcome."""
    rows = max(1, -(-len(comparisons) // columns))
    figure = new_figure(2.6 * columns, 4.5 * rows)
    grid = np.asarray(figure.subplots(2 * rows, columns, squeeze=False))
    for axes in grid.ravel():
        axes.axis("off")
    for number, item in enumerate(comparisons):
        row, column = divmod(number, columns)
        above, below = grid[2 * row, column], grid[2 * row + 1, column]
        _picture(above, item.query, item.outcome)
        above.set_title(f"{item.outcome}\n{item.caption}", fontsize=8, color=INK)
        if item.match is None:
            below.text(0.5, 0.5, "no match", ha="center", va="center", color=FAINT, transform=below.transAxes)
        else:
            _picture(below, item.match, item.outcome)
    if not comparisons:
        nothing(figure, grid[0, 0], "no frames")
    return figure


def new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def quiet(*row: Axes) -> None:
    """Frame and ticks that leave the data in front."""
    for axes in row:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["bottom", "left"]].set_color(FAINT)
        axes.tick_params(color=FAINT, labelcolor=INK, labelsize=9)
        axes.set_axisbelow(True)


def _picture(axes: Axes, image: NDArray[np.uint8], outcome: str) -> None:
    axes.axis("on")
    axes.imshow(image)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=OUTCOMES[outcome], linewidth=3)


def nothing(figure: Figure, axes: Axes, words: str) -> Figure:
    axes.text(0.5, 0.5, words, ha="center", va="center", color=FAINT, transform=axes.transAxes)
    axes.set(xticks=[], yticks=[])
    return figure
