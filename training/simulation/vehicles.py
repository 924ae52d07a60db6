"""The cars of one traverse: parked ones at the kerb, and moving ones in both lanes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.simulation.mesh import BOX, Kind, Mesh, MeshBuilder, Surfaces, join
from training.simulation.town import ZONES, Town

PARKED_D_M = 4.6
LANE_D_M = 2.2
PAINTS = np.array(
    [
        (0.75, 0.75, 0.76),
        (0.12, 0.12, 0.13),
        (0.9, 0.9, 0.9),
        (0.55, 0.08, 0.08),
        (0.10, 0.18, 0.42),
        (0.35, 0.37, 0.36),
    ]
)


@dataclass(frozen=True)
class MovingCar:
    """A car that goes along a lane: ``s = start_m + speed_mps * t`` at ``offset_m`` to the left of the middle."""

    mesh: Mesh
    start_m: float
    speed_mps: float
    offset_m: float


@dataclass(frozen=True)
class Traffic:
    """All cars of a traverse; the meshes count their surfaces from 0 in ``surfaces``."""

    parked: Mesh
    moving: tuple[MovingCar, ...]
    surfaces: Surfaces

    def moving_at(self, town: Town, seconds: float) -> Mesh:
        """The moving cars where they are ``seconds`` after the start."""
        placed: list[Mesh] = []
        for car in self.moving:
            xy, yaw = town.road.at(car.start_m + car.speed_mps * seconds, car.offset_m)
            heading = float(yaw) + (np.pi if car.speed_mps < 0 else 0.0)
            placed.append(car.mesh.moved(float(xy[0]), float(xy[1]), heading))
        return join(placed)


def make_traffic(
    town: Town, rng: np.random.Generator, robot_start_m: float, robot_speed_mps: float, reverse: bool = False
) -> Traffic:
    """Cars for one traverse of a robot that starts at ``robot_start_m`` and drives ``robot_speed_mps``.

    ``reverse``: it drives towards smaller s, in the other lane.
    """
    way = -1.0 if reverse else 1.0
    builder = MeshBuilder()
    length = town.road.length_m
    models = [_model(builder, rng, lights=False) for _ in range(10)]
    driven = [_model(builder, rng, lights=True) for _ in range(6)]
    parked: list[Mesh] = []
    for side in (-1.0, 1.0):
        s = float(rng.uniform(0, 6))
        while s < length:
            zone = ZONES[town.zone_of_metre[int(s) % len(town.zone_of_metre)]]
            near_branch = np.any((np.abs(town.side_streets[:, 0] - s) < 6.5) & (town.side_streets[:, 1] == side))
            near_crossing = np.any(np.abs(town.crossings - s) < 5.0)
            if rng.random() < zone.parked and not near_branch and not near_crossing:
                xy, yaw = town.road.at(s, side * (PARKED_D_M + float(rng.normal(0, 0.08))))
                heading = float(yaw) + (np.pi if side > 0 else 0.0) + float(rng.normal(0, 0.03))
                parked.append(models[rng.integers(len(models))].moved(float(xy[0]), float(xy[1]), heading))
            s += float(rng.uniform(5.6, 7.5))
    moving: list[MovingCar] = []
    for _ in range(rng.integers(4, 9)):
        speed = -way * float(rng.uniform(7, 12))
        model = driven[rng.integers(len(driven))]
        moving.append(MovingCar(model, float(rng.uniform(0, length)), speed, way * LANE_D_M))
    if rng.random() < 0.6:
        # One car ahead in the robot's own lane, at the robot's speed, so that nobody drives through anybody.
        ahead = robot_start_m + way * float(rng.uniform(16, 45))
        moving.append(MovingCar(driven[rng.integers(len(driven))], ahead, way * robot_speed_mps, way * -1.6))
    # The builder holds the models' surfaces only; their triangles are placed here.
    _, surfaces = builder.build()
    return Traffic(join(parked), tuple(moving), surfaces)


def _model(builder: MeshBuilder, rng: np.random.Generator, lights: bool) -> Mesh:
    """A car or a van round the origin, facing +x; its surfaces go to ``builder``. ``lights``: lamps shine at night."""
    own = MeshBuilder()
    paint = builder.surface(Kind.PLAIN, "dynamic", PAINTS[rng.integers(len(PAINTS))] + rng.normal(0, 0.03, 3))
    glass = builder.surface(Kind.GLASS, "dynamic", (0.16, 0.19, 0.22))
    tyre = builder.surface(Kind.PLAIN, "dynamic", (0.06, 0.06, 0.06))
    head = builder.surface(Kind.HEADLAMP if lights else Kind.PLAIN, "dynamic", (0.9, 0.9, 0.85))
    tail = builder.surface(Kind.TAILLAMP if lights else Kind.PLAIN, "dynamic", (0.6, 0.05, 0.04))
    long, wide = float(rng.uniform(3.9, 4.8)), float(rng.uniform(1.7, 1.9))
    van = rng.random() < 0.2
    body = 1.75 if van else 0.62
    own.add(BOX, paint, (0, 0, 0.28), (long, wide, body))
    if van:
        own.add(BOX, glass, (long * 0.42, 0, 1.25), (long * 0.17, wide * 0.96, 0.62))
    else:
        own.add(BOX, glass, (-0.12 * long, 0, 0.88), (long * 0.5, wide * 0.88, 0.5))
        own.add(BOX, paint, (-0.12 * long, 0, 1.36), (long * 0.44, wide * 0.86, 0.07))
    for x in (-0.31, 0.31):
        own.add(BOX, tyre, (x * long, 0, 0.0), (0.62, wide * 1.02, 0.6))
    for y in (-0.36, 0.36):
        own.add(BOX, head, (long / 2, y * wide, 0.62), (0.06, 0.3, 0.15))
        own.add(BOX, tail, (-long / 2, y * wide, 0.66), (0.06, 0.3, 0.17))
    return own.build()[0]
