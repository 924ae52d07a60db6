"""A region with the cars of one traverse in it: what the sensors look at."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from training.simulation.mesh import Kind, Mesh, join
from training.simulation.rays import Caster, Hits
from training.simulation.town import Town
from training.simulation.vehicles import Traffic

F32 = NDArray[np.float32]


class Scene:
    """Town and traffic, frozen at a time that ``set_time`` moves.

    Attributes:
        town: the region.
        surfaces: of the town and the cars; what ``Hits.surface`` counts in.
    """

    def __init__(self, town: Town, traffic: Traffic) -> None:
        self.town = town
        self.surfaces = town.surfaces.joined(traffic.surfaces)
        self._traffic = traffic
        self._shift = len(town.surfaces)
        whole = join([town.mesh, traffic.parked.shifted(self._shift)])
        bare = self.surfaces.kind[whole.surface] != Kind.CROWN
        self._whole = Caster(whole)
        self._bare = Caster(Mesh(whole.triangles[bare], whole.surface[bare]))
        self._seconds = math.nan
        self.set_time(0.0)

    def set_time(self, seconds: float) -> None:
        """Put the moving cars where they are ``seconds`` after the start of the traverse."""
        if seconds == self._seconds:
            return
        self._seconds = seconds
        self._moving = Caster(self._traffic.moving_at(self.town, seconds).shifted(self._shift))

    def cast(self, origins: F32, directions: F32, crowns: bool = True) -> Hits:
        """First hits of rays (R, 3) along unit directions (R, 3); without ``crowns`` rays pass through foliage."""
        hits = (self._whole if crowns else self._bare).cast(origins, directions)
        hits.overlay(self._moving.cast(origins, directions))
        return hits

    def blocked(self, origins: F32, directions: F32, crowns: bool = True) -> NDArray[np.bool_]:
        """Whether anything lies on each ray, (R,) bool."""
        standing = self._whole if crowns else self._bare
        return standing.blocked(origins, directions) | self._moving.blocked(origins, directions)
