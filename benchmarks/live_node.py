"""A localizer in a process of its own, a camera that publishes to it, and what the process costs; for the benchmarks.

Not a benchmark itself: `soak.py` and `node_share.py` use it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring import REPOSITORY, cpu_seconds, status_of

PROFILES = REPOSITORY / "config" / "fastdds.xml"
IMAGE_TOPIC = "/camera/image_raw"
START_SECONDS = 120.0


def pictures_of(place_map: Path, count: int, width: int, height: int) -> list[NDArray[np.uint8]]:
    """Images for a camera, (height, width, 3) RGB uint8: the map's own thumbnails, enlarged."""
    from vpr_kd_ros.place_map import PlaceMap

    places = PlaceMap.load(place_map)
    images = [places.thumbnail(place_id) for place_id in places.ids[:count].tolist()]
    return [
        np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
        for image in images
        if image is not None
    ]


class NodeUnderTest:
    """The process of a localizer.

    Args:
        command: Python arguments that run the node.
        parameters: of the node.
        domain: ROS domain, which no other node may share.
        log: file for what it prints.
    """

    def __init__(self, command: Sequence[str], parameters: dict[str, Any], domain: int, log: Path) -> None:
        arguments = [part for name, value in parameters.items() for part in ("-p", f"{name}:={value}")]
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, *command, "--ros-args", *arguments, "-r", f"image:={IMAGE_TOPIC}"],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                env={**environment(domain), "RCUTILS_LOGGING_BUFFERED_STREAM": "0"},
            )

    @property
    def output(self) -> str:
        """What it printed."""
        return self._log.read_text(errors="replace")

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def resident_mb(self) -> float:
        """Resident memory, MB."""
        return status_of("VmRSS", self._process.pid) / 1024

    def threads(self) -> int:
        """Number of threads."""
        return status_of("Threads", self._process.pid)

    def cpu_seconds(self) -> float:
        """Processor time so far, user and system."""
        return cpu_seconds(self._process.pid)

    def end(self) -> int:
        """Interrupt it and return its exit status."""
        if self.alive:
            self._process.send_signal(signal.SIGINT)
        try:
            return self._process.wait(60.0)
        finally:
            if self.alive:
                self._process.kill()


class Camera:
    """Publishes images at a fixed rate and hears the candidates that answer each.

    Attributes:
        sent: images published.
        answers: seconds from an image's stamp to its candidates' arrival here, in the order of arrival.
        poses: accepted poses heard.
    """

    def __init__(self, images: Sequence[NDArray[np.uint8]], rate_hz: float, domain: int) -> None:
        os.environ.update(environment(domain))
        import rclpy
        from geometry_msgs.msg import PoseWithCovarianceStamped
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.qos import qos_profile_sensor_data
        from sensor_msgs.msg import Image, PointCloud2

        from vpr_kd_ros.conversions import image_to_message, stamp_from_ns

        self.sent = 0
        self.poses = 0
        self.answers: list[float] = []
        self._messages = [image_to_message(image, 0, "camera") for image in images]
        self._period_s = 1.0 / rate_hz
        self._stamp_from_ns = stamp_from_ns
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=domain)
        self._node = rclpy.create_node("benchmark_camera", context=self._context)
        self._publisher = self._node.create_publisher(Image, IMAGE_TOPIC, qos_profile_sensor_data)
        self._node.create_subscription(PointCloud2, "/localizer/candidates", self._on_answer, 10)
        self._node.create_subscription(PoseWithCovarianceStamped, "/localizer/pose", self._on_pose, 10)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._spin, daemon=True), threading.Thread(target=self._publish)]

    def __enter__(self) -> Camera:
        import rclpy

        self._rclpy = rclpy
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        self._node.destroy_node()
        self._rclpy.try_shutdown(context=self._context)

    def wait_for_answers(self, count: int, node: NodeUnderTest) -> None:
        """Wait until so many images were answered.

        Raises:
            RuntimeError: the node ended, or it took more than two minutes.
        """
        end = time.monotonic() + START_SECONDS
        while len(self.answers) < count:
            if not node.alive or time.monotonic() > end:
                raise RuntimeError(f"the node answers no image:\n{node.output}")
            time.sleep(0.1)

    def _publish(self) -> None:
        due = time.monotonic()
        while not self._stopping.is_set():
            message = self._messages[self.sent % len(self._messages)]
            message.header.stamp = self._stamp_from_ns(time.time_ns())
            self._publisher.publish(message)
            self.sent += 1
            due = max(due + self._period_s, time.monotonic())
            self._stopping.wait(due - time.monotonic())

    def _on_answer(self, message: Any) -> None:
        stamp = message.header.stamp
        self.answers.append(time.time() - stamp.sec - stamp.nanosec * 1e-9)

    def _on_pose(self, message: Any) -> None:
        self.poses += 1

    def _spin(self) -> None:
        while not self._stopping.is_set():
            self._executor.spin_once(timeout_sec=0.2)


def environment(domain: int) -> dict[str, str]:
    """This process's environment with a ROS domain, our transport profile and one OpenMP thread."""
    return {
        **os.environ,
        "ROS_DOMAIN_ID": str(domain),
        "FASTRTPS_DEFAULT_PROFILES_FILE": str(PROFILES),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
