"""A pose and how sure it is, from places that agree."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from vpr_kd_ros.calibration import Spread
from vpr_kd_ros.geometry import Floats, Pose, wrap_angle, yaw_from_quaternion
from vpr_kd_ros.motion import Motion

MIN_DEVIATION_M = 0.1
ANGLE_DEVIATION_RAD = math.radians(5.0)
"""Least standard deviation of an angle; a keyframe of similar content may have been seen some degrees off."""


def estimate_pose(
    poses: Sequence[Pose], weights: Floats, moved: Motion | None, spacing_m: float, spread: Spread | None
) -> tuple[Pose, Floats]:
    """The weighted mean of poses, moved on to the image, and its covariance.

    The covariance is that of the weighted poses, plus that of a robot that may be anywhere between two keyframes along
    its way (uniform over one spacing), plus the spread of right answers along and across its heading that the
    calibration measured. Without a calibrated spread, the robot may be a spacing off in any direction.

    Args:
        poses: (k,), the best first; roll and pitch are taken from it.
        weights: (k,) float64, sum 1.
        moved: what the robot moved since the poses hold; None for nothing.
        spacing_m: distance between neighbouring keyframes of the map.
        spread: of right answers.

    Returns:
        The pose, and (6, 6) float64 in the order x, y, z, rotation about x, y, z (metres, radians).
    """
    positions = np.array([pose.position for pose in poses])
    yaws = yaw_from_quaternion(np.array([pose.quaternion for pose in poses]))
    position = weights @ positions
    yaw = math.atan2(float(weights @ np.sin(yaws)), float(weights @ np.cos(yaws)))
    offsets = positions - position
    around = float(weights @ wrap_angle(yaws - yaw) ** 2)
    if moved is not None:
        xy, turned = moved.apply(position[None, :2], np.array([yaw]))
        position, yaw = np.append(xy[0], position[2]), float(turned[0])
    between = max(spacing_m**2 / 12.0, MIN_DEVIATION_M**2)
    covariance = np.diag([between] * 3 + [ANGLE_DEVIATION_RAD**2] * 3)
    if spread is not None:
        axes = np.array([[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]])
        across = max(spread.across_m**2, MIN_DEVIATION_M**2)
        covariance[:2, :2] = axes @ np.diag([between + spread.along_m**2, across]) @ axes.T
    covariance[:3, :3] += (weights[:, None] * offsets).T @ offsets
    covariance[5, 5] += around
    # Roll and pitch are the best pose's: only its heading is turned.
    turn = Rotation.from_euler("z", yaw - float(yaws[0]))
    quaternion = (turn * Rotation.from_quat(poses[0].quaternion)).as_quat()
    # Rounding must not make it unsymmetric.
    return Pose(position, np.asarray(quaternion, dtype=np.float64)), (covariance + covariance.T) / 2.0
