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
        """(N,) milliseconds, one for each remembered cloud that has images around it; empty when a sensor is missing.

        Where no cloud has, because the clocks are far apart, the newest cloud is taken with the image nearest to it.
        """
        # Copies, because another thread may be adding.
        camera = np.array(list(self._camera), dtype=np.int64)
        lidar = np.array(list(self._lidar), dtype=np.int64)
        if not len(camera) or not len(lidar):
            return np.empty(0)
        # As many messages reach back less far of the faster sensor; what lies before has lost its partner.
        period = (camera.max() - camera.min()) // max(1, len(camera) - 1)
        inside = (lidar >= camera.min() - period) & (lidar <= camera.max() + period)
        lidar = lidar[inside] if inside.any() else lidar[-1:]
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
