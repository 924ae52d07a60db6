"""What the readers of public data sets have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.ingest.areas import Areas
from vpr_kd_ros.errors import ConfigError
from vpr_kd_ros.geometry import Pose

SUBMAP_TABLES = ("pointcloud_locations_20m.csv", "pointcloud_locations_20m_10overlap.csv")
"""PointNetVLAD's lists of the submaps of a run: those of its evaluation, 20 m apart, and of its training, 10 m."""


@dataclass(frozen=True)
class DatasetConfig:
    """How a folder becomes a session.

    Attributes:
        region, condition: of the session.
        time_tolerance_s: largest distance in time between an image and its submap.
        cloud_scale: metres in a unit of the submaps; PointNetVLAD's are scaled to -1 .. 1, each by itself.
        submaps: RobotCar: a pickle of PointNetVLAD; only the submaps that it lists become keyframes.
        locations: RobotCar: which of ``SUBMAP_TABLES`` is read, where a run has both and there is no pickle.
        max_image_side_px: shrink images whose longer side is longer.
        keyframe_distance_m: Boreas: a keyframe wherever the car is this far from the last one.
        areas, area_margin_m: what is cut out of each drive, see ``training.ingest.areas``.

    Raises:
        ConfigError: a value is out of its range.
    """

    region: str
    condition: str = "unknown"
    time_tolerance_s: float = 0.1
    cloud_scale: float = 1.0
    submaps: str | None = None
    locations: str | None = None
    max_image_side_px: int | None = None
    keyframe_distance_m: float = 1.0
    areas: dict[str, list[float]] | None = None
    area_margin_m: float = 25.0

    @property
    def cut(self) -> Areas:
        """What is cut out of each drive."""
        return Areas(self.areas or {}, self.area_margin_m)

    def __post_init__(self) -> None:
        if not (self.cloud_scale > 0 and self.keyframe_distance_m > 0 and self.time_tolerance_s >= 0):
            raise ConfigError("cloud_scale and keyframe_distance_m must be positive, time_tolerance_s not negative")
        if self.max_image_side_px is not None and self.max_image_side_px < 16:
            raise ConfigError(f"max_image_side_px is {self.max_image_side_px}; it must be 16 or more")
        if self.locations is not None and self.locations not in SUBMAP_TABLES:
            raise ConfigError(f"locations is {self.locations!r}; known: {', '.join(SUBMAP_TABLES)}")
        if self.locations is not None and self.submaps is not None:
            raise ConfigError("both submaps and locations are given; the pickle names the folder, give one")
        _ = self.cut  # says what is wrong with the areas


@dataclass(frozen=True)
class Frame:
    """A keyframe to be: stamp (ns), image file, pose, and what reads its cloud, (M, 3) in the base frame."""

    stamp_ns: int
    image: Path
    pose: Pose
    cloud: Callable[[], NDArray[np.float32]] | None = None


@dataclass(frozen=True)
class Found:
    """What a folder holds: keyframes, why others are none, what the owner should know, camera minus LiDAR stamps."""

    frames: list[Frame]
    drops: Counter[str]
    notices: list[str]
    offsets_ms: list[float]
