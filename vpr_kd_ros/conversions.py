"""From numpy to ROS messages; the way back is ``decode``, which needs no ROS and so serves bags as well."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, PoseStamped, PoseWithCovarianceStamped, Quaternion
from geometry_msgs.msg import Pose as PoseMessage
from nav_msgs.msg import Odometry
from numpy.typing import NDArray
from sensor_msgs.msg import Image, PointCloud2, PointField
from std_msgs.msg import Header

from vpr_kd_ros.errors import DataError
from vpr_kd_ros.geometry import Floats, Pose

NS_PER_S = 1_000_000_000
FIELD_TYPES = {np.dtype(np.float32): PointField.FLOAT32, np.dtype(np.int32): PointField.INT32}


def stamp_from_ns(stamp_ns: int) -> Time:
    """Nanoseconds since the epoch as ``builtin_interfaces/Time``.

    Raises:
        DataError: the stamp does not fit the message (negative, or after 2038).
    """
    seconds, nanoseconds = divmod(int(stamp_ns), NS_PER_S)
    if not 0 <= seconds < 2**31:
        raise DataError(f"stamp {stamp_ns} ns does not fit builtin_interfaces/Time")
    return Time(sec=seconds, nanosec=nanoseconds)


def header(stamp_ns: int, frame_id: str) -> Header:
    """A header of the given time and frame."""
    return Header(stamp=stamp_from_ns(stamp_ns), frame_id=frame_id)


def image_to_message(image_rgb: NDArray[np.uint8], stamp_ns: int, frame_id: str) -> Image:
    """``sensor_msgs/Image`` in ``rgb8`` of an image (H, W, 3) uint8.

    Raises:
        DataError: another shape or dtype.
    """
    if image_rgb.dtype != np.uint8 or image_rgb.ndim != 3 or image_rgb.shape[2] != 3:
        raise DataError(f"image: wants RGB (H, W, 3) uint8, got {image_rgb.shape} {image_rgb.dtype}")
    height, width = image_rgb.shape[:2]
    return Image(
        header=header(stamp_ns, frame_id),
        height=height,
        width=width,
        encoding="rgb8",
        is_bigendian=0,
        step=width * 3,
        data=_byte_array(image_rgb),
    )


def cloud_to_message(
    points: NDArray[np.float32], intensity: NDArray[np.float32] | None, stamp_ns: int, frame_id: str
) -> PointCloud2:
    """``sensor_msgs/PointCloud2`` with float32 fields x, y, z and, where given, intensity.

    Args:
        points: (M, 3), metres, in ``frame_id``.
        intensity: (M,), or None.

    Raises:
        DataError: shapes that do not fit each other.
    """
    if points.ndim != 2 or points.shape[1] != 3:
        raise DataError(f"cloud: wants points (M, 3), got {points.shape}")
    columns = {name: points[:, axis].astype(np.float32) for axis, name in enumerate("xyz")}
    if intensity is not None:
        columns["intensity"] = np.asarray(intensity, dtype=np.float32)
    return columns_to_cloud(columns, stamp_ns, frame_id)


def columns_to_cloud(columns: Mapping[str, NDArray[Any]], stamp_ns: int, frame_id: str) -> PointCloud2:
    """``sensor_msgs/PointCloud2`` with one field per column, unordered and dense, fields in the order given.

    Args:
        columns: name to (M,) float32 or int32.

    Raises:
        DataError: columns of different lengths, or of a type that has no point field here.
    """
    rows = {len(column) for column in columns.values()}
    if len(rows) != 1:
        raise DataError(f"cloud: columns differ in length: { {name: len(column) for name, column in columns.items()} }")
    for name, column in columns.items():
        if column.dtype not in FIELD_TYPES:
            raise DataError(f"cloud: column {name!r} is {column.dtype}, wants float32 or int32")
    table = np.empty(rows.pop(), dtype=[(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        table[name] = column
    fields = [
        PointField(name=name, offset=4 * place, datatype=FIELD_TYPES[column.dtype], count=1)
        for place, (name, column) in enumerate(columns.items())
    ]
    return PointCloud2(
        header=header(stamp_ns, frame_id),
        height=1,
        width=len(table),
        fields=fields,
        is_bigendian=False,
        point_step=table.itemsize,
        row_step=table.itemsize * len(table),
        data=_byte_array(table),
        is_dense=True,
    )


def pose_to_message(pose: Pose) -> PoseMessage:
    """``geometry_msgs/Pose`` of a pose."""
    x, y, z = (float(value) for value in pose.position)
    qx, qy, qz, qw = (float(value) for value in pose.quaternion)
    return PoseMessage(position=Point(x=x, y=y, z=z), orientation=Quaternion(x=qx, y=qy, z=qz, w=qw))


def odometry_to_message(pose: Pose, stamp_ns: int, frame_id: str, child_frame_id: str) -> Odometry:
    """``nav_msgs/Odometry`` of the pose of ``child_frame_id`` in ``frame_id``; the twist is left zero."""
    message = Odometry(header=header(stamp_ns, frame_id), child_frame_id=child_frame_id)
    message.pose.pose = pose_to_message(pose)
    return message


def pose_stamped_to_message(pose: Pose, stamp_ns: int, frame_id: str) -> PoseStamped:
    """``geometry_msgs/PoseStamped`` of a pose."""
    return PoseStamped(header=header(stamp_ns, frame_id), pose=pose_to_message(pose))


def pose_with_covariance_to_message(
    pose: Pose, covariance: Floats, stamp_ns: int, frame_id: str
) -> PoseWithCovarianceStamped:
    """``geometry_msgs/PoseWithCovarianceStamped``.

    Args:
        covariance: (6, 6), row-major over x, y, z, and rotations about x, y, z; metres and radians squared.
    """
    message = PoseWithCovarianceStamped(header=header(stamp_ns, frame_id))
    message.pose.pose = pose_to_message(pose)
    message.pose.covariance = np.asarray(covariance, dtype=np.float64).reshape(36)
    return message


def _byte_array(values: NDArray[Any]) -> array[int]:
    # Assigning bytes or a numpy array to ``data`` is checked element by element: 7 to 1000 times slower than this.
    data = array("B")
    data.frombytes(np.ascontiguousarray(values).tobytes())
    return data
