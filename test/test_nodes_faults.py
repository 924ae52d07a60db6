"""What a robot does to a localizer: cameras that restart, broken images, clocks that jump, maps replaced, kill -9."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import CompressedImage, Image, PointCloud2
from std_msgs.msg import String
from std_srvs.srv import Trigger

from support.ros import Graph, NodeProcess, wait_until  # sets what ROS reads when it is imported
from support.tiny import picture
from support.town import SECOND_NS, SIMILAR, START_NS, image_of, save_town
from vpr_kd_ros.conversions import header


class Localizer:
    """A localizer that runs, and what it answers."""

    def __init__(self, graph: Graph, student: Path, place_map: Path, **parameters: Any) -> None:
        self.graph = graph
        self.clouds = graph.collect(PointCloud2, "/localizer/candidates")
        self.diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
        self._parameters = {"student": student, "map": place_map, "min_similarity": SIMILAR, **parameters}
        self.node = self.start()

    def start(self) -> NodeProcess:
        self.node = self.graph.start("localizer", self._parameters)
        return self.node

    def show(self, publisher: Any, message: Any) -> PointCloud2:
        """Publish an image until it is answered, and return its candidates."""
        stamp, before = message.header.stamp, len(self.clouds)

        def answer() -> PointCloud2 | None:
            return next((cloud for cloud in self.clouds[before:] if cloud.header.stamp == stamp), None)

        return self.graph.repeat_until(lambda: publisher.publish(message), answer, "candidates of the image")

    def message(self) -> str:
        """What the newest diagnostics say."""
        statuses = [array.status[0] for array in list(self.diagnostics) if array.status[0].hardware_id == "/localizer"]
        return statuses[-1].message if statuses else ""


def first_x(cloud: PointCloud2) -> float:
    """x of the best candidate, which is the first field of the first point."""
    return float(np.frombuffer(cloud.data, "<f4", count=1)[0])


def jpeg_of(index: int, seconds: float, broken: str = "") -> CompressedImage:
    """A picture as the camera's driver compresses it, or damaged."""
    _, encoded = cv2.imencode(".png" if not broken else ".jpg", np.ascontiguousarray(picture(index)[:, :, ::-1]))
    data = encoded.tobytes()
    if broken == "cut":
        data = data[: len(data) // 2]
    elif broken == "noise":
        data = np.random.default_rng(index).bytes(len(data))
    elif broken == "empty":
        data = b""
    stamp = header(START_NS + int(seconds * SECOND_NS), "camera")
    return CompressedImage(header=stamp, format="jpeg", data=data)


def test_camera_restarts_clock_jumps_and_the_map_is_replaced(graph: Graph, tiny_student: Path, tmp_path: Path) -> None:
    save_town(tmp_path / "map", tiny_student)
    robot = Localizer(graph, tiny_student, tmp_path / "map", image_timeout_s=1.0)
    camera = graph.publisher(Image, "/image")
    assert first_x(robot.show(camera, image_of(2, 1.0))) == pytest.approx(10.0)
    # The driver dies; the node says so, and hears its successor.
    graph.node.destroy_publisher(camera)
    wait_until(lambda: "no image on /image (best effort" in robot.message(), "the warning")
    wait_until(lambda: "0 publishers" in robot.message(), "the number of publishers")
    camera = graph.publisher(Image, "/image")
    assert first_x(robot.show(camera, image_of(3, 2.0))) == pytest.approx(15.0)
    # Back by an hour, and forward by a year.
    for index, seconds in ((4, -3600.0), (5, 3.2e7), (6, 3.0)):
        assert first_x(robot.show(camera, image_of(index, seconds))) == pytest.approx(5.0 * index)
    # The map is replaced under load, while it is being read again.
    stop = threading.Event()

    def replace() -> None:
        while not stop.is_set():
            save_town(tmp_path / "map", tiny_student, offset_m=100.0)

    save_town(tmp_path / "map", tiny_student, offset_m=100.0)
    replacing = threading.Thread(target=replace)
    replacing.start()
    try:
        for _ in range(5):
            answer = graph.call(Trigger, "/localizer/reload_map", Trigger.Request())
            assert answer.success, answer.message
            camera.publish(image_of(1, 4.0))
    finally:
        stop.set()
        replacing.join()
    assert first_x(robot.show(camera, image_of(2, 5.0))) == pytest.approx(110.0)
    assert robot.node.end(signal.SIGTERM) == 0, robot.node.output
    assert "Traceback" not in robot.node.output


def test_corrupt_jpegs_are_dropped_and_a_killed_localizer_returns_under_load(
    graph: Graph, tiny_student: Path, tmp_path: Path
) -> None:
    save_town(tmp_path / "map", tiny_student)
    robot = Localizer(graph, tiny_student, tmp_path / "map", image_transport="compressed")
    camera = graph.publisher(CompressedImage, "/image/compressed")
    robot.show(camera, jpeg_of(1, 1.0))
    stop = threading.Event()

    def load() -> None:
        count = 0
        while not stop.is_set():
            for message in (
                jpeg_of(count % 8, 100.0 + count),
                *(jpeg_of(1, 0.0, kind) for kind in ("cut", "noise", "empty")),
            ):
                camera.publish(message)
                time.sleep(0.02)
            count += 1

    loading = threading.Thread(target=load)
    loading.start()
    try:
        for number in (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM):
            before = len(robot.clouds)
            wait_until(lambda b=before: len(robot.clouds) > b + 5, "answers between the broken images")
            status = robot.node.end(number)
            assert status == (-signal.SIGKILL if number == signal.SIGKILL else 0), robot.node.output
            assert "Traceback" not in robot.node.output
            assert "image dropped: compressed image" in robot.node.output
            if number == signal.SIGKILL:
                robot.start()
    finally:
        stop.set()
        loading.join()
    assert not [cloud for cloud in robot.clouds if cloud.header.stamp.sec == START_NS // SECOND_NS]


def test_a_topic_of_another_type_is_named_and_harms_nobody(graph: Graph, tiny_student: Path, tmp_path: Path) -> None:
    save_town(tmp_path / "map", tiny_student)
    talker = graph.publisher(String, "/image")
    robot = Localizer(graph, tiny_student, tmp_path / "map", image_timeout_s=0.5)
    for _ in range(20):
        talker.publish(String(data="no image"))
        time.sleep(0.02)
    wait_until(lambda: "it carries std_msgs/msg/String" in robot.message(), "the warning that names the type")
    robot.node.wait_for_output("it carries std_msgs/msg/String")
    assert robot.node.end() == 0
