"""Satellite fixes as poses of a robot that drives; no ROS in here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vpr_kd_ros.errors import ConfigError, DataError
from vpr_kd_ros.geodesy import east_north_up, fix_from_message
from vpr_kd_ros.geometry import Floats, Pose

# Nearer than this, receivers' noise looks like a turn.
REACH_M = 1.0


class FixPoses:
    """East, north and up of an origin in metres, headed along the way since the last point ``REACH_M`` back.

    A fix tells no orientation: a robot that reverses is taken to face backwards, and to be where its antenna is.

    Args:
        origin: latitude, longitude (degrees), altitude (metres); empty: the first fix, and the first altitude.

    Attributes:
        origin: the one in use; None until the first fix, and at 0 m until the first that has an altitude.

    Raises:
        ConfigError: the origin is not empty and no place on Earth.
    """

    def __init__(self, origin: Sequence[float] = ()) -> None:
        self.origin: tuple[float, float, float] | None = None
        self._has_altitude = False
        self._last: Floats | None = None
        self._yaw: float | None = None
        if origin:
            if len(origin) != 3 or not np.isfinite(origin).all() or abs(origin[0]) > 90 or abs(origin[1]) > 360:
                raise ConfigError(f"nav_origin: {list(origin)}; wants latitude, longitude (degrees), altitude (metres)")
            self.origin = (float(origin[0]), float(origin[1]), float(origin[2]))
            self._has_altitude = True

    def pose(self, message: Any) -> Pose:
        """The pose of one ``sensor_msgs/NavSatFix``.

        Raises:
            DataError: the receiver had no fix, or the robot has not moved yet and so has no heading.
        """
        fix = fix_from_message(message)
        if self.origin is None:
            self.origin = (fix[0], fix[1], 0.0)
        if not self._has_altitude and np.isfinite(fix[2]):
            # Not 0 m: the map would rise by the altitude of the place where it comes.
            self.origin = (*self.origin[:2], fix[2])
            self._has_altitude = True
        position = east_north_up(np.array([fix], dtype=np.float64), self.origin)[0]
        if self._last is None:
            self._last = position
        dx, dy = (position - self._last)[:2]
        if np.hypot(dx, dy) >= REACH_M:
            self._yaw = float(np.arctan2(dy, dx))
            self._last = position
        if self._yaw is None:
            raise DataError(f"pose: a fix tells no heading until the robot has moved by {REACH_M:g} m")
        return Pose.planar(float(position[0]), float(position[1]), self._yaw, z=float(position[2]))
