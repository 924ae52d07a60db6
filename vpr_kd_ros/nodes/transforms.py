"""Transforms of tf2: the one that the localizer may publish, and the poses that the mapper may read.

tf2_ros and tf2_msgs come with ROS 2's own packages only, so they are imported where they are asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from geometry_msgs.msg import TransformStamped
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time
from scipy.spatial.transform import Rotation

from vpr_kd_ros.conversions import header
from vpr_kd_ros.errors import DataError, MissingDependencyError
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.nodes.pose_buffer import Missing


def require_tf2(parameter: str) -> Any:
    """The module ``tf2_ros``.

    Args:
        parameter: what asks for it, for the error.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return importlib.import_module("tf2_ros")
    except ImportError as error:
        raise MissingDependencyError(
            f"parameter {parameter!r}: it needs tf2_ros, which cannot be imported ({error}); "
            "apt install ros-$ROS_DISTRO-tf2-ros, and source ROS 2"
        ) from error


def map_from_odom(map_from_base: Pose, odom_from_base: Pose) -> Pose:
    """Where the odometry's frame lies in the map, from the robot's pose in both at one moment."""
    turn = Rotation.from_quat(map_from_base.quaternion) * Rotation.from_quat(odom_from_base.quaternion).inv()
    position = map_from_base.position - turn.apply(odom_from_base.position)
    return Pose(np.asarray(position, dtype=np.float64), np.asarray(turn.as_quat(), dtype=np.float64))


class MapFromOdomBroadcaster:
    """Publishes map -> odom.

    Raises:
        MissingDependencyError: tf2_ros is not installed.
    """

    def __init__(self, node: Node) -> None:
        self._broadcaster = require_tf2("publish_tf").TransformBroadcaster(node)

    def send(self, pose: Pose, stamp_ns: int, map_frame: str, odom_frame: str) -> None:
        """Publish the pose of the odometry's frame in the map.

        Raises:
            DataError: the odometry names no frame, or the map's.
        """
        if odom_frame in ("", map_frame):
            raise DataError(f"odom: its frame {odom_frame!r} cannot hang below the map's, {map_frame!r}")
        message = TransformStamped(header=header(stamp_ns, map_frame), child_frame_id=odom_frame)
        translation, rotation = message.transform.translation, message.transform.rotation
        translation.x, translation.y, translation.z = (float(value) for value in pose.position)
        rotation.x, rotation.y, rotation.z, rotation.w = (float(value) for value in pose.quaternion)
        self._broadcaster.sendTransform(message)


class TransformPoses:
    """Poses of a frame in another, from the transforms of tf2; asked as a ``PoseBuffer`` is.

    Raises:
        MissingDependencyError: tf2_ros is not installed.
    """

    def __init__(self, node: Node, map_frame: str, base_frame: str, seconds: float = 10.0) -> None:
        self._tf2 = require_tf2("pose_source")
        self._frames = (map_frame, base_frame)
        self._buffer = self._tf2.Buffer(cache_time=Duration(seconds=seconds))
        self._listener: Any = self._tf2.TransformListener(self._buffer, node)

    def at(self, stamp_ns: int) -> Pose | Missing:
        """The pose at a stamp in nanoseconds, or why there is none; never the newest one instead."""
        try:
            found = self._buffer.lookup_transform(*self._frames, Time(nanoseconds=stamp_ns)).transform
        except self._tf2.TransformException:
            return Missing.NO_TRANSFORM
        position = [getattr(found.translation, axis) for axis in "xyz"]
        quaternion = [getattr(found.rotation, axis) for axis in "xyzw"]
        return Pose(np.array(position, dtype=np.float64), np.array(quaternion, dtype=np.float64))

    def clear(self) -> None:
        """Forget all transforms, those that do not move as well as the others."""
        self._buffer.clear()

    def close(self) -> None:
        """Stop listening."""
        self._listener.unregister()
