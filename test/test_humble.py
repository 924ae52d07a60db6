"""The nodes on ROS 2 Humble, whose rclpy lacks what came later: see ``support/humble``."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import GetState
from nav_msgs.msg import Odometry
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image, PointCloud2
from std_srvs.srv import Trigger

from support.ros import Graph, NodeProcess  # sets what ROS reads when it is imported
from support.tiny import picture
from vpr_kd_ros.conversions import image_to_message, odometry_to_message
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.place_map import PlaceMap
from vpr_kd_ros.playback import Bag

HUMBLE = [Path(__file__).parent / "support" / "humble"]
CAMERA, ODOMETRY = "/camera/image_raw", "/odom"


class Robot:
    """A camera and odometry; each step is a metre, a tenth of a second and another picture."""

    def __init__(self, graph: Graph, image: str = CAMERA, pose: str = ODOMETRY) -> None:
        self._image = graph.publisher(Image, image, qos_profile_sensor_data)
        self._pose = graph.publisher(Odometry, pose)
        self._stamp_ns = time.time_ns()
        self.steps = 0

    def step(self) -> None:
        pose = Pose.planar(float(self.steps), 0.0, 0.0)
        self._image.publish(image_to_message(picture(self.steps % 8), self._stamp_ns, "camera"))
        self._pose.publish(odometry_to_message(pose, self._stamp_ns, "map", "base_link"))
        self.steps += 1
        self._stamp_ns += 100_000_000


def start(graph: Graph, name: str, parameters: dict[str, Any], remaps: dict[str, str] | None = None) -> NodeProcess:
    return graph.start(name, parameters, remaps, python_path=HUMBLE)


def test_the_folder_takes_away_what_humble_lacks() -> None:
    """Or the other tests would show nothing."""
    code = "from rclpy.node import Node; print(hasattr(Node, 'list_parameters'))"
    environment = {**os.environ, "PYTHONPATH": str(HUMBLE[0])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("name", ["localizer", "mapper", "recorder", "replay"])
def test_every_node_starts_and_knows_its_parameters(graph: Graph, name: str) -> None:
    node = start(graph, name, {"autostart": False, "topicz": "odom"})
    node.wait_for_output("waiting to be configured")
    assert "parameter 'topicz' is not one of this node's" in node.output
    assert graph.call(GetState, f"/{name}/get_state", GetState.Request()).current_state.label == "unconfigured"
    assert node.end() == 0, node.output


def test_a_drive_is_recorded_with_its_times_and_while_the_robot_moves(graph: Graph, tmp_path: Path) -> None:
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
    robot = Robot(graph)
    begun = time.time_ns()
    gate = {"gate_distance_m": 0.5, "gate_topic": ODOMETRY}
    node = start(
        graph, "recorder", {"output": tmp_path / "bag", "topics": (CAMERA, ODOMETRY), "min_free_mb": 0, **gate}
    )

    def heard(topic: str) -> int:
        values = [value for array in list(diagnostics) for value in array.status[0].values]
        return max((int(value.value) for value in values if value.key == f"{topic} messages"), default=0)

    for topic in (CAMERA, ODOMETRY):
        graph.repeat_until(robot.step, lambda topic=topic: heard(topic) > 5, f"{topic} to be heard")
    assert node.end() == 0, node.output
    bag = Bag(tmp_path / "bag")
    assert min(bag.topics[topic].count for topic in (CAMERA, ODOMETRY)) > 5
    assert all(begun < message.stamp_ns < time.time_ns() for message in bag.messages())
    assert "failed" not in node.output, node.output
    assert "everything is recorded" not in node.output.rpartition("recording /odom")[2]


def test_a_map_is_made_and_localised_in(graph: Graph, tiny_student: Path, tmp_path: Path) -> None:
    robot = Robot(graph, "/image", "/pose")
    path = tmp_path / "map"
    mapper = start(graph, "mapper", {"student": tiny_student, "map": path, "min_distance_m": 0.5})

    def saved() -> bool:
        return bool(graph.call(Trigger, "/mapper/save", Trigger.Request()).success) and len(PlaceMap.load(path)) > 0

    graph.repeat_until(robot.step, saved, "a map with a place")
    assert mapper.end() == 0, mapper.output
    candidates = graph.collect(PointCloud2, "/localizer/candidates")
    localizer = start(graph, "localizer", {"student": tiny_student, "map": path, "min_similarity": 0.9})
    graph.repeat_until(robot.step, lambda: candidates, "candidates")
    assert localizer.end() == 0, localizer.output
    for node in (mapper, localizer):
        assert "failed" not in node.output, node.output
