"""The localizer node in mode belief, over DDS: odometry, reset and time that jumps back."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
from sensor_msgs.msg import Image, PointCloud2
from std_srvs.srv import Trigger

from support.ros import Graph, wait_until  # sets what ROS reads when it is imported
from support.tiny import SHY, picture, save_tiny_student
from vpr_kd_ros.conversions import image_to_message, odometry_to_message
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.place_map import PlaceMap
from vpr_kd_ros.student import Student

START_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000
PLACES = 14


def test_localizer_filters_over_time_and_forgets_when_it_is_told(graph: Graph, tmp_path: Path) -> None:
    save_tiny_student(tmp_path / "student.pt2", calibration=SHY)
    student = Student.load(tmp_path / "student.pt2")
    place_map = PlaceMap(student.metadata.descriptor_dim, student.metadata.fingerprint, "map")
    for i in range(PLACES):
        place_map.add(student.describe([picture(i)])[0], Pose.planar(5.0 * i, 0.0, 0.0), i, "drive")
    place_map.save(tmp_path / "map")
    camera, wheels = graph.publisher(Image, "/image"), graph.publisher(Odometry, "/wheels")
    poses = graph.collect(PoseWithCovarianceStamped, "/localizer/pose")
    clouds = graph.collect(PointCloud2, "/localizer/candidates")
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
    node = graph.start(
        "localizer",
        {"student": tmp_path / "student.pt2", "map": tmp_path / "map", "mode": "belief"},
        {"odom": "/wheels"},
    )

    def values() -> dict[str, str]:
        arrays = [array for array in list(diagnostics) if array.status[0].hardware_id == "/localizer"]
        return {value.key: value.value for value in arrays[-1].status[0].values} if arrays else {}

    def told() -> str:
        arrays = [array for array in list(diagnostics) if array.status[0].hardware_id == "/localizer"]
        return arrays[-1].status[0].message if arrays else ""

    def show(place: int, seconds: float) -> bool:
        """Publish a place's picture between two poses of the odometry; whether it is accepted."""
        stamp = START_NS + int(seconds * SECOND_NS)
        image = image_to_message(picture(place), stamp, "camera")

        def publish() -> None:
            for shift in (-0.1, 0.1):
                pose = Pose.planar(100.0, 5.0 * (place + shift), 1.5708)
                wheels.publish(odometry_to_message(pose, stamp + int(shift * SECOND_NS), "odom", "base_link"))
            camera.publish(image)

        stamps = [image.header.stamp]
        graph.repeat_until(publish, lambda: [c for c in list(clouds) if c.header.stamp in stamps], "candidates")
        # A pose is published before the candidates; they travel apart.
        try:
            wait_until(lambda: [p for p in list(poses) if p.header.stamp in stamps], "a pose", timeout_s=1.0)
        except AssertionError:
            return False
        return True

    # Long before, so that nothing is known of it any more.
    alone = image_to_message(picture(0), START_NS - 100 * SECOND_NS, "camera")
    graph.repeat_until(
        lambda: camera.publish(alone),
        lambda: "no odometry on /wheels (nav_msgs/msg/Odometry, 1 publishers), which mode 'belief' asks for" in told(),
        "the warning",
    )
    graph.repeat_until(lambda: show(0, 0.0), lambda: int(values().get("odometry", 0)), "odometry in the diagnostics")
    assert not show(0, 0.0)
    assert [show(i, i) for i in range(1, 7)][-1]
    assert poses[-1].pose.pose.position.x == pytest.approx(30.0, abs=2.5)
    assert values()["mode"] == "belief"
    resets = int(values()["belief_resets"])
    answer = graph.call(Trigger, "/localizer/reset", Trigger.Request())
    assert answer.success
    assert "where the robot is is unknown" in answer.message
    assert not show(7, 7)
    assert any(show(i, i) for i in range(8, 14))
    assert not show(3, 1)
    wait_until(lambda: int(values()["belief_resets"]) == resets + 2, "two resets in the diagnostics")
    assert node.end(signal.SIGINT) == 0, node.output
    assert "Traceback" not in node.output
