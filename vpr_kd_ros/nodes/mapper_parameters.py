"""Parameters of the mapper."""

from __future__ import annotations

from dataclasses import dataclass

from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
from sensor_msgs.msg import NavSatFix

from vpr_kd_ros.nodes.student_parameters import StudentParameters
from vpr_kd_ros.parameters import parameter

FIX, TF = "fix", "tf"
POSE_TYPES = {
    "odometry": Odometry,
    "pose": PoseStamped,
    "pose_with_covariance": PoseWithCovarianceStamped,
    FIX: NavSatFix,
}


@dataclass(frozen=True)
class MapperParameters(StudentParameters):
    """Parameters of the mapper."""

    map: str = parameter("", "folder of the place map to save")
    append: bool = parameter(False, "add to the map that is there; otherwise a map that is there is an error")
    map_frame: str = parameter("map", "frame of the map; poses in another frame are dropped")
    session: str = parameter("", "name of this drive; empty: named by date and time")
    min_distance_m: float = parameter(2.0, "distance between keyframes, metres", low=0.01)
    min_angle_rad: float = parameter(0.5236, "or turn between keyframes, radians", low=0.01, high=3.1415)
    min_novelty: float = parameter(
        0.0, "or difference of the descriptors, 1 - their inner product; 0: does not count", low=0.0, high=2.0
    )
    max_views: int = parameter(0, "views of one spot that are kept, the most different ones; 0: all", low=0)
    view_radius_m: float = parameter(1.0, "places nearer than this are one spot, metres", low=0.01)
    pose_source: str = parameter(
        "odometry",
        "message type of the topic 'pose' (fix: NavSatFix), or tf: the transform of base_frame in map_frame",
        choices=(*POSE_TYPES, TF),
    )
    base_frame: str = parameter("base_link", "pose_source tf: the robot's frame")
    nav_origin: tuple[float, ...] = parameter(
        (),
        "pose_source fix: latitude, longitude (degrees), altitude (metres) of the map's origin; empty: the first fix",
    )
    max_pose_gap_s: float = parameter(0.5, "poses around an image may be this far apart, seconds", low=0.001)
    max_pose_wait_s: float = parameter(1.0, "an image waits this long for the pose after it, seconds", low=0.01)
    save_every: int = parameter(50, "save the map after so many new keyframes; 0: only when asked", low=0)
    save_on_exit: bool = parameter(True, "save the map when the node ends or is cleaned up")
    image_timeout_s: float = parameter(2.0, "warn when no image or no pose came for this long, seconds", low=0.1)
