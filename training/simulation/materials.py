"""What surfaces look like where they are hit: reflectance and own light."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.simulation.conditions import Condition
from training.simulation.mesh import Kind, Surfaces, linear
from training.simulation.noise import cells, hash_unit
from training.simulation.rays import Hits
from training.simulation.town import PAVEMENT_EDGE_M, ROAD_HALF_M, SIDE_STREET_HALF_M, ZONES, Town

F32 = NDArray[np.float32]

ASPHALT, KERB, PAVING, LAWN, PAINT = (
    linear(rgb)
    for rgb in [(0.33, 0.33, 0.35), (0.62, 0.61, 0.59), (0.55, 0.54, 0.53), (0.30, 0.40, 0.19), (0.88, 0.88, 0.86)]
)
SNOW = linear((0.95, 0.96, 0.98))
WARM = np.array([1.0, 0.72, 0.36], dtype=np.float32)
RED = np.array([1.2, 0.05, 0.03], dtype=np.float32)
LEAVES = linear([(0.80, 0.52, 0.12), (0.70, 0.28, 0.10), (0.62, 0.45, 0.18), (0.85, 0.68, 0.20)])
TWIGS = linear((0.36, 0.31, 0.27))
LAWN_OF_ZONE = np.array([zone.lawn for zone in ZONES], dtype=np.float32)


@dataclass
class Paint:
    """Reflectance (R, 3), own light (R, 3), and how much of it shines like wet ground or glass (R,), all float32."""

    albedo: F32
    emission: F32
    gloss: F32


@dataclass(frozen=True)
class Spots:
    """What R rays hit; every one must have hit something.

    Attributes:
        town: whose ground it is.
        surfaces: what ``hits.surface`` counts in.
        hits: R hits.
        points: (R, 3) float32 where, metres.
        footprint: (R,) float32 size of a pixel there, metres; detail smaller than that is averaged away.
        seed: of the traverse: decides which windows are lit.
    """

    town: Town
    surfaces: Surfaces
    hits: Hits
    points: F32
    footprint: F32
    seed: int


def paint(spots: Spots, condition: Condition) -> Paint:
    """Paint of what was hit, in the season and weather of ``condition``."""
    surfaces, hits, points = spots.surfaces, spots.hits, spots.points
    kind = surfaces.kind[hits.surface]
    result = Paint(surfaces.colour[hits.surface].copy(), np.zeros_like(points), np.zeros(len(points), dtype=np.float32))
    snow = condition.snow * np.clip((hits.normal[:, 2] - 0.35) * 3, 0, 1)
    for number, fill in ((Kind.GROUND, _ground), (Kind.FACADE, _facade), (Kind.CROWN, _crown)):
        rows = np.flatnonzero(kind == number)
        if len(rows):
            fill(result, snow, rows, spots, condition)
    result.gloss[kind == Kind.GLASS] = 0.6
    if condition.lamps > 0:
        result.emission[kind == Kind.HEADLAMP] = np.float32(5.0)
        result.emission[kind == Kind.TAILLAMP] = RED
        result.emission[kind == Kind.STREETLAMP] = WARM * np.float32(6.0 * min(1.0, 2 * condition.lamps))
    flecks = 0.85 + 0.3 * hash_unit(cells(points[:, 0] * 1.5), cells(points[:, 1] * 1.5), cells(points[:, 2] * 1.5))
    plain = kind == Kind.PLAIN
    result.albedo[plain] *= flecks[plain, None]
    result.albedo += (SNOW - result.albedo) * snow[:, None]
    return result


def _ground(result: Paint, snow: F32, rows: NDArray[np.int64], spots: Spots, condition: Condition) -> None:
    town = spots.town
    xy, pixel = spots.points[rows, :2], spots.footprint[rows]
    s, d = town.road.locate(xy)
    across = np.abs(d)
    length = np.float32(town.road.length_m)
    coarse = hash_unit(cells(xy[:, 0] / 3), cells(xy[:, 1] / 3), 7)
    fine = hash_unit(cells(xy[:, 0] * 4), cells(xy[:, 1] * 4), 8)
    texture = 0.8 + 0.2 * coarse + 0.25 * (fine - 0.5) * np.clip(1 - pixel, 0, 1)
    lawn = LAWN_OF_ZONE[town.zone_of_metre[s.astype(np.int32) % len(town.zone_of_metre)]]
    colour = np.where((lawn > 0)[:, None], LAWN, PAVING)
    paved = across < PAVEMENT_EDGE_M
    slabs = np.clip(0.12 / np.maximum(pixel, 0.1), 0, 1) * ((s % 1.0 < 0.12) | (across % 1.0 < 0.1))
    colour = np.where(paved[:, None], PAVING * (1 - 0.3 * slabs[:, None]), colour)
    colour[across < ROAD_HALF_M + 0.25] = KERB
    street = across < ROAD_HALF_M
    for start, side in town.side_streets:
        along = (s - start + length / 2) % length - length / 2
        street |= (np.abs(along) < SIDE_STREET_HALF_M) & (d * side > 0) & (across < 60)
    colour[street] = ASPHALT
    dash = (across < 0.09) & (s % 6.0 < 3.0)
    zebra = np.zeros_like(dash)
    for start in town.crossings:
        zebra |= (np.abs((s - start + length / 2) % length - length / 2) < 1.7) & (d % 1.1 < 0.55)
    marks = street & (across < ROAD_HALF_M - 0.3) & (dash | zebra)
    colour[marks] = PAINT
    result.albedo[rows] = colour * texture[:, None]
    if condition.autumn > 0:
        # Fallen leaves, more of them away from the wheels.
        fallen = hash_unit(cells(xy[:, 0] * 7), cells(xy[:, 1] * 7), 9)
        covered = fallen < condition.autumn * np.where(street, 0.08, 0.4)
        result.albedo[rows[covered]] = LEAVES[(fallen[covered] * 997).astype(np.int32) % len(LEAVES)]
    if condition.snow > 0:
        tracks = street & (np.abs(np.abs(across - 1.9) - 0.75) < 0.28)
        snow[rows] = condition.snow * np.where(tracks, 0.35, np.where(street, 0.8, 1.0)) * (0.85 + 0.15 * coarse)
    result.gloss[rows] = condition.wet * np.where(street, 1.0, 0.5)
    result.albedo[rows] *= np.float32(1 - 0.45 * condition.wet)


def _facade(result: Paint, snow: F32, rows: NDArray[np.int64], spots: Spots, condition: Condition) -> None:
    surface, points = spots.hits.surface[rows], spots.points[rows]
    normal, height = spots.hits.normal[rows], points[:, 2]
    spacing, storey, width, tall, shop, roughness, tone = spots.surfaces.windows[surface].T
    number = surface.astype(np.uint32)
    along = points[:, 1] * normal[:, 0] - points[:, 0] * normal[:, 1] + 50 * hash_unit(number, 1)
    ground_floor = (shop > 0) & (height < storey)
    width = np.where(ground_floor, 0.86, width)
    tall = np.where(ground_floor, 0.7, tall)
    column, row = cells(along / spacing), cells(height / storey)
    from_middle = np.abs(along / spacing % 1.0 - 0.5) * 2
    from_sill = np.abs(height / storey % 1.0 - 0.52) * 2
    # Windows fade into their mean where a pixel covers more than about one of them.
    sharp = np.clip(1.6 - 1.2 * spots.footprint[rows] / (0.5 * spacing), 0, 1)
    inside = ((from_middle < width) & (from_sill < tall)).astype(np.float32)
    glass = sharp * inside + (1 - sharp) * width * tall
    frame = sharp * ((from_middle < width + 0.14) & (from_sill < tall + 0.14)) * (1 - inside)
    grain = hash_unit(cells(along * 2), cells(height * 3), number)
    wall = result.albedo[rows] * (1 + roughness * (grain - 0.5) * 2)[:, None]
    wall *= (1 - 0.35 * np.clip(1 - height / 1.2, 0, 1))[:, None]
    wall *= (1 - 2 * roughness * (height % storey < 0.2))[:, None]
    trim = np.where(hash_unit(number, 2) < 0.5, 1.35, 0.7)
    wall = np.clip(wall * (1 + (trim - 1) * frame)[:, None], 0, 0.95)
    pane = tone * (0.6 + 0.8 * hash_unit(column, row, number))
    pane_colour = pane[:, None] * np.array([0.85, 0.95, 1.1], dtype=np.float32)
    result.albedo[rows] = wall + (pane_colour - wall) * glass[:, None]
    result.gloss[rows] = 0.5 * glass
    if condition.lit_windows > 0:
        # Half of the choice stays from traverse to traverse, as habits do.
        habit, today = hash_unit(column, row, number, 3), hash_unit(column, row, number, spots.seed & 0xFFFF)
        lit = (0.5 * habit + 0.5 * today < 0.5 * (2 * condition.lit_windows) ** 0.5) | (ground_floor & (habit < 0.6))
        glow = glass * lit * (0.35 + 0.65 * hash_unit(column, row, number, 4))
        result.emission[rows] = glow[:, None] * WARM * np.float32(0.55)


def _crown(result: Paint, snow: F32, rows: NDArray[np.int64], spots: Spots, condition: Condition) -> None:
    leaf = hash_unit(*(cells(spots.points[rows, axis] * 2.5) for axis in range(3)), 5)
    colour = result.albedo[rows]
    tree = hash_unit(spots.hits.surface[rows].astype(np.uint32), 6)
    turned = LEAVES[(tree * len(LEAVES)).astype(np.int32)]
    colour = colour + (turned - colour) * np.float32(condition.autumn)
    if condition.snow > 0:
        colour = np.broadcast_to(TWIGS, colour.shape)
        snow[rows] = condition.snow * 0.55 * (leaf > 0.5)
    result.albedo[rows] = colour * (0.45 + 1.0 * leaf)[:, None]
