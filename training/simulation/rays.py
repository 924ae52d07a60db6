"""Shooting rays at a mesh, with Embree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from numpy.typing import NDArray

from training.simulation.mesh import Mesh

F32 = NDArray[np.float32]


@dataclass
class Hits:
    """What R rays hit first.

    Attributes:
        distance: (R,) float32 metres along unit directions, inf where nothing was hit.
        surface: (R,) int32, -1 where nothing was hit.
        normal: (R, 3) float32 unit normal on the side of the ray's origin, 0 where nothing was hit.
    """

    distance: F32
    surface: NDArray[np.int32]
    normal: F32

    def overlay(self, other: Hits) -> None:
        """Keep the nearer of both hits for each ray, in place."""
        self.replace(np.flatnonzero(other.distance < self.distance), other)

    def replace(self, rows: NDArray[np.int64], other: Hits, from_rows: NDArray[np.int64] | None = None) -> None:
        """Take ``rows`` from ``other`` (its rows ``from_rows``, the same ones if not given), in place."""
        source = rows if from_rows is None else from_rows
        self.distance[rows] = other.distance[source]
        self.surface[rows] = other.surface[source]
        self.normal[rows] = other.normal[source]


class Caster:
    """A mesh that rays can be shot at."""

    def __init__(self, mesh: Mesh) -> None:
        triangles = np.ascontiguousarray(mesh.triangles)
        normal = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
        self._normal = (normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)).astype(np.float32)
        self._corner = triangles[:, 0]
        self._surface = mesh.surface
        self._scene: EmbreeScene | None = None
        if len(triangles):
            self._scene = EmbreeScene()
            TriangleMesh(self._scene, triangles)

    def cast(self, origins: F32, directions: F32) -> Hits:
        """First hits of rays from ``origins`` (R, 3) metres along unit ``directions`` (R, 3)."""
        hits = Hits(
            np.full(len(directions), np.inf, dtype=np.float32),
            np.full(len(directions), -1, dtype=np.int32),
            np.zeros((len(directions), 3), dtype=np.float32),
        )
        if self._scene is None or not len(directions):
            return hits
        triangle = self._scene.run(origins, directions, query="INTERSECT")
        rows = np.flatnonzero(triangle >= 0)
        triangle = triangle[rows]
        normal = self._normal[triangle]
        # The distance follows from the plane of the triangle; asking Embree for it takes twice as long.
        along = np.einsum("ij,ij->i", directions[rows], normal)
        gap = np.einsum("ij,ij->i", self._corner[triangle] - origins[rows], normal)
        hits.distance[rows] = gap / np.where(np.abs(along) < 1e-9, 1e-9, along)
        hits.surface[rows] = self._surface[triangle]
        hits.normal[rows] = np.where(along[:, None] > 0, -normal, normal)
        return hits

    def blocked(self, origins: F32, directions: F32) -> NDArray[np.bool_]:
        """Whether anything lies on each ray, (R,) bool."""
        if self._scene is None or not len(directions):
            return np.zeros(len(directions), dtype=bool)
        return np.asarray(self._scene.run(origins, directions, query="OCCLUDED") != -1)
