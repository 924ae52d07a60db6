"""Images without the lens's distortion, from the camera's own CameraInfo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from training.ingest.bag import Bag
from training.ingest.config import AUTO, IngestConfig
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.geometry import Floats

INFO_TYPE = "sensor_msgs/msg/CameraInfo"
PINHOLE = ("plumb_bob", "rational_polynomial")
FISHEYE = ("equidistant", "fisheye")


@dataclass(frozen=True)
class Rectifier:
    """Maps of a camera: where in the raw image each pixel of the rectified one is, (H, W) float32 each.

    Attributes:
        intrinsics: of the rectified image, (3, 3) float64, pixels.
    """

    map_x: NDArray[np.float32]
    map_y: NDArray[np.float32]
    intrinsics: Floats
    model: str

    @classmethod
    def from_message(cls, info: Any) -> Rectifier:
        """Of a ``sensor_msgs/CameraInfo``: K, D, R and P mean what image_proc takes them for.

        Raises:
            DataError: the camera is not calibrated, its distortion model is unknown, or d is not of it.
        """
        raw, turned, projection = (_field(info, name, shape) for name, shape in _SHAPES.items())
        distortion = np.asarray(getattr(info, "d", getattr(info, "D", ())), dtype=np.float64)
        height, width, model = int(info.height), int(info.width), str(info.distortion_model)
        if raw[0, 0] <= 0 or raw[1, 1] <= 0 or height < 1 or width < 1:
            raise DataError("CameraInfo: k is zero: the camera is not calibrated; ingest with --rectify false")
        new = projection[:, :3] if projection[0, 0] > 0 else raw
        turned = turned if turned.any() else np.eye(3)
        size = (width, height)
        known = (*PINHOLE, *FISHEYE)
        if model not in known and (model or distortion.any()):
            raise DataError(
                f"CameraInfo: distortion_model {model!r}; known: {', '.join(known)}; ingest with --rectify false"
            )
        try:
            if model in FISHEYE:
                maps = cv2.fisheye.initUndistortRectifyMap(raw, distortion[:4], turned, new, size, cv2.CV_32FC1)
            else:
                maps = cv2.initUndistortRectifyMap(raw, distortion, turned, new, size, cv2.CV_32FC1)
        except cv2.error as error:
            raise DataError(
                f"CameraInfo: d has {len(distortion)} numbers, which are no {model} distortion; ingest with --rectify "
                "false"
            ) from error
        map_x, map_y = (np.asarray(part, dtype=np.float32) for part in maps)
        return cls(map_x, map_y, np.asarray(new, dtype=np.float64), model)

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Rectify an image (H, W, 3); where the raw one has nothing, it is black.

        Raises:
            DataError: the image has another size than the calibration.
        """
        if image.shape[:2] != self.map_x.shape:
            (height, width), (rows, columns) = image.shape[:2], self.map_x.shape
            raise DataError(f"image: {width}x{height} pixels, but its CameraInfo is of {columns}x{rows}")
        return np.asarray(cv2.remap(image, self.map_x, self.map_y, cv2.INTER_LINEAR), dtype=np.uint8)

    def intrinsics_at(self, width: int, height: int) -> Floats:
        """The intrinsics of the rectified image when it was shrunk to a size in pixels, (3, 3)."""
        rows, columns = self.map_x.shape
        return np.asarray(self.intrinsics * np.array([[width / columns], [height / rows], [1.0]]), dtype=np.float64)


_SHAPES = {"k": (3, 3), "r": (3, 3), "p": (3, 4)}


def find_rectifier(bag: Bag, camera_topic: str, config: IngestConfig) -> Rectifier | None:
    """From the first CameraInfo of the camera; None where the configuration does not ask for it.

    Raises:
        DataError: there is none, or it cannot be used.
    """
    if not config.rectify:
        return None
    infos = [topic.name for topic in bag.topics.values() if topic.type == INFO_TYPE and topic.count > 0]
    topic = config.camera_info_topic
    if topic == AUTO:
        # Beside the image: /front/image_raw/compressed and /front/image_raw both have /front/camera_info.
        parts = camera_topic.split("/")
        beside = ["/".join([*parts[:-n], "camera_info"]) for n in (1, 2) if len(parts) > n]
        topic = next((name for name in beside if name in infos), beside[0])
    if topic not in infos:
        listed = " or ".join(f"--camera_info_topic {name}" for name in infos) or "--rectify false: the bag has none"
        raise DataError(f"no CameraInfo on {topic!r} for {camera_topic}; give {listed}")
    for _, _, data in bag.messages({topic}):
        return Rectifier.from_message(bag.decode(topic, data))
    raise DataError(f"{topic}: no CameraInfo can be read; ingest with --rectify false")


def _field(info: Any, name: str, shape: tuple[int, int]) -> Floats:
    # ROS 1 writes the names of matrices large.
    values = np.asarray(getattr(info, name, getattr(info, name.upper(), ())), dtype=np.float64)
    if values.size != shape[0] * shape[1] or not np.isfinite(values).all():
        raise DataError(f"CameraInfo: {name} is not {shape[0]}x{shape[1]} numbers")
    return values.reshape(shape)
