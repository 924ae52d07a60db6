"""Watches a localizer as any consumer of its topics would, and writes down what it saw.

``python -m training.demo.watch OUT``: until SIGINT or SIGTERM; then ``OUT/live.json`` holds every frame the localizer
answered, with the truth beside it, and ``OUT/frames`` the camera's images as JPEG.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import cv2
import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, PointCloud2

from vpr_kd_ros.decode import image_from_message, pose_from_message, stamp_ns

BEST_EFFORT = QoSProfile(depth=20, reliability=ReliabilityPolicy.BEST_EFFORT)


class Watch(Node):  # type: ignore[misc]  # rclpy has no type information
    """Subscribes to camera, truth and everything the localizer publishes."""

    def __init__(self, frames: Path) -> None:
        super().__init__("watch")
        self._frames = frames
        self._seen: dict[int, float] = {}
        self._answered: dict[int, tuple[float, dict[str, Any] | None]] = {}
        self._poses: dict[int, list[float]] = {}
        self._truth: list[list[float]] = []
        self._diagnostics: dict[str, str] = {}
        self.create_subscription(Image, "camera/image_raw", self._on_image, BEST_EFFORT)
        self.create_subscription(Odometry, "ground_truth/odom", self._on_truth, 100)
        self.create_subscription(PointCloud2, "localizer/candidates", self._on_candidates, 100)
        self.create_subscription(PoseWithCovarianceStamped, "localizer/pose", self._on_pose, 100)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def result(self) -> dict[str, Any]:
        """What was seen: frames answered in order, poses by stamp, the true trajectory, the last diagnostics."""
        frames = [
            {
                "stamp_ns": stamp,
                "best": best,
                "pose": self._poses.get(stamp),
                "latency_s": at - self._seen[stamp] if stamp in self._seen else None,
            }
            for stamp, (at, best) in sorted(self._answered.items())
        ]
        return {
            "images": len(self._seen),
            "frames": frames,
            "truth": self._truth,
            "diagnostics": self._diagnostics,
        }

    def _on_image(self, message: Image) -> None:
        at = time.monotonic()
        stamp = stamp_ns(message.header)
        self._seen[stamp] = at
        cv2.imwrite(str(self._frames / f"{stamp}.jpg"), np.ascontiguousarray(image_from_message(message)[:, :, ::-1]))

    def _on_truth(self, message: Odometry) -> None:
        pose = pose_from_message(message)
        self._truth.append([stamp_ns(message.header), *pose.position.tolist(), *pose.quaternion.tolist()])

    def _on_candidates(self, message: PointCloud2) -> None:
        at = time.monotonic()
        stamp = stamp_ns(message.header)
        columns = {f.name: (f.offset, "<i4" if f.datatype == f.INT32 else "<f4") for f in message.fields}
        kind = np.dtype(
            {
                "names": list(columns),
                "offsets": [offset for offset, _ in columns.values()],
                "formats": [form for _, form in columns.values()],
                "itemsize": message.point_step,
            }
        )
        rows = np.frombuffer(bytes(message.data), dtype=kind)
        best = {name: rows[name][0].item() for name in columns} if len(rows) else None
        self._answered[stamp] = (at, best)

    def _on_pose(self, message: PoseWithCovarianceStamped) -> None:
        pose = pose_from_message(message)
        self._poses[stamp_ns(message.header)] = [*pose.position.tolist(), *pose.quaternion.tolist()]

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if "localizer" in status.name:
                self._diagnostics = {entry.key: entry.value for entry in status.values}


def main(out: Path) -> None:
    """Watch until told to stop, then write."""
    frames = out / "frames"
    frames.mkdir(parents=True, exist_ok=True)

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    rclpy.init(signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    node = Watch(frames)
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        (out / "live.json").write_text(json.dumps(node.result()))
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
