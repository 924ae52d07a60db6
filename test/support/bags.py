"""Small bags that tests record, with rosbags' own writer, and their messages."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.rosbag1 import Writer as Rosbag1Writer
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

STORE = get_typestore(Stores.ROS2_JAZZY)
STORE1 = get_typestore(Stores.ROS1_NOETIC)
START_NS = 1_700_000_000_000_000_000
Record = tuple[str, int, Any]
"""Topic, time of recording in nanoseconds, message."""


def message(kind: str, **values: Any) -> Any:
    return STORE.types[kind](**values)


def header(stamp_ns: int, frame: str) -> Any:
    stamp = message("builtin_interfaces/msg/Time", sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return message("std_msgs/msg/Header", stamp=stamp, frame_id=frame)


def image(stamp_ns: int, pixels: NDArray[np.uint8], encoding: str = "rgb8", pad: int = 0) -> Any:
    """sensor_msgs/Image of 8-bit pixels, (H, W, C), with ``pad`` bytes of rubbish after each row."""
    height, width, channels = pixels.shape
    rows = np.full((height, width * channels + pad), 171, dtype=np.uint8)
    rows[:, : width * channels] = pixels.reshape(height, -1)
    return message(
        "sensor_msgs/msg/Image",
        header=header(stamp_ns, "camera"),
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=0,
        step=rows.shape[1],
        data=rows.ravel(),
    )


def compressed(stamp_ns: int, data: bytes, stated: str = "jpeg") -> Any:
    return message(
        "sensor_msgs/msg/CompressedImage",
        header=header(stamp_ns, "camera"),
        format=stated,
        data=np.frombuffer(data, dtype=np.uint8),
    )


def cloud(stamp_ns: int, points: NDArray[np.float32], frame: str = "base_link") -> Any:
    """sensor_msgs/PointCloud2 of x, y, z, intensity as float32."""
    packed = np.zeros((len(points), 4), dtype="<f4")
    packed[:, :3] = points
    names = ("x", "y", "z", "intensity")
    return message(
        "sensor_msgs/msg/PointCloud2",
        header=header(stamp_ns, frame),
        height=1,
        width=len(points),
        fields=[
            message("sensor_msgs/msg/PointField", name=n, offset=4 * i, datatype=7, count=1)
            for i, n in enumerate(names)
        ],
        is_bigendian=False,
        point_step=16,
        row_step=16 * len(points),
        data=packed.view(np.uint8).ravel(),
        is_dense=True,
    )


def pose(x: float, y: float, yaw: float) -> Any:
    return message(
        "geometry_msgs/msg/Pose",
        position=message("geometry_msgs/msg/Point", x=x, y=y, z=0.5),
        orientation=message("geometry_msgs/msg/Quaternion", x=0.0, y=0.0, z=np.sin(yaw / 2), w=np.cos(yaw / 2)),
    )


def odometry(stamp_ns: int, x: float, y: float, yaw: float, child: str = "base_link") -> Any:
    zero = message("geometry_msgs/msg/Vector3", x=0.0, y=0.0, z=0.0)
    covariance = np.zeros(36)
    return message(
        "nav_msgs/msg/Odometry",
        header=header(stamp_ns, "map"),
        child_frame_id=child,
        pose=message("geometry_msgs/msg/PoseWithCovariance", pose=pose(x, y, yaw), covariance=covariance),
        twist=message(
            "geometry_msgs/msg/TwistWithCovariance",
            twist=message("geometry_msgs/msg/Twist", linear=zero, angular=zero),
            covariance=covariance,
        ),
    )


def fix(stamp_ns: int, latitude: float, longitude: float, altitude: float, status: int = 0) -> Any:
    return message(
        "sensor_msgs/msg/NavSatFix",
        header=header(stamp_ns, "gps"),
        status=message("sensor_msgs/msg/NavSatStatus", status=status, service=1),
        latitude=latitude,
        longitude=longitude,
        altitude=altitude,
        position_covariance=np.zeros(9),
        position_covariance_type=0,
    )


def static_transform(parent: str, child: str, translation: tuple[float, float, float], yaw: float) -> Any:
    transform = message(
        "geometry_msgs/msg/Transform",
        translation=message("geometry_msgs/msg/Vector3", **dict(zip("xyz", translation, strict=True))),
        rotation=message("geometry_msgs/msg/Quaternion", x=0.0, y=0.0, z=np.sin(yaw / 2), w=np.cos(yaw / 2)),
    )
    stamped = message(
        "geometry_msgs/msg/TransformStamped", header=header(0, parent), child_frame_id=child, transform=transform
    )
    return message("tf2_msgs/msg/TFMessage", transforms=[stamped])


def write_bag(path: Path, records: Iterable[Record], storage: str = "mcap", compression: str = "none") -> Path:
    """Write a rosbag2 folder. Messages are in the order given.

    Args:
        storage: "mcap" or "sqlite3".
        compression: "none", "file" or "message", as rosbag2 has them; "storage" is MCAP's own.
    """
    connections: dict[str, Any] = {}
    writer = Writer(path, version=9, storage_plugin=StoragePlugin[storage.upper()])
    if compression != "none":
        writer.set_compression(CompressionMode[compression.upper()], CompressionFormat.ZSTD)
    with writer:
        for topic, stamp_ns, item in records:
            kind = item.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            writer.write(connections[topic], stamp_ns, STORE.serialize_cdr(item, kind))
    return path


def write_bag1(path: Path, records: Iterable[tuple[str, int, Any]]) -> Path:
    """Write a rosbag1 file of ROS 1 messages, given as made by ``STORE1``."""
    connections: dict[str, Any] = {}
    with Rosbag1Writer(path) as writer:
        for topic, stamp_ns, item in records:
            kind = item.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE1)
            writer.write(connections[topic], stamp_ns, STORE1.serialize_ros1(item, kind))
    return path
