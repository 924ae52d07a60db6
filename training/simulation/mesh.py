"""Triangle soups with a surface for each triangle, and the shapes they are put together from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray

from training.sessions import CLASSES

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

CLASS_OF = {name: number for number, name in enumerate(CLASSES)}


class Kind(IntEnum):
    """How a surface is shaded."""

    PLAIN = 0
    GROUND = 1
    FACADE = 2
    CROWN = 3
    GLASS = 4
    HEADLAMP = 5
    TAILLAMP = 6
    STREETLAMP = 7


@dataclass(frozen=True)
class Windows:
    """The windows of a facade.

    Attributes:
        spacing_m, storey_m: from window to window along the wall, from row to row.
        width, height: of a window, as fractions of spacing and storey.
        shop: whether the ground floor is a shop window.
        roughness: contrast of the wall's texture.
        tone: brightness of the glass.
    """

    spacing_m: float = 3.0
    storey_m: float = 3.0
    width: float = 0.0
    height: float = 0.0
    shop: float = 0.0
    roughness: float = 0.1
    tone: float = 0.1


@dataclass
class Surfaces:
    """What the triangles are made of, one row per surface.

    ``kind`` and ``category`` (index into ``CLASSES``) are (S,) uint8, ``colour`` (S, 3) float32 linear RGB,
    ``windows`` (S, 7) float32 in the order of ``Windows``.
    """

    kind: NDArray[np.uint8]
    category: NDArray[np.uint8]
    colour: F32
    windows: F32

    def __len__(self) -> int:
        return len(self.kind)

    def joined(self, other: Surfaces) -> Surfaces:
        """This table followed by ``other``."""
        return Surfaces(
            *(
                np.concatenate([getattr(self, name), getattr(other, name)])
                for name in ("kind", "category", "colour", "windows")
            )
        )


@dataclass(frozen=True)
class Mesh:
    """Triangles (T, 3, 3) float32 in metres, and the surface of each, (T,) int32."""

    triangles: F32
    surface: I32

    def shifted(self, by: int) -> Mesh:
        """The same triangles with ``by`` added to the number of their surface."""
        return Mesh(self.triangles, self.surface + np.int32(by))

    def moved(self, x: float, y: float, yaw: float) -> Mesh:
        """The mesh turned by ``yaw`` radians about z and then shifted by (x, y) metres."""
        cos, sin = np.cos(yaw), np.sin(yaw)
        turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=np.float32)
        return Mesh(self.triangles @ turn.T + np.array([x, y, 0], dtype=np.float32), self.surface)


def join(meshes: Iterable[Mesh]) -> Mesh:
    """All meshes in one; no meshes give an empty one."""
    parts = list(meshes)
    return Mesh(
        np.concatenate([np.zeros((0, 3, 3), dtype=np.float32), *(part.triangles for part in parts)]),
        np.concatenate([np.zeros(0, dtype=np.int32), *(part.surface for part in parts)]),
    )


def linear(rgb: Any) -> F32:
    """Linear light from display RGB in [0, 1]."""
    return np.asarray(np.asarray(rgb, dtype=np.float32) ** np.float32(2.2))


def _box() -> F32:
    corners = np.asarray(trimesh.creation.box(extents=(1, 1, 1)).triangles, dtype=np.float32)
    return np.asarray(corners + np.array([0, 0, 0.5], dtype=np.float32))


def _prism() -> F32:
    corners = [(-0.5, -0.5, 0), (0.5, -0.5, 0), (0.5, 0.5, 0), (-0.5, 0.5, 0), (-0.5, 0, 1), (0.5, 0, 1)]
    faces = [(0, 1, 5), (0, 5, 4), (2, 3, 4), (2, 4, 5), (1, 2, 5), (3, 0, 4)]
    return np.asarray(np.array(corners, dtype=np.float32)[np.array(faces)])


BOX = _box()
"""Unit box standing on z = 0, (12, 3, 3)."""
PRISM = _prism()
"""A gable roof over the unit square: ridge along x at z = 1, (6, 3, 3)."""
BALL = np.asarray(trimesh.creation.icosphere(subdivisions=1).triangles, dtype=np.float32)
"""Sphere of radius 1 round the origin, (80, 3, 3)."""


@dataclass
class MeshBuilder:
    """Collects shapes and the surfaces they are made of.

    Attributes:
        parts: the shapes placed so far, in the map frame.
    """

    parts: list[Mesh] = field(default_factory=list)
    _rows: list[tuple[int, int, F32, Windows]] = field(default_factory=list)

    def surface(self, kind: Kind, category: str, rgb: Any, windows: Windows | None = None) -> int:
        """A new surface of display colour ``rgb`` in [0, 1]; returns its number."""
        colour = linear(np.clip(rgb, 0, 1))
        self._rows.append((int(kind), CLASS_OF[category], colour, windows or Windows()))
        return len(self._rows) - 1

    def repainted(self, surface: int, rgb: Any) -> int:
        """A new surface like ``surface`` in another display colour; returns its number."""
        kind, category, _, windows = self._rows[surface]
        self._rows.append((kind, category, linear(np.clip(rgb, 0, 1)), windows))
        return len(self._rows) - 1

    def kind(self, surface: int) -> Kind:
        """How a surface is shaded."""
        return Kind(self._rows[surface][0])

    def add(self, shape: F32, surface: int, centre: Any, size: Any, yaw: float = 0.0) -> None:
        """Place a template, scaled by ``size`` (3,), turned by ``yaw`` about z and moved to ``centre`` (3,) metres."""
        cos, sin = np.cos(yaw), np.sin(yaw)
        turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=np.float32)
        placed = (shape * np.asarray(size, dtype=np.float32)) @ turn.T + np.asarray(centre, dtype=np.float32)
        self.parts.append(Mesh(placed.astype(np.float32), np.full(len(shape), surface, dtype=np.int32)))

    def build(self) -> tuple[Mesh, Surfaces]:
        """The mesh and its surfaces; either may be empty."""
        names = ("spacing_m", "storey_m", "width", "height", "shop", "roughness", "tone")
        surfaces = Surfaces(
            np.array([row[0] for row in self._rows], dtype=np.uint8),
            np.array([row[1] for row in self._rows], dtype=np.uint8),
            np.array([row[2] for row in self._rows], dtype=np.float32).reshape(-1, 3),
            np.array([[float(getattr(row[3], n)) for n in names] for row in self._rows], dtype=np.float32).reshape(
                -1, 7
            ),
        )
        return join(self.parts), surfaces
