"""Poses and trajectories.

A pose is a position ``(x, y, z)`` in metres and a unit quaternion ``(x, y, z, w)``, both float64, of a body in a fixed
frame. Yaw is the heading about +z in radians, 0 along +x, counter-clockwise (REP 103).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation, Slerp

from vpr_kd_ros.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

VIEW_ANGLE_RAD = math.radians(30.0)
"""Two pictures of a spot whose headings differ by less show the same view of it."""


@dataclass(frozen=True)
class Pose:
    """Position in metres, shape (3,), and unit quaternion (x, y, z, w), shape (4,), both float64."""

    position: Floats
    quaternion: Floats

    @classmethod
    def planar(cls, x: float, y: float, yaw: float, z: float = 0.0) -> Pose:
        """A pose upright at ``(x, y, z)`` metres that heads along ``yaw`` radians."""
        return cls(np.array([x, y, z], dtype=np.float64), quaternion_from_yaw(np.float64(yaw)))

    @property
    def yaw(self) -> float:
        """Heading about +z, radians in [-pi, pi]."""
        return float(yaw_from_quaternion(self.quaternion))


def yaw_from_quaternion(quaternion: Floats) -> Floats:
    """Heading about +z in radians, shape (...), of unit quaternions (x, y, z, w), shape (..., 4)."""
    quaternion = np.asarray(quaternion, dtype=np.float64)
    x, y, z, w = (quaternion[..., axis] for axis in range(4))
    return np.asarray(np.arctan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z)))


def quaternion_from_yaw(yaw: Floats | np.float64) -> Floats:
    """Unit quaternions (x, y, z, w), shape (..., 4), of headings about +z in radians, shape (...)."""
    half = np.asarray(yaw, dtype=np.float64) / 2.0
    zero = np.zeros_like(half)
    return np.stack([zero, zero, np.sin(half), np.cos(half)], axis=-1)


def wrap_angle(angle: Floats) -> Floats:
    """The same angles in [-pi, pi), radians."""
    wrapped = (np.asarray(angle, dtype=np.float64) + np.pi) % (2.0 * np.pi) - np.pi
    # A remainder just below 2 pi rounds to it.
    return np.where(wrapped >= np.pi, -np.pi, wrapped)


def angle_between(quaternions: Floats, quaternion: Floats) -> Floats:
    """Angles of the rotations from unit quaternions (..., 4) to one (4,), shape (...), radians in [0, pi]."""
    # q and -q are the same rotation. This form of the angle, unlike arccos, is precise near 0.
    nearer = np.where((quaternions @ quaternion)[..., None] >= 0, quaternion, -quaternion)
    apart, along = quaternions - nearer, quaternions + nearer
    return np.asarray(4.0 * np.arctan2(np.linalg.norm(apart, axis=-1), np.linalg.norm(along, axis=-1)))


def same_view(
    positions: Floats, quaternions: Floats, pose: Pose, radius_m: float, angle_rad: float = VIEW_ANGLE_RAD
) -> NDArray[np.bool_]:
    """Which poses, (N, 3) metres and (N, 4), see what ``pose`` sees: nearer than the radius, turned by less; (N,)."""
    alike = np.linalg.norm(positions - pose.position, axis=1) < radius_m
    alike[alike] = angle_between(quaternions[alike], pose.quaternion) < angle_rad
    return np.asarray(alike)


class Trajectory:
    """Poses over time, interpolated between neighbours and never extrapolated.

    Args:
        stamps_ns: (N,) int64, nanoseconds, any order; of equal stamps the last given counts.
        positions: (N, 3) float64, metres.
        quaternions: (N, 4) float64, (x, y, z, w).

    Raises:
        DataError: shapes differ, there is no pose, or a value is not finite or a quaternion has no length.
    """

    def __init__(self, stamps_ns: Ints, positions: Floats, quaternions: Floats) -> None:
        stamps = np.asarray(stamps_ns, dtype=np.int64).reshape(-1)
        positions = np.asarray(positions, dtype=np.float64).reshape(-1, 3)
        quaternions = np.asarray(quaternions, dtype=np.float64).reshape(-1, 4)
        if not len(stamps) == len(positions) == len(quaternions):
            raise DataError(
                f"trajectory: {len(stamps)} stamps, {len(positions)} positions, {len(quaternions)} quaternions"
            )
        if len(stamps) == 0:
            raise DataError("trajectory: it holds no pose")
        norms = np.linalg.norm(quaternions, axis=1)
        if not (np.isfinite(positions).all() and np.isfinite(quaternions).all() and (norms > 1e-6).all()):
            raise DataError("trajectory: a pose is not finite or its quaternion is zero")
        order = np.argsort(stamps, kind="stable")
        stamps = stamps[order]
        last_of_equal = np.append(stamps[1:] != stamps[:-1], True)
        keep = order[last_of_equal]
        self.stamps_ns: Ints = stamps[last_of_equal]
        self.positions: Floats = positions[keep]
        self.quaternions: Floats = quaternions[keep] / norms[keep, None]

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def at(self, stamps_ns: Ints, max_gap_ns: int) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Poses at the given times: linear in position, spherical in rotation.

        Args:
            stamps_ns: (M,) int64, nanoseconds.
            max_gap_ns: a time is answered only where the poses on both sides of it are at most this far apart.

        Returns:
            Positions (M, 3), quaternions (M, 4), and valid (M,) bool; rows that are not valid are NaN.
        """
        times = np.asarray(stamps_ns, dtype=np.int64).reshape(-1)
        right = np.searchsorted(self.stamps_ns, times, side="left")
        inside = right < len(self.stamps_ns)
        right = np.minimum(right, len(self.stamps_ns) - 1)
        exact = inside & (self.stamps_ns[right] == times)
        left = np.where(exact, right, right - 1)
        valid = inside & (left >= 0)
        left = np.maximum(left, 0)
        gap = self.stamps_ns[right] - self.stamps_ns[left]
        valid &= gap <= max_gap_ns
        weight = (times - self.stamps_ns[left]) / np.maximum(gap, 1)
        positions = self.positions[left] + weight[:, None] * (self.positions[right] - self.positions[left])
        quaternions = np.full((len(times), 4), np.nan)
        positions[~valid] = np.nan
        if valid.any():
            if len(self) == 1:
                quaternions[valid] = self.quaternions[0]
            else:
                # Seconds from the first pose: int64 nanoseconds of epoch time do not fit a double exactly.
                seconds = (self.stamps_ns - self.stamps_ns[0]) * 1e-9
                slerp = Slerp(seconds, Rotation.from_quat(self.quaternions))
                wanted = np.clip((times[valid] - self.stamps_ns[0]) * 1e-9, seconds[0], seconds[-1])
                quaternions[valid] = slerp(wanted).as_quat()
        return positions, quaternions, valid
