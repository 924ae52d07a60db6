"""Look-alike stretches: blocks of a region whose buildings are near-copies of another block's."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.simulation.mesh import Kind, Mesh, MeshBuilder
from training.simulation.road import Road
from vpr_kd_ros.geometry import Floats

BLOCK_M = 80.0
"""Length of a block, about: the street is cut into equal ones."""
MISSING, REPAINTED = 0.1, 0.2
"""Share of the plots of a copy that stay empty, and share of the others whose walls have a colour of their own."""
NEAREST_M = 6.5
"""What a bend brings nearer than this to the middle of the street is left out of a copy, metres."""


@dataclass(frozen=True)
class Plot:
    """What stands together beside the street at ``s`` metres: the builder's parts ``first`` to ``last - 1``."""

    s: float
    first: int
    last: int


@dataclass(frozen=True)
class LookAlike:
    """A stretch of ``length_m`` that begins at ``original_m``, and its near-copy that begins at ``copy_m``, metres."""

    original_m: float
    copy_m: float
    length_m: float

    @property
    def shift_m(self) -> float:
        """From the original to the copy along the street."""
        return self.copy_m - self.original_m

    def in_original(self, s: Floats) -> NDArray[np.bool_]:
        """Whether each s lies in the original stretch."""
        return np.asarray((s >= self.original_m) & (s < self.original_m + self.length_m))

    def in_copy(self, s: Floats) -> NDArray[np.bool_]:
        """Whether each s lies in the copy."""
        return np.asarray((s >= self.copy_m) & (s < self.copy_m + self.length_m))


def choose_look_alikes(rng: np.random.Generator, length_m: float, share: float) -> tuple[LookAlike, ...]:
    """Pairs of blocks, each in one pair at most, so that ``share`` of the street, about, are copies."""
    blocks = int(length_m / BLOCK_M)
    count = min(max(1, round(share * blocks)), blocks // 2) if share > 0 else 0
    block_m = length_m / blocks if count else 0.0
    order = rng.permutation(blocks)
    return tuple(
        LookAlike(float(original * block_m), float(copy * block_m), block_m)
        for original, copy in zip(order[:count], order[count : 2 * count], strict=True)
    )


def copy_metres(values: NDArray[np.int32], pair: LookAlike) -> NDArray[np.int32]:
    """A value per metre of the street, (M,), with the original's in place of the copy's."""
    metres = np.arange(len(values), dtype=np.float64)
    inside = pair.in_copy(metres)
    result = values.copy()
    result[inside] = values[(metres[inside] - pair.shift_m).astype(int) % len(values)]
    return result


def copy_plots(
    builder: MeshBuilder,
    road: Road,
    plots: Sequence[Plot],
    pairs: Sequence[LookAlike],
    rng: np.random.Generator,
    walls: Floats,
) -> None:
    """Empty the copies' plots and put the originals' there: each is moved rigidly with the street's own axes.

    Args:
        builder: holds the plots' parts; they are replaced.
        road: the street.
        plots: all of the street.
        pairs: what becomes a copy of what.
        rng: decides which plots stay empty and which are repainted.
        walls: (N, 3) display colours of repainted walls.
    """
    s = np.array([plot.s for plot in plots])
    gone: set[int] = set()
    copies: list[Mesh] = []
    for pair in pairs:
        for plot in itertools.compress(plots, pair.in_copy(s)):
            gone.update(range(plot.first, plot.last))
        for plot in itertools.compress(plots, pair.in_original(s)):
            missing, repaint = rng.random(2) < (MISSING, REPAINTED)
            colour = rng.choice(walls)
            moved = _moved(builder, road, plot, pair.shift_m)
            if not missing:
                copies += _repainted(builder, moved, colour) if repaint else moved
    builder.parts = [part for number, part in enumerate(builder.parts) if number not in gone] + copies


def _moved(builder: MeshBuilder, road: Road, plot: Plot, shift_m: float) -> list[Mesh]:
    """The plot's parts that far along the street; nothing where a bend would bring them into it."""
    (here, yaw), (there, yaw_there) = road.at(plot.s), road.at(plot.s + shift_m)
    turn = float(yaw_there - yaw)
    cos, sin = np.cos(turn), np.sin(turn)
    x, y = there - np.array([[cos, -sin], [sin, cos]]) @ here
    before = builder.parts[plot.first : plot.last]
    after = [part.moved(float(x), float(y), turn) for part in before]
    return after if _nearest(road, after) >= min(NEAREST_M, _nearest(road, before)) else []


def _nearest(road: Road, parts: Sequence[Mesh]) -> float:
    corners = [part.triangles[..., :2].reshape(-1, 2).astype(np.float64) for part in parts]
    return min((road.clearance(xy) for xy in corners), default=np.inf)


def _repainted(builder: MeshBuilder, parts: Sequence[Mesh], colour: Floats) -> list[Mesh]:
    """The same parts; their facades share a new surface of that colour each."""
    used = sorted({int(number) for part in parts for number in np.unique(part.surface)})
    renumber = {n: builder.repainted(n, colour) for n in used if builder.kind(n) == Kind.FACADE}
    return [Mesh(p.triangles, np.array([renumber.get(int(n), n) for n in p.surface], dtype=np.int32)) for p in parts]
