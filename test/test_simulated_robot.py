"""The simulated robot as others see it: a real process, messages over DDS."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

from nav_msgs.msg import Odometry
from rclpy.qos import qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, PointCloud2

from support.ros import PROFILES, REPOSITORY, Graph, wait_until  # sets what ROS reads when it is imported
from training.simulation.camera import CameraConfig
from training.simulation.lidar import LidarConfig
from training.simulation.robot import drive, parse_wait_for
from training.simulation.schedule import RobotConfig
from training.simulation.town import TownConfig
from vpr_kd_ros.decode import cloud_from_message, image_from_message
from vpr_kd_ros.errors import ConfigError

CONFIG = RobotConfig(
    length=16.0,
    rate_factor=4.0,
    start_at=24.0,
    condition="rain",
    town=TownConfig(loop_length_m=160.0),
    camera=CameraConfig(height=24, width=32),
    lidar=LidarConfig(beams=4, columns=60),
)
OPTIONS = ["--length", "16", "--rate_factor", "4", "--start_at", "24", "--condition", "rain"]
OPTIONS += ["--town.loop_length_m", "160", "--camera.height", "24", "--camera.width", "32"]
OPTIONS += ["--lidar.beams", "4", "--lidar.columns", "60"]


def start(domain: int, *options: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "ROS_DOMAIN_ID": str(domain), "FASTRTPS_DEFAULT_PROFILES_FILE": str(PROFILES)}
    command = [sys.executable, "-m", "training", "drive", *OPTIONS, *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=REPOSITORY)


def stamp_ns(message: Image | PointCloud2 | Odometry) -> int:
    return int(message.header.stamp.sec) * 1_000_000_000 + int(message.header.stamp.nanosec)


def test_a_drive_publishes_what_the_sessions_would_hold(graph: Graph) -> None:
    images = graph.collect(Image, "/camera/image_raw", qos_profile_sensor_data)
    clouds = graph.collect(PointCloud2, "/lidar/points", qos_profile_sensor_data)
    exact = graph.collect(Odometry, "/ground_truth/odom")
    odometry = graph.collect(Odometry, "/odom")
    clock = graph.collect(Clock, "/clock")
    behind = graph.collect(Image, "/rear_camera/image_raw", qos_profile_sensor_data)
    topics = ("camera/image_raw", "rear_camera/image_raw", "lidar/points", "odom", "ground_truth/odom", "clock")
    robot = start(graph.domain, "--rear_camera", "true", "--wait_for", *(f"{topic}=1" for topic in topics))
    _, errors = robot.communicate(timeout=120)
    assert robot.returncode == 0, errors
    wait_until(lambda: len(exact) == len(odometry) == 41 and len(images) >= 11 and len(clouds) >= 11, "all messages")
    wait_until(lambda: len(behind) >= 10, "all images of the rear camera")

    traverse = CONFIG.traverse()
    first = traverse.first_stamp_ns
    assert [stamp_ns(message) - first for message in images] == [number * 200_000_000 for number in range(11)]
    for number in (0, 7):
        travelled = CONFIG.travelled_m(number * 200_000_000)
        np.testing.assert_array_equal(image_from_message(images[number]), traverse.photograph(travelled)[0])
        np.testing.assert_array_equal(cloud_from_message(clouds[number]), traverse.scan(travelled)[0])
    assert [stamp_ns(message) - first for message in behind] == [100_000_000 + n * 200_000_000 for n in range(10)]
    travelled = CONFIG.travelled_m(700_000_000)
    np.testing.assert_array_equal(image_from_message(behind[3]), traverse.photograph(travelled, rear=True)[0])
    assert [field.name for field in clouds[0].fields] == ["x", "y", "z", "intensity"]
    position = exact[40].pose.pose.position
    np.testing.assert_allclose((position.x, position.y), traverse.pose(40.0).position[:2])
    frames = {(message.header.frame_id, message.child_frame_id) for message in (*exact, *odometry)}
    assert frames == {("map", "base_link"), ("odom", "base_link")}
    believed = odometry[40].pose.pose.position
    assert 14 < np.hypot(believed.x, believed.y) < 18
    times = [message.clock.sec * 1_000_000_000 + message.clock.nanosec for message in clock]
    assert times == sorted(times)
    assert times[0] == first
    assert times[-1] > first + CONFIG.duration_ns


def test_missing_subscribers_and_signals_end_it_cleanly(graph: Graph) -> None:
    robot = start(graph.domain, "--wait_for", "odom=1", "--timeout_s", "0.5")
    _, errors = robot.communicate(timeout=120)
    assert robot.returncode == 1
    assert "odom has 0 of 1" in errors
    assert "Traceback" not in errors

    odometry = graph.collect(Odometry, "/odom")
    robot = start(graph.domain, "--length", "0", "--rate_factor", "0.5")
    wait_until(lambda: odometry, "the first odometry")
    robot.send_signal(signal.SIGTERM)
    _, errors = robot.communicate(timeout=60)
    assert robot.returncode == 130
    assert "Traceback" not in errors


def test_topics_to_wait_for_are_checked() -> None:
    with pytest.raises(ConfigError, match="only with rear_camera"):
        drive(RobotConfig(), {"rear_camera/image_raw": 1})
    assert parse_wait_for(["/camera/image_raw=2", "clock=1"]) == {"camera/image_raw": 2, "/clock": 1}
    with pytest.raises(ConfigError, match=r"no 'camera/image' \(did you mean 'camera/image_raw'"):
        parse_wait_for(["camera/image=1"])
    with pytest.raises(ConfigError, match="wants TOPIC=COUNT"):
        parse_wait_for(["odom"])
