"""The street of a region: a closed, gently winding loop."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from vpr_kd_ros.geometry import Floats

STEP_M = 0.25
CELL_M = 1.0
MARGIN_M = 120.0


class Road:
    """A wobbly circle of given length, with coordinates along it (s, metres) and across it (d, metres, left positive).

    Args:
        rng: decides the shape.
        length_m: of the loop.
        wobble: relative size of the waves in the radius.
    """

    def __init__(self, rng: np.random.Generator, length_m: float, wobble: float = 0.16) -> None:
        self.length_m = length_m
        angles = np.linspace(0, 2 * np.pi, 20001)
        radius = np.ones_like(angles)
        for harmonic in range(2, 6):
            radius += wobble / harmonic * rng.uniform(0.5, 1.0) * np.cos(harmonic * angles + rng.uniform(0, 2 * np.pi))
        outline = np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)
        travelled = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(outline, axis=0), axis=1))])
        outline *= length_m / travelled[-1]
        self._s = np.linspace(0, length_m, max(round(length_m / STEP_M), 16) + 1)
        even = travelled * (length_m / travelled[-1])
        self._xy = np.stack([np.interp(self._s, even, outline[:, axis]) for axis in (0, 1)], axis=1)
        slope = np.gradient(np.concatenate([self._xy[-3:-1], self._xy, self._xy[1:3]]), axis=0)[2:-2]
        # Unwrapped and a whole turn longer at the end, so that it can be interpolated over the seam.
        self._yaw = np.unwrap(np.arctan2(slope[:, 1], slope[:, 0]))
        self._tangent = (slope / np.linalg.norm(slope, axis=1, keepdims=True)).astype(np.float32)
        self._corner = self._xy.min(axis=0) - MARGIN_M
        shape = np.ceil((self._xy.max(axis=0) + MARGIN_M - self._corner) / CELL_M).astype(int)
        cells = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1).reshape(-1, 2)
        self._tree = cKDTree(self._xy[:-1])
        _, nearest = self._tree.query(self._corner + (cells + 0.5) * CELL_M)
        self._nearest = nearest.reshape(shape).astype(np.int32)

    @property
    def extent(self) -> tuple[Floats, Floats]:
        """Lower and upper corner (2,) of the square that holds the loop, metres."""
        return self._xy.min(axis=0), self._xy.max(axis=0)

    def at(self, s: Floats | float, d: Floats | float = 0.0) -> tuple[Floats, Floats]:
        """Position (..., 2) in metres and heading (...) in radians at ``s`` along, ``d`` to the left."""
        s = np.asarray(s, dtype=np.float64)
        turns, along = np.divmod(s, self.length_m)
        yaw = np.interp(along, self._s, self._yaw) + 2 * np.pi * turns
        xy = np.stack([np.interp(along, self._s, self._xy[:, axis]) for axis in (0, 1)], axis=-1)
        left = np.stack([-np.sin(yaw), np.cos(yaw)], axis=-1)
        return xy + np.asarray(d, dtype=np.float64)[..., None] * left, yaw

    def clearance(self, xy: Floats) -> float:
        """Smallest distance of the points (N, 2) from the middle of the street, metres."""
        return float(self._tree.query(xy)[0].min())

    def locate(self, xy: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Coordinates s and d, each (N,) float32 metres, of points (N, 2) near the street."""
        cell = ((xy - self._corner.astype(np.float32)) / np.float32(CELL_M)).astype(np.int32)
        cell = np.clip(cell, 0, np.array(self._nearest.shape, dtype=np.int32) - 1)
        sample = self._nearest[cell[:, 0], cell[:, 1]]
        offset = xy - self._xy.astype(np.float32)[sample]
        tangent = self._tangent[sample]
        s = self._s.astype(np.float32)[sample] + np.einsum("ij,ij->i", offset, tangent)
        d = tangent[:, 0] * offset[:, 1] - tangent[:, 1] * offset[:, 0]
        return s, d
