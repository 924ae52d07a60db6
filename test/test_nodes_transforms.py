"""Transforms and parameters of the running nodes: map -> odom, poses from tf and fixes, changes that are refused."""

from __future__ import annotations

import importlib.util
import math
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

from geometry_msgs.msg import PoseWithCovarianceStamped, TransformStamped
from nav_msgs.msg import Odometry
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image, NavSatFix, PointCloud2
from std_srvs.srv import Trigger

from support.ros import Graph, wait_until  # sets what ROS reads when it is imported
from support.town import SECOND_NS, SIMILAR, START_NS, image_of, pose_at, save_town
from vpr_kd_ros.conversions import header, odometry_to_message
from vpr_kd_ros.decode import pose_from_message
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.place_map import PlaceMap

FAKE_TF2 = Path(__file__).parent / "support" / "fake_tf2"


def matrix(pose: Any) -> np.ndarray[Any, Any]:
    """A planar (3, 3) matrix of x, y and yaw."""
    x, y, yaw = pose
    return np.array([[math.cos(yaw), -math.sin(yaw), x], [math.sin(yaw), math.cos(yaw), y], [0, 0, 1]])


def set_parameter(graph: Graph, node: str, name: str, value: Any) -> Any:
    request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
    return graph.call(SetParameters, f"/{node}/set_parameters", request).results[0]


