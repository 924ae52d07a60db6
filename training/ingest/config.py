"""How a bag is cut into a session."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from training.ingest.areas import BOXES_HELP, MARGIN_HELP, Areas
from vpr_kd_ros.errors import ConfigError

AUTO = "auto"
NONE = "none"
TF = "tf"


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class IngestConfig:
    """Options of ``python -m training ingest``; each says in its metadata what it is for.

    Raises:
        ConfigError: a value is out of its range.
    """

    region: str = field(
        metadata={
            "help": "place of the drive; positions of sessions of one region share a map frame and are compared; auto: "
            "the name of the folder that the bag is in"
        }
    )
    condition: str = _option("unknown", "light, weather or season, as you name it")
    name: str | None = _option(None, "session name, unique among sessions used together (default: the bag's)")
    camera_topic: str = _option(AUTO, "topic of Image or CompressedImage; auto: the only one")
    lidar_topic: str = _option(
        AUTO, "topic of PointCloud2 or Livox's CustomMsg; auto: the only one; none: images alone"
    )
    pose_topic: str = _option(
        AUTO,
        "topic of Odometry, PoseStamped, PoseWithCovarianceStamped or NavSatFix; tf: the transforms from map_frame to "
        "base_frame; auto: the only one, if any (of fixes only where there is no other); none: no poses",
    )
    map_frame: str = _option("map", "frame of the poses, for pose_topic tf and for a trajectory file")
    base_frame: str = _option("base_link", "frame of the robot's base, where the pose source does not name it")
    nav_origin: list[float] | None = _option(
        None,
        "[latitude, longitude, altitude], degrees and metres, from which positions of a NavSatFix topic are counted: "
        "give all drives of a region the same (default: the first fix; it is written into the session)",
    )
    trajectory: str | None = _option(None, "file with the poses of the base, in place of a pose topic")
    trajectory_format: str = _option(
        "tum", "tum (time x y z qx qy qz qw) or kitti (twelve numbers, [R | t]); times in seconds of the images' clock"
    )
    trajectory_stamps: str | None = _option(None, "kitti: file with one time a line")
    labelled: bool = _option(
        True,
        "true: the pose topic is a survey and its positions are written; "
        "false: it is mere odometry, serves to space the keyframes, and is not written",
    )
    require_lidar: bool = _option(True, "false: images without a cloud near in time become keyframes too")
    keyframe_distance_m: float = _option(1.0, "a keyframe wherever the robot is this far from the last one ...")
    keyframe_angle_deg: float = _option(15.0, "... or has turned this much since")
    keyframe_interval_s: float = _option(0.5, "without a pose topic: a keyframe this often")
    time_tolerance_s: float = _option(0.06, "largest distance in time between an image and its cloud")
    max_pose_gap_s: float = _option(0.5, "no pose is interpolated across a longer hole in the pose topic")
    base_from_lidar: list[float] | None = _option(
        None,
        "[x, y, z, roll, pitch, yaw], metres and radians: where the LiDAR sits on the robot's base "
        "(default: the bag's /tf_static; not needed when clouds are in the base frame)",
    )
    rectify: bool = _option(False, "true: remove the lens's distortion, with the camera's CameraInfo")
    camera_info_topic: str = _option(
        AUTO, "for rectify, topic of CameraInfo; auto: camera_info beside the camera topic"
    )
    areas: dict[str, list[float]] | None = _option(None, BOXES_HELP)
    area_margin_m: float = _option(25.0, MARGIN_HELP)
    submap_m: float | None = _option(
        None,
        "join all scans within so many metres travelled before and after a keyframe into its cloud (default: one scan)",
    )
    submap_voxel_m: float = _option(0.2, "one point of a submap is kept in each cube of this size")
    max_image_side_px: int | None = _option(None, "shrink images whose longer side is longer than this")

    def __post_init__(self) -> None:
        if self.submap_m is not None and not self.submap_m > 0:
            raise ConfigError(f"submap_m is {self.submap_m}; it must be positive")
        positive = ("keyframe_distance_m", "keyframe_angle_deg", "keyframe_interval_s", "max_pose_gap_s")
        for key in (*positive, "submap_voxel_m"):
            if not getattr(self, key) > 0:
                raise ConfigError(f"{key} is {getattr(self, key)}; it must be positive")
        if not self.time_tolerance_s >= 0:
            raise ConfigError(f"time_tolerance_s is {self.time_tolerance_s}; it must not be negative")
        if self.max_image_side_px is not None and self.max_image_side_px < 16:
            raise ConfigError(f"max_image_side_px is {self.max_image_side_px}; it must be 16 or more")
        if self.base_from_lidar is not None and len(self.base_from_lidar) != 6:
            raise ConfigError(
                f"base_from_lidar has {len(self.base_from_lidar)} numbers; wants 6: x, y, z, roll, pitch, yaw"
            )
        if self.cut.corners and self.trajectory is None and self.pose_topic == NONE:
            raise ConfigError("areas are given, and pose_topic is none: only poses tell what lies in them")
        if self.nav_origin is not None and not (
            len(self.nav_origin) == 3 and abs(self.nav_origin[0]) <= 90 and abs(self.nav_origin[1]) <= 360
        ):
            raise ConfigError(
                f"nav_origin is {self.nav_origin}; wants latitude, longitude (degrees), altitude (metres)"
            )
        if self.trajectory_format not in ("tum", "kitti"):
            raise ConfigError(f"trajectory_format is {self.trajectory_format!r}; known: tum, kitti")
        if self.trajectory is not None and self.pose_topic not in (AUTO, NONE):
            raise ConfigError(f"both trajectory {self.trajectory} and pose_topic {self.pose_topic} are given; give one")
        for key in ("region", "condition"):
            if not getattr(self, key).strip():
                raise ConfigError(f"{key} is empty; name it")
        if self.name is not None and (not self.name.strip() or "/" in self.name or self.name.startswith(".")):
            raise ConfigError(f"name {self.name!r} cannot be the name of a folder")
        if self.camera_topic == NONE:
            raise ConfigError("camera_topic is none; a session needs images")

    @property
    def cut(self) -> Areas:
        """What is cut out of the drive."""
        return Areas(self.areas or {}, self.area_margin_m)
