"""Livox's custom message as a cloud: against messages that rosbags writes by the same definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rosbags.rosbag1 import Writer as Rosbag1Writer
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from support import bags
from support.bags import START_NS
from support.ingested import ingest
from training.ingest.bag import Bag
from training.ingest.config import IngestConfig
from training.ingest.inspect import inspect
from training.ingest.livox import LivoxReader
from training.sessions import Session
from vpr_kd_ros.decode import cloud_from_message, stamp_ns
from vpr_kd_ros.errors import DataError

MS = 1_000_000
MESSAGE = """std_msgs/Header header
uint64 timebase
uint32 point_num
uint8 lidar_id
uint8[3] rsvd
CustomPoint[] points
"""
POINT = """uint32 offset_time
float32 x
float32 y
float32 z
uint8 reflectivity
uint8 tag
uint8 line
"""


def store_of(package: str, version: Stores, point: str = POINT) -> Any:
    store = get_typestore(version)
    store.register(get_types_from_msg(POINT and point, f"{package}/msg/CustomPoint"))
    store.register(
        get_types_from_msg(MESSAGE.replace("CustomPoint", f"{package}/CustomPoint"), f"{package}/msg/CustomMsg")
    )
    return store


def scan(store: Any, package: str, points: NDArray[np.float32], stamp: int = START_NS, frame: str = "livox") -> Any:
    types = store.types
    seq = {"seq": 5} if "seq" in types["std_msgs/msg/Header"].__dataclass_fields__ else {}
    time = types["builtin_interfaces/msg/Time"](sec=stamp // 10**9, nanosec=stamp % 10**9)
    kind = types[f"{package}/msg/CustomPoint"]
    return types[f"{package}/msg/CustomMsg"](
        header=types["std_msgs/msg/Header"](stamp=time, frame_id=frame, **seq),
        timebase=stamp,
        point_num=len(points),
        lidar_id=1,
        rsvd=np.zeros(3, np.uint8),
        points=[
            kind(offset_time=9 * i, x=float(x), y=float(y), z=float(z), reflectivity=i % 256, tag=3, line=2)
            for i, (x, y, z) in enumerate(points)
        ],
    )


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 7),
    frame=st.text("livox_", max_size=9),
    package=st.sampled_from(["livox_ros_driver", "livox_ros_driver2"]),
    big=st.booleans(),
)
def test_points_are_those_of_the_message(count: int, frame: str, package: str, big: bool) -> None:
    store = store_of(package, Stores.ROS2_JAZZY)
    kind = f"{package}/msg/CustomMsg"
    points = np.random.default_rng(count).normal(0, 10, (count, 3)).astype(np.float32)
    data = bytes(store.serialize_cdr(scan(store, package, points, frame=frame), kind, little_endian=not big))
    message = LivoxReader(kind, store.generate_msgdef(kind, ros_version=2)[0], "ros2msg").read(data, ros1=False)
    assert np.array_equal(cloud_from_message(message), points)
    assert (message.header.frame_id, stamp_ns(message.header)) == (frame, START_NS)
    assert [f.name for f in message.fields] == ["offset_time", "x", "y", "z", "reflectivity", "tag", "line"]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_messages_are_refused_or_read_within_their_bytes(data: st.DataObject) -> None:
    store = store_of("livox_ros_driver2", Stores.ROS2_JAZZY)
    kind = "livox_ros_driver2/msg/CustomMsg"
    whole = bytes(store.serialize_cdr(scan(store, "livox_ros_driver2", np.ones((4, 3), np.float32)), kind))
    changed = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 3)) if changed else 0):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    reader = LivoxReader(kind, store.generate_msgdef(kind, ros_version=2)[0], "ros2msg")
    try:
        cloud = cloud_from_message(reader.read(bytes(changed), ros1=False))
    except DataError:
        return
    assert len(cloud) * 19 <= len(changed)


def records(store: Any, package: str) -> list[tuple[str, int, Any, Any, str]]:
    """Topic, time, message, its store, its type: a drive of two seconds, ten a second."""
    found = []
    for i in range(20):
        stamp = START_NS + i * 100 * MS
        cloud = scan(store, package, np.full((30, 3), 1.0 + i, np.float32), stamp, "base_link")
        picture = bags.image(stamp, np.full((24, 32, 3), 9 * i, np.uint8))
        found.append(("/odom", stamp, bags.odometry(stamp, 2.0 * i, 0.0, 0.0), bags.STORE, "nav_msgs/msg/Odometry"))
        found.append(("/camera", stamp, picture, bags.STORE, "sensor_msgs/msg/Image"))
        found.append(("/livox/lidar", stamp, cloud, store, f"{package}/msg/CustomMsg"))
    return found


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_bag_of_the_driver_becomes_a_session(storage: str, tmp_path: Path) -> None:
    store = store_of("livox_ros_driver2", Stores.ROS2_JAZZY)
    connections: dict[str, Any] = {}
    with Writer(tmp_path / "drive", version=9, storage_plugin=StoragePlugin[storage.upper()]) as writer:
        for topic, stamp, item, types, kind in records(store, "livox_ros_driver2"):
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=types)
            writer.write(connections[topic], stamp, types.serialize_cdr(item, kind))
    session = Session(ingest(tmp_path / "drive", tmp_path / "out", IngestConfig(region="town")).session)
    assert len(session) == 20
    assert session.info.topics["lidar"] == "/livox/lidar"
    assert all(np.array_equal(session.cloud(i), np.full((30, 3), 1.0 + i, np.float32)) for i in range(20))
    with Bag(tmp_path / "drive") as bag:
        assert "/livox/lidar, 30 points of offset_time x y z reflectivity tag line" in inspect(bag)


def test_a_rosbag1_of_the_old_driver_becomes_a_session(tmp_path: Path) -> None:
    store = store_of("livox_ros_driver", Stores.ROS1_NOETIC)
    kind = "livox_ros_driver/msg/CustomMsg"
    with Rosbag1Writer(tmp_path / "drive.bag") as writer:
        lidar = writer.add_connection("/livox/lidar", kind, typestore=store)
        camera = writer.add_connection("/camera", "sensor_msgs/msg/CompressedImage", typestore=store)
        png = bytes.fromhex(
            "89504e470d0a1a0a0000000d494844520000000100000001080200000090"
            "7753de0000000c49444154789c63606060000000040001f61738550000000049454e44ae426082"
        )
        types = store.types
        for i in range(5):
            stamp = START_NS + i * 1000 * MS
            cloud = scan(store, "livox_ros_driver", np.full((3, 3), 2.0 + i, np.float32), stamp, "base_link")
            writer.write(lidar, stamp, store.serialize_ros1(cloud, kind))
            picture = types["sensor_msgs/msg/CompressedImage"](
                header=cloud.header, format="png", data=np.frombuffer(png, np.uint8)
            )
            writer.write(camera, stamp, store.serialize_ros1(picture, "sensor_msgs/msg/CompressedImage"))
    session = Session(ingest(tmp_path / "drive.bag", tmp_path / "out", IngestConfig(region="town")).session)
    assert [session.cloud(i)[0, 0] for i in range(len(session))] == [2.0, 3.0, 4.0, 5.0, 6.0]


def test_definitions_that_are_missing_or_of_another_layout_are_told() -> None:
    kind = "livox_ros_driver2/msg/CustomMsg"
    with pytest.raises(
        DataError, match=r"definition of livox_ros_driver2/msg/CustomMsg is not in the bag.*PointCloud2"
    ):
        LivoxReader(kind, "", "ros2msg")
    for text, encoding in (("nonsense ((", "ros2msg"), ("float64 speed\n", "ros2msg"), ("module {", "ros2idl")):
        with pytest.raises(DataError, match="cannot be used"):
            LivoxReader(kind, text, encoding)
    text_points = store_of("livox_ros_driver2", Stores.ROS2_JAZZY, "string x\nfloat32 y\nfloat32 z\n")
    with pytest.raises(DataError, match="no fixed size"):
        LivoxReader(kind, text_points.generate_msgdef(kind, ros_version=2)[0], "ros2msg")
    without_z = store_of("livox_ros_driver2", Stores.ROS2_JAZZY, "float32 x\nfloat32 y\n")
    type_of = without_z.types["livox_ros_driver2/msg/CustomPoint"]
    message = scan(store_of("livox_ros_driver2", Stores.ROS2_JAZZY), "livox_ros_driver2", np.ones((1, 3), np.float32))
    message.points = [type_of(x=1.0, y=2.0)]
    data = bytes(without_z.serialize_cdr(message, kind))
    reader = LivoxReader(kind, without_z.generate_msgdef(kind, ros_version=2)[0], "ros2msg")
    with pytest.raises(DataError, match="no field 'z'"):
        cloud_from_message(reader.read(data, ros1=False))
