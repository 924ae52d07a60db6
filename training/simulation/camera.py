"""A pinhole camera that looks forward, or back, slightly up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vpr_kd_ros.errors import ConfigError
from vpr_kd_ros.geometry import Floats, Pose

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class CameraConfig:
    """The camera and where it sits on the robot.

    Attributes:
        height, width: image size, pixels.
        horizontal_fov: radians.
        forward_m, up_m: position in the base frame, metres; that of a camera that looks back is as far behind.
        pitch: radians, up positive.
    """

    height: int = 96
    width: int = 128
    horizontal_fov: float = 1.5707963
    forward_m: float = 0.6
    up_m: float = 1.6
    pitch: float = 0.15

    def __post_init__(self) -> None:
        if not (16 <= self.height <= 2160 and 16 <= self.width <= 3840):
            raise ConfigError(f"camera: size {self.height}x{self.width} (height x width), wants 16x16 to 2160x3840")
        if not 0.2 <= self.horizontal_fov <= 2.6:
            raise ConfigError(f"camera: horizontal_fov is {self.horizontal_fov:g}, wants 0.2 to 2.6 radians")
        if not 0.2 <= self.up_m <= 4.0:
            raise ConfigError(f"camera: up_m is {self.up_m:g}, wants 0.2 to 4 metres")
        if not abs(self.pitch) <= 1.0:
            raise ConfigError(f"camera: pitch is {self.pitch:g}, wants -1 to 1 radian")


class Camera:
    """The geometry of the camera: which way each pixel looks.

    Args:
        config: the camera.
        rear: it is turned by half a turn, and sits as far behind the base as the other in front of it.

    Attributes:
        focal_px: focal length, pixels.
        directions: (H * W, 3) float32, unit directions in the base frame, row by row.
    """

    def __init__(self, config: CameraConfig, rear: bool = False) -> None:
        self.config = config
        self._way = -1.0 if rear else 1.0
        self.focal_px = config.width / 2 / np.tan(config.horizontal_fov / 2)
        v, u = np.mgrid[: config.height, : config.width] + 0.5
        forward = np.ones(u.size)
        left = (config.width / 2 - u.ravel()) / self.focal_px
        up = (config.height / 2 - v.ravel()) / self.focal_px
        rays = np.stack([forward, left, up], axis=1) @ self._camera_from_base()
        self.directions: F32 = (rays / np.linalg.norm(rays, axis=1, keepdims=True)).astype(np.float32)

    def _camera_from_base(self) -> Floats:
        """Rotation to the camera's axes (x along the view, y left, z up)."""
        cos, sin = np.cos(self.config.pitch), np.sin(self.config.pitch)
        return np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]]) @ np.diag([self._way, self._way, 1.0])

    def rays(self, base: Pose) -> tuple[F32, F32]:
        """Origins and unit directions, each (H * W, 3) float32 in the map frame, for a robot at ``base``."""
        origin, turn = mount(base, self._way * self.config.forward_m, self.config.up_m)
        directions = self.directions @ turn.T
        return np.broadcast_to(origin, directions.shape).copy(), directions

    def project(self, points: Floats) -> Floats:
        """Pixel coordinates (N, 2) (u to the right, v down, centre of the first pixel at 0.5) of base-frame points.

        Args:
            points: (N, 3) metres; those behind the camera become NaN.
        """
        seen = (points - [self._way * self.config.forward_m, 0.0, self.config.up_m]) @ self._camera_from_base().T
        depth = np.where(seen[:, 0] > 1e-6, seen[:, 0], np.nan)
        u = self.config.width / 2 - self.focal_px * seen[:, 1] / depth
        v = self.config.height / 2 - self.focal_px * seen[:, 2] / depth
        return np.stack([u, v], axis=1)


def mount(base: Pose, forward_m: float, up_m: float) -> tuple[F32, F32]:
    """Origin (3,) in the map frame of a sensor on an upright robot, and the rotation (3, 3) map from base, float32."""
    cos, sin = np.cos(base.yaw), np.sin(base.yaw)
    origin = base.position + [forward_m * cos, forward_m * sin, up_m]
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    return origin.astype(np.float32), turn.astype(np.float32)
