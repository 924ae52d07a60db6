"""Light: sun and shadows, sky, lamps, haze, and what they make of the surfaces."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.simulation.conditions import Condition
from training.simulation.materials import Spots, paint
from training.simulation.mesh import CLASS_OF, Kind
from training.simulation.noise import cells, hash_unit, smooth_noise
from training.simulation.rays import Hits
from training.simulation.scene import Scene
from vpr_kd_ros.geometry import Pose

F32 = NDArray[np.float32]

SKY_DISTANCE_M = 300.0
LAMP_COLOUR = np.array([1.0, 0.74, 0.42], dtype=np.float32)
HEADLIGHT_COLOUR = np.array([1.0, 0.96, 0.86], dtype=np.float32)


@dataclass(frozen=True)
class Look:
    """What differs between two traverses under the same condition.

    Attributes:
        sun: (3,) float32, unit direction to the sun.
        gain: (3,) float32, exposure and white balance, around 1.
        seed: of clouds and of who has the light on.
    """

    sun: F32
    gain: F32
    seed: int


def draw_look(condition: Condition, rng: np.random.Generator) -> Look:
    """Sun direction, exposure, white balance and seed of a traverse."""
    azimuth, elevation = rng.uniform(-np.pi, np.pi), rng.uniform(*condition.sun_elevation)
    sun = (np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation))
    gain = np.exp(rng.normal(0, 0.12)) * np.exp(rng.normal(0, 0.04, 3))
    return Look(np.array(sun, dtype=np.float32), gain.astype(np.float32), int(rng.integers(1 << 31)))


def radiance(
    scene: Scene, condition: Condition, look: Look, base: Pose, origins: F32, directions: F32, pixel_angle: float
) -> tuple[F32, NDArray[np.uint8]]:
    """Light that comes back along camera rays.

    Args:
        scene: the world.
        condition: light and weather.
        look: of this traverse.
        base: pose of the robot, whose headlights shine.
        origins, directions: (R, 3) float32, map frame, unit directions.
        pixel_angle: angle between neighbouring rays, radians.

    Returns:
        Linear RGB (R, 3) float32, and the class of each ray (R,) uint8, indices into ``CLASSES``.
    """
    hits = _see(scene, condition, origins, directions)
    rgb = np.empty_like(directions)
    above = np.flatnonzero(hits.surface < 0)
    rgb[above] = _sky(condition, look, directions[above])
    category = np.full(len(directions), CLASS_OF["sky"], dtype=np.uint8)
    rows = np.flatnonzero(hits.surface >= 0)
    if len(rows):
        seen = Hits(hits.distance[rows], hits.surface[rows], hits.normal[rows])
        points = origins[rows] + directions[rows] * seen.distance[:, None]
        category[rows] = scene.surfaces.category[seen.surface]
        footprint = seen.distance * np.float32(pixel_angle)
        spots = Spots(scene.town, scene.surfaces, seen, points, footprint, look.seed)
        material = paint(spots, condition)
        light = _light(scene, condition, look, base, origins[0], points, seen.normal)
        solid = material.albedo * light + material.emission
        grazing = 1 - np.abs(np.einsum("ij,ij->i", seen.normal, directions[rows]))
        mirror = (material.gloss * (0.06 + 0.6 * grazing**6))[:, None]
        mirrored = np.asarray(condition.horizon, dtype=np.float32)
        rgb[rows] = solid + (mirrored - solid) * mirror
    distance = np.minimum(hits.distance, np.float32(SKY_DISTANCE_M))
    clear = np.exp(-np.float32(condition.haze) * distance)[:, None]
    air = np.asarray(condition.horizon, dtype=np.float32)
    return np.asarray(air + (rgb - air) * clear, dtype=np.float32), category


def _see(scene: Scene, condition: Condition, origins: F32, directions: F32) -> Hits:
    """First hits, with holes between leaves or twigs through which the ray goes on."""
    hits = scene.cast(origins, directions)
    rows = np.flatnonzero((hits.surface >= 0) & (scene.surfaces.kind[hits.surface] == Kind.CROWN))
    points = origins[rows] + directions[rows] * hits.distance[rows, None]
    filled = hash_unit(*(cells(points[:, axis] * 7.0) for axis in range(3)), 11)
    # Crowns are dense in the middle and torn at the rim.
    facing = np.abs(np.einsum("ij,ij->i", hits.normal[rows], directions[rows]))
    rows = rows[filled >= condition.foliage + np.float32(0.35) * (facing - np.float32(0.25))]
    if len(rows):
        hits.replace(rows, scene.cast(origins[rows], directions[rows], crowns=False), np.arange(len(rows)))
    return hits


def _sky(condition: Condition, look: Look, directions: F32) -> F32:
    up = np.clip(directions[:, 2], 0.0, 1.0)
    horizon, zenith = (np.asarray(c, dtype=np.float32) for c in (condition.horizon, condition.zenith))
    rgb = horizon + (zenith - horizon) * np.sqrt(up)[:, None]
    rows = np.flatnonzero(directions[:, 2] > 0.02)
    if condition.clouds > 0 and len(rows):
        d = directions[rows]
        u, v = d[:, 0] / (d[:, 2] + 0.12), d[:, 1] / (d[:, 2] + 0.12)
        thickness = smooth_noise(u * 1.3, v * 1.3, look.seed & 0xFFFF)
        cover = np.clip((thickness - (0.85 - 0.6 * condition.clouds)) * 3.5, 0, 1)[:, None]
        cloud = (0.75 + 0.5 * thickness)[:, None] * (
            0.6 * horizon + 0.5 * np.asarray(condition.ambient, dtype=np.float32)
        )
        rgb[rows] += (cloud - rgb[rows]) * (0.85 * cover)
    if max(condition.sun) > 0:
        towards = np.clip(directions @ look.sun, 0, 1)
        # Twelfth and 768th power by squaring: a wide glow and the disc.
        wide = (towards**2) ** 2
        wide = wide * wide * wide
        glow = 0.5 * wide + 6.0 * (((wide**2) ** 2) ** 2) ** 8
        rgb += glow[:, None] * np.asarray(condition.sun, dtype=np.float32) * 0.5
    return rgb.astype(np.float32)


def _light(scene: Scene, condition: Condition, look: Look, base: Pose, eye: F32, points: F32, normal: F32) -> F32:
    """Light (R, 3) that falls on the points."""
    # Low corners see less of the sky: a cheap stand-in for what a full light simulation would darken.
    openness = (0.62 + 0.38 * normal[:, 2]) * (0.8 + 0.2 * np.clip(points[:, 2] / 4.0, 0, 1))
    light = openness[:, None] * np.asarray(condition.ambient, dtype=np.float32)
    if max(condition.sun) > 0:
        facing = normal @ look.sun
        rows = np.flatnonzero(facing > 0.0)
        starts = points[rows] + normal[rows] * np.float32(0.03)
        towards = np.broadcast_to(look.sun, starts.shape).copy()
        free = ~scene.blocked(starts, towards, crowns=condition.foliage > 0.5)
        light[rows] += (facing[rows] * free)[:, None] * np.asarray(condition.sun, dtype=np.float32)
    if condition.lamps > 0:
        light += condition.lamps * (_street_lamps(scene, eye, points, normal) + _headlights(base, points, normal))
    return np.asarray(light, dtype=np.float32)


def _street_lamps(scene: Scene, eye: F32, points: F32, normal: F32) -> F32:
    lamps = scene.town.lamps
    near = np.argsort(np.sum((lamps - eye) ** 2, axis=1), kind="stable")[:8]
    total = np.zeros(len(points), dtype=np.float32)
    for lamp in lamps[near]:
        towards = lamp - points
        square = np.einsum("ij,ij->i", towards, towards)
        facing = np.clip(np.einsum("ij,ij->i", towards, normal) / np.sqrt(square), 0, 1)
        total += 3.6 * (0.15 + facing) / (square + 6.0) * (points[:, 2] < lamp[2] + 0.5)
    return np.asarray(total[:, None] * LAMP_COLOUR)


def _headlights(base: Pose, points: F32, normal: F32) -> F32:
    cos, sin = np.float32(np.cos(base.yaw)), np.float32(np.sin(base.yaw))
    offset = points - base.position.astype(np.float32)
    forward = offset[:, 0] * cos + offset[:, 1] * sin - np.float32(1.8)
    left = offset[:, 1] * cos - offset[:, 0] * sin
    up = offset[:, 2] - np.float32(0.7)
    square = forward**2 + left**2 + up**2
    forward = np.maximum(forward, 1e-3)
    cone = np.exp(-((left / forward / 0.55) ** 2) - ((up / forward - 0.02) / 0.20) ** 2)
    towards = -(
        normal[:, 0] * (forward * cos - left * sin) + normal[:, 1] * (forward * sin + left * cos) + normal[:, 2] * up
    )
    facing = np.clip(towards / np.sqrt(square), 0, 1)
    return np.asarray((cone * (0.1 + facing) * 34.0 / (square + 20.0))[:, None] * HEADLIGHT_COLOUR)
