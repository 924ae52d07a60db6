"""How far the stamps of a camera are from those of a LiDAR; no ROS in here."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray


class StampOffset:
    """Camera stamp minus the nearest LiDAR stamp, over the last messages of both.

    Sensors whose clocks differ show here before anything is trained on them.
    """

    def __init__(self, window: int = 100) -> None:
        self._camera: deque[int] = deque(maxlen=window)
        self._lidar: deque[int] = deque(maxlen=window)

    def camera(self, stamp_ns: int) -> None:
        """Remember the stamp of an image, nanoseconds."""
        self._camera.append(stamp_ns)

    def lidar(self, stamp_ns: int) -> None:
        """Remember the stamp of a cloud, nanoseconds."""
        self._lidar.append(stamp_ns)

    def offsets_ms(self) -> NDArray[np.float64]:
        """(N,) milliseconds, one for each remembered cloud; empty when a sensor is missing."""
        if not self._camera or not self._lidar:
            return np.empty(0)
        camera = np.array(self._camera, dtype=np.int64)
        lidar = np.array(self._lidar, dtype=np.int64)
        difference = camera[None, :] - lidar[:, None]
        nearest = np.abs(difference).argmin(axis=1)
        return np.asarray(difference[np.arange(len(lidar)), nearest] / 1e6)

    def summary(self) -> dict[str, float]:
        """Median and greatest offset, milliseconds, for the diagnostics."""
        offsets = self.offsets_ms()
        if len(offsets) == 0:
            return {}
        return {
            "camera_minus_lidar_median_ms": float(np.median(offsets)),
            "camera_minus_lidar_largest_ms": float(offsets[np.abs(offsets).argmax()]),
        }
