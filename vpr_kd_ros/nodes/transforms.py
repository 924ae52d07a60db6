"""Transforms of tf2: the one that the localizer may publish, and the poses that the mapper may read.

tf2_ros and tf2_msgs come with ROS 2's own packages only, so they are imported where they are asked for.
"""

from __future__ import annotations

import importlib
import threading
from typing import Any

import numpy as np
from geometry_msgs.msg import TransformStamped
from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time
from scipy.spatial.transform import Rotation

from vpr_kd_ros.conversions import header
from vpr_kd_ros.errors import DataError, MissingDependencyError
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.nodes.pose_buffer import Missing

SEND_PERIOD_S = 0.1
# How far ahead of now, seconds: who asks for now must find a transform after it, though one comes late.
AHEAD_S = 0.3


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
    """Publishes the last known map -> odom again and again, stamped a little ahead of now.

    tf2 answers only between two stamps, and forgets what is older than ten seconds: a transform that is sent once, with
    the image's stamp, could not be asked for now, and soon not at all. AMCL's ``transform_tolerance`` is for the same.

    Raises:
        MissingDependencyError: tf2_ros is not installed.
    """

    def __init__(self, node: Node) -> None:
        self._broadcaster = require_tf2("publish_tf").TransformBroadcaster(node)
        self._clock = node.get_clock()
        self._lock = threading.Lock()
        self._known: TransformStamped | None = None
        self._sent_ns = 0

    def keep(self, pose: Pose, map_frame: str, odom_frame: str) -> None:
        """Publish this pose of the odometry's frame in the map from now on.

        Raises:
            DataError: the odometry names no frame, or the map's.
        """
        if odom_frame in ("", map_frame):
            raise DataError(f"odom: its frame {odom_frame!r} cannot hang below the map's, {map_frame!r}")
        message = TransformStamped(header=header(0, map_frame), child_frame_id=odom_frame)
        translation, rotation = message.transform.translation, message.transform.rotation
        translation.x, translation.y, translation.z = (float(value) for value in pose.position)
        rotation.x, rotation.y, rotation.z, rotation.w = (float(value) for value in pose.quaternion)
        with self._lock:
            self._known = message

    def forget(self) -> None:
        """Publish none until there is a new one."""
        with self._lock:
            self._known = None

    def send(self) -> None:
        """Publish the transform, where one is known; to be called every ``SEND_PERIOD_S`` seconds."""
        ahead = self._clock.now() + Duration(seconds=AHEAD_S)
        with self._lock:
            # tf2 warns of a stamp that comes twice, as it does while simulated time stands.
            if self._known is None or ahead.nanoseconds == self._sent_ns:
                return
            self._sent_ns = ahead.nanoseconds
            self._known.header.stamp = ahead.to_msg()
            self._broadcaster.sendTransform(self._known)


class TransformPoses:
    """Poses of a frame in another, from the transforms of tf2; asked as a ``PoseBuffer`` is.

    tf2 refuses transforms that are older than the newest by ``seconds``. They are forgotten when the node's clock jumps
    back; where it is not simulated, the stamps of the images show that first: then call ``clear``.

    Raises:
        MissingDependencyError: tf2_ros is not installed.
    """

    def __init__(self, node: Node, map_frame: str, base_frame: str, seconds: float = 10.0) -> None:
        self._tf2 = require_tf2("pose_source")
        self._frames = (map_frame, base_frame)
        self._logger = node.get_logger()
        self._buffer = self._tf2.Buffer(cache_time=Duration(seconds=seconds))
        self._listener: Any = self._tf2.TransformListener(self._buffer, node)
        # Given the node, the buffer would do so by itself, from Jazzy on, and leave a service behind with each buffer.
        jump = JumpThreshold(min_forward=None, min_backward=Duration(seconds=-1), on_clock_change=True)
        self._jumps = node.get_clock().create_jump_callback(jump, post_callback=lambda _: self.clear())

    def at(self, stamp_ns: int) -> Pose | Missing:
        """The pose at a stamp in nanoseconds, or why there is none; never the newest one instead."""
        if stamp_ns == 0:
            # For tf2, the newest transform is meant.
            self._logger.warning("image: its header carries no stamp (0)", throttle_duration_sec=5.0)
            return Missing.TOO_OLD
        try:
            found = self._buffer.lookup_transform(*self._frames, Time(nanoseconds=stamp_ns)).transform
        except self._tf2.TransformException:
            return Missing.NO_TRANSFORM
        position = [getattr(found.translation, axis) for axis in "xyz"]
        quaternion = [getattr(found.rotation, axis) for axis in "xyzw"]
        return Pose(np.array(position, dtype=np.float64), np.array(quaternion, dtype=np.float64))

    def clear(self) -> None:
        """Forget all transforms but those that do not move."""
        self._buffer.clear()

    def close(self) -> None:
        """Stop listening."""
        self._jumps.unregister()
        self._listener.unregister()
