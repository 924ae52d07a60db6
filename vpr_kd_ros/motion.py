"""How a robot moves from place to place: planar motion, and the share of probability that each place passes on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from vpr_kd_ros.geometry import Floats, Ints, Pose, wrap_angle

GATE = 3.0
"""Deviations beyond which a place takes no probability."""


@dataclass(frozen=True)
class Motion:
    """Planar motion in the robot's own frame: forward and left in metres, turn in radians; none by default."""

    forward: float = 0.0
    left: float = 0.0
    turn: float = 0.0

    @classmethod
    def between(cls, before: Pose, after: Pose) -> Motion:
        """The motion that leads from one pose to another, both in one fixed frame."""
        dx, dy = after.position[:2] - before.position[:2]
        cos, sin = math.cos(before.yaw), math.sin(before.yaw)
        turn = math.remainder(after.yaw - before.yaw, 2 * math.pi)
        return cls(float(cos * dx + sin * dy), float(cos * dy - sin * dx), turn)

    @property
    def distance(self) -> float:
        """Metres."""
        return math.hypot(self.forward, self.left)

    def apply(self, xy: Floats, yaws: Floats) -> tuple[Floats, Floats]:
        """Poses (n, 2) and (n,), moved."""
        cos, sin = np.cos(yaws), np.sin(yaws)
        step = np.stack([cos * self.forward - sin * self.left, sin * self.forward + cos * self.left], axis=-1)
        return xy + step, wrap_angle(yaws + self.turn)


class Transitions:
    """Where probability goes when the robot moves.

    From place i the robot is expected at ``t_i = pose_i c`` after the motion c, and place j takes the share

        K_ij = exp(-|p_j - t_i|^2 / (2 s^2) - (yaw_j - yaw_ti)^2 / (2 w^2)),    T_ij = K_ij / (sum_j K_ij + K_off)

    with ``s^2 = (spacing / 3)^2 + (odometry_noise |c|)^2`` and ``K_off = exp(-GATE^2 / 2)``: off the map competes as a
    place ``GATE`` deviations away. Where odometry does not tell all, c is what it tells, and from t_i the robot drives
    on, somewhere within a cone of length ``reach``: with f and l how far p_j lies ahead of t_i and to its side,

        K_ij = exp(-(max(0, -f, f - reach)^2 + max(0, |l| - |f| / 2)^2) / (2 s^2) - (yaw_j - yaw_ti)^2 / (2 (2 w)^2))

    Args:
        xy: (N, 2) float64, metres.
        yaws: (N,) float64, radians.
        spacing_m: distance between neighbouring places.
        odometry_noise: standard deviation, share of the distance.
        yaw_sigma_rad: w.
    """

    def __init__(self, xy: Floats, yaws: Floats, spacing_m: float, odometry_noise: float, yaw_sigma_rad: float) -> None:
        self._xy, self._yaws = xy, yaws
        self._spacing_m, self._odometry_noise, self._yaw_sigma_rad = spacing_m, odometry_noise, yaw_sigma_rad
        self._tree = cKDTree(xy)

    def shares(self, rows: Ints, motion: Motion, reach: float | None = None) -> tuple[Ints, Ints, Floats]:
        """The shares T that leave the places ``rows``.

        Args:
            rows: (h,) places.
            motion: as far as odometry tells it.
            reach: where it does not tell all, how far the robot may have come since, metres.

        Returns:
            Three arrays of one length: where in ``rows`` a share comes from, the place it goes to, and the share.
        """
        expected, headings = motion.apply(self._xy[rows], self._yaws[rows])
        sigma = math.hypot(self._spacing_m / 3.0, self._odometry_noise * motion.distance)
        yaw_sigma = self._yaw_sigma_rad if reach is None else 2.0 * self._yaw_sigma_rad
        radius = (reach or 0.0) + GATE * sigma
        found: list[list[int]] = list(self._tree.query_ball_point(expected, radius, return_sorted=True))
        sources = np.repeat(np.arange(len(found), dtype=np.int64), [len(near) for near in found])
        targets = np.fromiter((row for near in found for row in near), dtype=np.int64)
        gaps = self._xy[targets] - expected[sources]
        if reach is None:
            beyond = np.linalg.norm(gaps, axis=1)
        else:
            cos, sin = np.cos(headings[sources]), np.sin(headings[sources])
            ahead, aside = cos * gaps[:, 0] + sin * gaps[:, 1], np.abs(cos * gaps[:, 1] - sin * gaps[:, 0])
            beyond = np.hypot(
                np.maximum(0.0, np.maximum(-ahead, ahead - reach)), np.maximum(0.0, aside - abs(ahead) / 2)
            )
        turned = wrap_angle(self._yaws[targets] - headings[sources])
        exponents = -(beyond**2) / (2 * sigma**2) - turned**2 / (2 * yaw_sigma**2)
        kernel = np.exp(exponents)
        totals = np.bincount(sources, kernel, minlength=len(expected)) + math.exp(-(GATE**2) / 2)
        return sources, targets, kernel / totals[sources]
