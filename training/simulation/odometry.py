"""Odometry that drifts, as wheels and a cheap gyroscope give it."""

from __future__ import annotations

import numpy as np

from vpr_kd_ros.geometry import Pose, wrap_angle

SCALE_SIGMA = 0.01
"""Relative error of a wheel's circumference; constant over a drive."""
YAW_BIAS_SIGMA = 2e-4
"""Drift of the heading, radians per metre; constant over a drive."""
STEP_SIGMA = 0.01
"""Noise of the travelled distance, metres per square root of a metre."""
YAW_SIGMA = 0.002
"""Noise of the heading, radians per square root of a metre."""


class Odometer:
    """Adds up what it believes the robot moved, from exact poses; it starts at the origin, heading along x.

    Args:
        rng: source of the errors.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._scale = 1.0 + rng.normal(0.0, SCALE_SIGMA)
        self._bias = rng.normal(0.0, YAW_BIAS_SIGMA)
        self._x, self._y, self._yaw = 0.0, 0.0, 0.0
        self._last: Pose | None = None

    def update(self, exact: Pose) -> Pose:
        """Pose in the odometry frame, once the robot has moved on to the ``exact`` pose in the map frame."""
        if self._last is not None:
            dx, dy = exact.position[:2] - self._last.position[:2]
            cos, sin = np.cos(self._last.yaw), np.sin(self._last.yaw)
            moved = float(np.hypot(dx, dy))
            forward = (cos * dx + sin * dy) * self._scale + self._rng.normal(0, STEP_SIGMA) * np.sqrt(moved)
            left = (cos * dy - sin * dx) * self._scale
            turned = float(wrap_angle(np.array(exact.yaw - self._last.yaw)))
            cos, sin = np.cos(self._yaw), np.sin(self._yaw)
            self._x += cos * forward - sin * left
            self._y += sin * forward + cos * left
            self._yaw += turned + self._bias * moved + self._rng.normal(0, YAW_SIGMA) * np.sqrt(moved)
        self._last = exact
        return Pose.planar(self._x, self._y, self._yaw)
