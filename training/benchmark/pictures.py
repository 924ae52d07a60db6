"""The pictures of a suite's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from training.evaluation.plots import FAINT, INK, OUTCOMES, PALE, new_figure, nothing, quiet
from training.evaluation.precision import PrecisionRecall
from vpr_kd_ros.geometry import Floats

PALETTE = ("#1f2933", "#9aa5b1", "#e9a23b", "#d1495b", "#6a4c93", "#2e7d32", "#c27ba0", "#8d6e63", "#00838f", "#1f6f8b")
"""Teacher, plain student, then methods in turn."""


def recall_at_n(recalls: Mapping[str, Mapping[int, float]]) -> Figure:
    """Recall, in [0, 1], against the number of results, a line for each model."""
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    quiet(axes)
    for number, (name, by_n) in enumerate(recalls.items()):
        colour = PALETTE[number % len(PALETTE)]
        axes.plot(list(by_n), [100 * v for v in by_n.values()], marker="o", ms=3, lw=1.5, label=name, color=colour)
    axes.set(xlabel="results looked at", ylabel="recall@N, %")
    axes.grid(color=PALE)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    return figure


def precision_recall_curves(curves: Mapping[str, PrecisionRecall]) -> Figure:
    """Precision against recall of the best matches under one threshold, a line for each model."""
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    quiet(axes)
    for number, (name, curve) in enumerate(curves.items()):
        colour = PALETTE[number % len(PALETTE)]
        axes.plot(100 * curve.recall, 100 * curve.precision, lw=1.5, label=f"{name} ({curve.auc:.2f})", color=colour)
    axes.set(xlabel="recall, %", ylabel="precision, %", xlim=(0, 100), ylim=(0, 102))
    axes.grid(color=PALE)
    figure.legend(loc="outside right center", frameon=False, fontsize=8, title="area")
    return figure


def success_maps(positions: Floats, right: Mapping[str, NDArray[np.bool_]]) -> Figure:
    """The queries (Q, 2) metres from above, coloured by whether the best match is right, a picture for each model."""
    figure = new_figure(3.6 * max(len(right), 1), 3.9)
    row = np.atleast_1d(figure.subplots(1, max(len(right), 1), sharex=True, sharey=True))
    for axes, (name, mask) in zip(row, right.items(), strict=False):
        for outcome, chosen in (("wrong", ~mask), ("right", mask)):
            axes.scatter(*positions[chosen].T, s=14, color=OUTCOMES[outcome], label=outcome, lw=0)
        axes.set_title(f"{name}: {100 * mask.mean():.0f} % right", fontsize=10, color=INK)
        axes.set_aspect("equal", adjustable="box")
        axes.tick_params(labelsize=7, colors=FAINT)
        axes.spines[:].set_color(PALE)
    row[0].legend(frameon=False, fontsize=8)
    return figure


def distance_matrices(distances: Mapping[str, Floats]) -> Figure:
    """Descriptor distances between queries (rows) and database (columns) along a drive, a picture for each model."""
    figure = new_figure(3.6 * max(len(distances), 1), 3.9)
    row = np.atleast_1d(figure.subplots(1, max(len(distances), 1)))
    for axes, (name, matrix) in zip(row, distances.items(), strict=False):
        picture = axes.imshow(matrix, cmap="viridis", vmin=0, vmax=float(np.percentile(matrix, 99)))
        figure.colorbar(picture, ax=axes, shrink=0.7).ax.tick_params(labelsize=7)
        axes.set_title(name, fontsize=10, color=INK)
        axes.tick_params(labelsize=7)
    row[0].set_ylabel("query keyframe", fontsize=8)
    figure.supxlabel("database keyframe", fontsize=8)
    return figure


def saliency_gallery(
    queries: Sequence[NDArray[np.uint8]], heats: Mapping[str, Sequence[NDArray[np.float32]]]
) -> Figure:
    """Queries (H, W, 3), and below each where each model looks, (H, W) in [0, 1]."""
    columns = max(len(queries), 1)
    figure = new_figure(2.4 * columns, 1.9 * (1 + len(heats)))
    grid = np.asarray(figure.subplots(1 + len(heats), columns, squeeze=False))
    for axes in grid.ravel():
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    if not queries:
        return nothing(figure, grid[0, 0], "no pictures")
    for column, query in enumerate(queries):
        grid[0, column].imshow(query)
        for row, rows in enumerate(heats.values()):
            grid[1 + row, column].imshow(query)
            grid[1 + row, column].imshow(rows[column], cmap="inferno", alpha=0.55, vmin=0, vmax=1)
    for row, name in enumerate(["query", *heats]):
        grid[row, 0].set_ylabel(name, fontsize=9)
    return figure


def cost_bars(seconds: Mapping[str, float]) -> Figure:
    """Seconds a training step, a bar for each method."""
    figure = new_figure(6.4, 0.6 + 0.3 * max(len(seconds), 1))
    axes = figure.subplots()
    quiet(axes)
    bars = axes.barh(list(seconds), [1e3 * value for value in seconds.values()], color=PALETTE[-1], height=0.7)
    axes.bar_label(bars, [f"{1e3 * value:.0f}" for value in seconds.values()], fontsize=8, padding=2)
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds a step, validation included")
    return figure
