"""One drive round a region under one condition: the path, the world on that day, and what the sensors see."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.simulation.camera import Camera, CameraConfig
from training.simulation.conditions import CONDITIONS, check_conditions
from training.simulation.effects import develop
from training.simulation.lidar import Lidar, LidarConfig
from training.simulation.noise import evaluate_loop, generator, smooth_loop
from training.simulation.scene import Scene
from training.simulation.shading import draw_look, radiance
from training.simulation.town import TownConfig, build_town
from training.simulation.vehicles import make_traffic
from vpr_kd_ros.errors import ConfigError
from vpr_kd_ros.geometry import Pose

FIRST_STAMP_NS = 1_700_000_000_000_000_000
DAY_NS = 86_400_000_000_000

LANE_M = -1.0
"""Where the robot drives, metres to the left of the middle of the street: in the right lane."""


@dataclass(frozen=True)
class DriveConfig:
    """How the robot drives.

    Attributes:
        spacing_m: from keyframe to keyframe along the street, metres.
        speed_mps: metres per second.
        lateral_sigma_m, lateral_limit_m: the robot wanders this much to both sides, and never more than the limit.
        heading_sigma, heading_limit: and points this much beside the street's direction, radians.
    """

    spacing_m: float = 8.0
    speed_mps: float = 8.0
    lateral_sigma_m: float = 1.2
    lateral_limit_m: float = 2.0
    heading_sigma: float = 0.08
    heading_limit: float = 0.25

    def __post_init__(self) -> None:
        for key, low, high in (
            ("spacing_m", 0.1, 100.0),
            ("speed_mps", 0.1, 50.0),
            ("lateral_sigma_m", 0.0, 3.0),
            ("lateral_limit_m", 0.0, 2.5),
            ("heading_sigma", 0.0, 1.0),
            ("heading_limit", 0.0, 1.0),
        ):
            value = getattr(self, key)
            if not low <= value <= high:
                raise ConfigError(f"drive: {key} is {value:g}, wants {low:g} to {high:g}")


class Traverse:
    """A drive; everything in it follows from the configuration, the seed and the two names.

    Args:
        town, camera, lidar, drive: configuration.
        seed: of the whole simulated world.
        region: names the region; its geometry depends on the seed and this name only.
        condition: one of ``CONDITIONS``.
        number: of the drive, where there are several of one region and condition.
        reverse: drive the street the other way, in the other lane; it is another drive, twelve hours later.

    Attributes:
        start_m: where on the street the drive starts.
        length_m: of the loop.
        first_stamp_ns: time of the start; each condition and each number has a day of its own.
    """

    def __init__(
        self,
        town: TownConfig,
        camera: CameraConfig,
        lidar: LidarConfig,
        drive: DriveConfig,
        seed: int,
        region: str,
        condition: str,
        number: int = 0,
        reverse: bool = False,
    ) -> None:
        check_conditions([condition], "condition")
        self.condition = CONDITIONS[condition]
        self.drive = drive
        self.camera = Camera(camera)
        self.rear_camera = Camera(camera, rear=True)
        self.lidar = Lidar(lidar)
        self._seed = seed
        self._names = (region, condition, number, "reverse") if reverse else (region, condition, number)
        self._way = -1.0 if reverse else 1.0
        self.first_stamp_ns = FIRST_STAMP_NS + (list(CONDITIONS).index(condition) + 10 * number) * DAY_NS
        if reverse:
            self.first_stamp_ns += DAY_NS // 2
        rng = generator(seed, "traverse", *self._names)
        self.town = build_town(town, seed, region)
        self.length_m = self.town.road.length_m
        self.start_m = float(rng.uniform(0, drive.spacing_m))
        self._lateral = smooth_loop(rng, drive.lateral_sigma_m, drive.lateral_limit_m, max(2, int(self.length_m / 60)))
        self._heading = smooth_loop(rng, drive.heading_sigma, drive.heading_limit, max(2, int(self.length_m / 40)))
        self.look = draw_look(self.condition, rng)
        self.scene = Scene(self.town, make_traffic(self.town, rng, self.start_m, drive.speed_mps, reverse))

    def pose(self, travelled_m: float) -> Pose:
        """Exact pose of the base in the region's map frame, ``travelled_m`` along the street from the start."""
        s = self.start_m + self._way * travelled_m
        turn = s / self.length_m
        xy, along = self.town.road.at(s, self._way * (LANE_M + float(evaluate_loop(self._lateral, turn))))
        ahead = float(along) + (np.pi if self._way < 0 else 0.0)
        return Pose.planar(float(xy[0]), float(xy[1]), ahead + float(evaluate_loop(self._heading, turn)))

    def photograph(self, travelled_m: float, rear: bool = False) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Image RGB (H, W, 3) uint8 and class of each pixel (H, W) uint8, from that far along the drive.

        Args:
            travelled_m: metres from the start.
            rear: what the camera that looks back sees.
        """
        camera, name = (self.rear_camera, "rear camera") if rear else (self.camera, "camera")
        self.scene.set_time(travelled_m / self.drive.speed_mps)
        base = self.pose(travelled_m)
        origins, directions = camera.rays(base)
        light, category = radiance(
            self.scene, self.condition, self.look, base, origins, directions, 1 / camera.focal_px
        )
        shape = (camera.config.height, camera.config.width)
        image = develop(light.reshape(*shape, 3), self.condition, self.look, self._rng(name, travelled_m))
        return image, category.reshape(shape)

    def scan(self, travelled_m: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """LiDAR points (M, 3) float32 in the base frame, metres, and intensities (M,), from there."""
        self.scene.set_time(travelled_m / self.drive.speed_mps)
        return self.lidar.scan(self.scene, self.pose(travelled_m), self._rng("lidar", travelled_m))

    def _rng(self, sensor: str, travelled_m: float) -> np.random.Generator:
        return generator(self._seed, sensor, *self._names, round(travelled_m * 1000))