def test_map_to_odom_is_published_when_match_and_odometry_agree_and_never_guessed(
    graph: Graph, tiny_student: Path, tmp_path: Path
) -> None:
    save_town(tmp_path / "map", tiny_student)
    camera, wheels = graph.publisher(Image, "/image"), graph.publisher(Odometry, "/odom")
    transforms = graph.collect(TransformStamped, "/fake_tf", 100)
    clouds = graph.collect(PointCloud2, "/localizer/candidates")
    poses = graph.collect(PoseWithCovarianceStamped, "/localizer/pose")
    parameters = {"student": tiny_student, "map": tmp_path / "map", "min_similarity": SIMILAR, "publish_tf": True}
    node = graph.start("localizer", parameters, python_path=[FAKE_TF2])

    def show(place: int, seconds: float, odometry: tuple[float, float, float] | None) -> None:
        message = image_of(place, seconds)

        def publish() -> None:
            if odometry is not None:
                for shift in (-SECOND_NS // 10, SECOND_NS // 10):
                    stamp = START_NS + int(seconds * SECOND_NS) + shift
                    wheels.publish(odometry_to_message(Pose.planar(*odometry), stamp, "odom", "base_link"))
            camera.publish(message)

        graph.repeat_until(publish, lambda: [c for c in clouds if c.header.stamp == message.header.stamp], "candidates")

    show(3, 1.0, None)
    show(1000, 2.0, (1.0, 2.0, 0.5))
    time.sleep(0.5)
    assert not transforms
    show(3, 3.0, (1.0, 2.0, 0.5))
    found = wait_until(lambda: transforms, "the transform")[-1]
    assert (found.header.frame_id, found.child_frame_id) == ("map", "odom")
    assert found.header.stamp == image_of(3, 3.0).header.stamp
    same = wait_until(lambda: [pose for pose in poses if pose.header.stamp == found.header.stamp], "its pose")[0]
    place = pose_from_message(same)
    expected = matrix((*place.position[:2], place.yaw)) @ np.linalg.inv(matrix((1.0, 2.0, 0.5)))
    at, turn = found.transform.translation, found.transform.rotation
    np.testing.assert_allclose(matrix((at.x, at.y, 2.0 * math.atan2(turn.z, turn.w))), expected, atol=1e-6)
    np.testing.assert_allclose(place.position[:2], pose_at(3).position[:2], atol=5.0)
    count = len(transforms)
    show(1000, 4.0, (1.0, 2.0, 0.5))
    time.sleep(0.5)
    assert len(transforms) == count
    assert node.end(signal.SIGTERM) == 0, node.output
    assert "Traceback" not in node.output


@pytest.mark.skipif(importlib.util.find_spec("tf2_ros") is not None, reason="tf2_ros is installed here")
def test_without_tf2_the_parameters_that_need_it_are_refused(graph: Graph, tiny_student: Path, tmp_path: Path) -> None:
    save_town(tmp_path / "map", tiny_student)
    node = graph.start(
        "localizer",
        {"student": tiny_student, "map": tmp_path / "map", "min_similarity": SIMILAR, "publish_tf": True},
    )
    node.wait_for_output("parameter 'publish_tf': it needs tf2_ros")
    mapper = graph.start("mapper", {"student": tiny_student, "map": tmp_path / "new", "pose_source": "tf"})
    mapper.wait_for_output("parameter 'pose_source': it needs tf2_ros")
    for process in (node, mapper):
        assert "apt install ros-$ROS_DISTRO-tf2-ros" in process.output
        assert "Traceback" not in process.output
        assert process.end(signal.SIGINT) == 0


def test_mapper_takes_the_poses_of_tf_at_the_stamps_of_the_images(
    graph: Graph, tiny_student: Path, tmp_path: Path
) -> None:
    camera, tf = graph.publisher(Image, "/image"), graph.publisher(TransformStamped, "/fake_tf", 100)
    node = graph.start(
        "mapper",
        {"student": tiny_student, "map": tmp_path / "map", "pose_source": "tf", "base_frame": "robot"},
        python_path=[FAKE_TF2],
    )
    for topic in ("/image", "/fake_tf"):
        graph.wait_for_subscriber(topic)

    def drive() -> None:
        for index in range(4):
            message = TransformStamped(header=header(START_NS + index * SECOND_NS, "map"), child_frame_id="robot")
            pose = pose_at(index)
            message.transform.translation.x, message.transform.translation.y = (float(v) for v in pose.position[:2])
            rotation = message.transform.rotation
            rotation.x, rotation.y, rotation.z, rotation.w = (float(v) for v in pose.quaternion)
            tf.publish(message)
            camera.publish(image_of(index, index))

    graph.repeat_until(drive, lambda: _saved(graph) >= 4, "four places")
    assert node.end(signal.SIGINT) == 0, node.output
    place_map = PlaceMap.load(tmp_path / "map")
    for position in place_map.positions:
        assert min(np.linalg.norm(position - pose_at(i).position) for i in range(4)) < 1e-6


def _saved(graph: Graph) -> int:
    """Places in the mapper's map, after saving it."""
    answer = graph.call(Trigger, "/mapper/save", Trigger.Request())
    return int(answer.message.rsplit(": ", 1)[1].split()[0]) if answer.success else 0


def test_mapper_takes_satellite_fixes_as_metres_and_heads_where_it_drives(
    graph: Graph, tiny_student: Path, tmp_path: Path
) -> None:
    camera, receiver = graph.publisher(Image, "/image"), graph.publisher(NavSatFix, "/pose")
    latitude, longitude = 48.0, 11.0
    parameters = {"student": tiny_student, "map": tmp_path / "map", "pose_source": "fix", "max_pose_gap_s": 2.0}
    node = graph.start("mapper", parameters)
    for topic in ("/image", "/pose"):
        graph.wait_for_subscriber(topic)

    def drive() -> None:
        # North, 1e-4 degrees (11.1 m) a second.
        for index in range(5):
            stamp = START_NS + index * SECOND_NS
            fix = NavSatFix(header=header(stamp, "gps"), latitude=latitude + 1e-4 * index, longitude=longitude)
            fix.status.status = 0
            receiver.publish(fix)
            time.sleep(0.02)
            camera.publish(image_of(index, index))

    graph.repeat_until(drive, lambda: _saved(graph) >= 3, "three places")
    assert node.end(signal.SIGINT) == 0, node.output
    assert "nav_origin (48.0" in node.output
    assert "a fix tells no heading until" in node.output
    place_map = PlaceMap.load(tmp_path / "map")
    # One degree of latitude at 48 degrees is 111.2 km.
    steps = place_map.positions[:, 1] / 11.12
    np.testing.assert_allclose(steps, np.round(steps), atol=0.01)
    assert np.ptp(steps) > 1.9
    np.testing.assert_allclose(place_map.positions[:, 0], 0.0, atol=1e-6)
    appending = graph.start("mapper", {**parameters, "append": True})
    appending.wait_for_output("parameter 'nav_origin': it is not given")


def test_only_one_mapper_writes_a_map_and_it_may_be_read_meanwhile(
    graph: Graph, tiny_student: Path, tmp_path: Path
) -> None:
    save_town(tmp_path / "map", tiny_student)
    parameters = {"student": tiny_student, "map": tmp_path / "map", "append": True}
    first = graph.start("mapper", parameters)
    first.wait_for_output("places in")
    second = graph.start("mapper", parameters, {"__node": "another"})
    second.wait_for_output(f"process {first.process.pid} is writing this map")
    assert len(PlaceMap.load(tmp_path / "map")) == 8
    first.end(signal.SIGKILL)
    third = graph.start("mapper", parameters, {"__node": "third"})
    third.wait_for_output("places in")
    assert third.end() == 0


def test_parameters_are_checked_when_they_are_set_and_refusals_say_why(
    graph: Graph, tiny_student: Path, tmp_path: Path
) -> None:
    save_town(tmp_path / "map", tiny_student)
    camera = graph.publisher(Image, "/image")
    clouds = graph.collect(PointCloud2, "/localizer/candidates")
    node = graph.start("localizer", {"student": tiny_student, "map": tmp_path / "map", "min_similarity": SIMILAR})
    graph.repeat_until(lambda: camera.publish(image_of(1, 1.0)), lambda: clouds, "candidates")
    for name, value, reason in (
        ("max_rate_hz", -1.0, "out of range"),
        ("max_rate_hz", "often", "wants a number"),
        ("image_transport", "raw", "read when the node is configured, and the node is active"),
        ("mode", "blief", "did you mean 'belief'?"),
        ("min_similarity", -1.0, "carries no calibration"),
    ):
        result = set_parameter(graph, "localizer", name, value)
        assert not result.successful
        assert reason in result.reason
    assert set_parameter(graph, "localizer", "max_rate_hz", 2.0).successful
    time.sleep(0.6)
    before, began = len(clouds), time.monotonic()
    for index in range(60):
        camera.publish(image_of(index % 8, 2.0 + index))
        time.sleep(0.05)
    # At 20 images a second for three seconds, every tenth.
    assert 2 <= len(clouds) - before <= 2.0 * (time.monotonic() - began) + 2
    assert node.end() == 0, node.output
