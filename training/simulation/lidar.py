"""A spinning LiDAR on the robot's roof."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.simulation.camera import mount
from training.simulation.mesh import Kind
from training.simulation.scene import Scene
from vpr_kd_ros.errors import ConfigError
from vpr_kd_ros.geometry import Pose

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class LidarConfig:
    """The LiDAR and where it sits on the robot.

    Attributes:
        beams, columns: rays up and round; the default is 8,640 rays.
        lowest, highest: elevation of the outermost beams, radians.
        up_m: height above the base, metres.
        min_range_m, max_range_m: nearer and farther returns are lost.
        noise_m: standard deviation of the range, metres.
        dropout: share of returns that are lost.
    """

    beams: int = 24
    columns: int = 360
    lowest: float = -0.30
    highest: float = 0.36
    up_m: float = 1.9
    min_range_m: float = 1.0
    max_range_m: float = 70.0
    noise_m: float = 0.03
    dropout: float = 0.06

    def __post_init__(self) -> None:
        if not (1 <= self.beams <= 256 and 8 <= self.columns <= 4096):
            raise ConfigError(f"lidar: {self.beams} beams x {self.columns} columns, wants 1 to 256 x 8 to 4096")
        if not -1.5 <= self.lowest <= self.highest <= 1.5:
            raise ConfigError(
                f"lidar: lowest {self.lowest:g}, highest {self.highest:g}: wants -1.5 <= lowest <= highest <= 1.5"
            )
        if not 0.0 <= self.min_range_m < self.max_range_m:
            raise ConfigError(f"lidar: min_range_m {self.min_range_m:g} must be below max_range_m {self.max_range_m:g}")
        if not (0.0 <= self.noise_m <= 1.0 and 0.0 <= self.dropout < 1.0):
            raise ConfigError(
                f"lidar: noise_m {self.noise_m:g} wants 0 to 1, dropout {self.dropout:g} wants 0 to below 1"
            )


class Lidar:
    """Scans a scene. Light and weather do not matter to it.

    Attributes:
        directions: (beams * columns, 3) float32, unit directions in the base frame.
    """

    def __init__(self, config: LidarConfig) -> None:
        self.config = config
        up, round_ = np.meshgrid(
            np.linspace(config.lowest, config.highest, config.beams),
            np.linspace(-np.pi, np.pi, config.columns, endpoint=False),
            indexing="ij",
        )
        rays = np.stack([np.cos(up) * np.cos(round_), np.cos(up) * np.sin(round_), np.sin(up)], axis=-1)
        self.directions: F32 = rays.reshape(-1, 3).astype(np.float32)

    def scan(self, scene: Scene, base: Pose, rng: np.random.Generator) -> tuple[F32, F32]:
        """One scan.

        Args:
            scene: what is there.
            base: pose of the robot in the map frame.
            rng: source of noise and drop-outs.

        Returns:
            Points (M, 3) float32 in the base frame, metres, and their intensities (M,) float32 in [0, 1].
        """
        origin, turn = mount(base, 0.0, self.config.up_m)
        directions = self.directions @ turn.T
        hits = scene.cast(np.broadcast_to(origin, directions.shape).copy(), directions)
        # Drawn for every ray, so that what one ray hits does not change the noise of the others.
        noise = rng.normal(0.0, 1.0, len(directions)).astype(np.float32) * np.float32(self.config.noise_m)
        kept = rng.random(len(directions)) >= self.config.dropout
        distance = hits.distance + noise
        kept &= (distance >= self.config.min_range_m) & (distance <= self.config.max_range_m)
        rows = np.flatnonzero(kept)
        points = self.directions[rows] * distance[rows, None]
        points[:, 2] += np.float32(self.config.up_m)
        surface = hits.surface[rows]
        facing = np.abs(np.einsum("ij,ij->i", hits.normal[rows], directions[rows]))
        reflectance = scene.surfaces.colour[surface].mean(axis=1)
        reflectance[scene.surfaces.kind[surface] == Kind.GLASS] = 0.05
        return points, np.clip(reflectance * facing, 0, 1).astype(np.float32)
