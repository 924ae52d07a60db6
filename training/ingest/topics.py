"""Which topic of a bag serves as camera, as LiDAR and as pose source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from training.ingest import livox
from training.ingest.bag import Topic
from training.ingest.config import AUTO, NONE, TF, IngestConfig
from vpr_kd_ros.errors import DataError, did_you_mean

FIX_TYPE = "sensor_msgs/msg/NavSatFix"
TYPES: dict[str, tuple[str, ...]] = {
    "camera": ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"),
    "lidar": ("sensor_msgs/msg/PointCloud2", *livox.TYPES),
    "pose": (
        "nav_msgs/msg/Odometry",
        "geometry_msgs/msg/PoseStamped",
        "geometry_msgs/msg/PoseWithCovarianceStamped",
        FIX_TYPE,
    ),
}
"""Role to the message types that can fill it."""

# What to do when a bag has no topic for a role.
_WITHOUT = {
    "camera": "a session needs a camera: record one",
    "lidar": "record one, or ingest images alone with --lidar_topic none",
    "pose": "record one, give a --trajectory file or --pose_topic tf, or --pose_topic none to space keyframes in time",
}


@dataclass(frozen=True)
class Roles:
    """Topic of each role; None where the role is not filled. Poses may also be "tf" or the name of a file."""

    camera: str
    lidar: str | None
    pose: str | None

    def filled(self) -> dict[str, str]:
        """Role to topic, of the roles that are filled."""
        roles = {"camera": self.camera, "lidar": self.lidar, "pose": self.pose}
        return {role: topic for role, topic in roles.items() if topic is not None}


def candidates(topics: Mapping[str, Topic], role: str) -> list[Topic]:
    """Topics with messages whose type fits the role."""
    return [topic for topic in topics.values() if topic.type in TYPES[role] and topic.count > 0]


def choose_topics(topics: Mapping[str, Topic], config: IngestConfig) -> Roles:
    """Fill the roles as the configuration says.

    Raises:
        DataError: a topic that was named is not there, is empty or of another type; a role has several candidates or,
            where it must be filled, none. The message lists what could be given instead.
    """
    camera = _choose(topics, "camera", config.camera_topic)
    if camera is None:
        raise DataError(_missing(topics, "camera"))
    lidar = _choose(topics, "lidar", config.lidar_topic)
    if lidar is None and config.lidar_topic != NONE and config.require_lidar:
        raise DataError(_missing(topics, "lidar"))
    if config.trajectory is not None or config.pose_topic == TF:
        return Roles(camera, lidar, config.trajectory or TF)
    return Roles(camera, lidar, _choose(topics, "pose", config.pose_topic))


def _choose(topics: Mapping[str, Topic], role: str, wanted: str) -> str | None:
    if wanted == NONE:
        return None
    fitting = [topic.name for topic in candidates(topics, role)]
    if wanted == AUTO:
        # A fix tells where the antenna is, a pose where the robot is and where it looks.
        fitting = [name for name in fitting if topics[name].type != FIX_TYPE] or fitting
        if len(fitting) > 1:
            raise DataError(f"{len(fitting)} topics could be the {role}: {_give(role, fitting)}")
        return fitting[0] if fitting else None
    if wanted not in topics:
        raise DataError(f"no topic {wanted!r}{did_you_mean(wanted, topics)} in the bag; {_give(role, fitting)}")
    if wanted not in fitting:
        topic = topics[wanted]
        what = "it has no message" if topic.type in TYPES[role] else f"its type is {topic.type}"
        raise DataError(f"topic {wanted!r} cannot be the {role}: {what}; {_give(role, fitting)}")
    return wanted


def _give(role: str, fitting: list[str]) -> str:
    if not fitting:
        return f"no topic of the bag could be the {role} (wants {' or '.join(TYPES[role])}): {_WITHOUT[role]}"
    return "give " + " or ".join(f"--{role}_topic {name}" for name in fitting)


def _missing(topics: Mapping[str, Topic], role: str) -> str:
    listed = ", ".join(f"{topic.name} ({topic.type}, {topic.count})" for topic in topics.values())
    return f"{_give(role, [])}; the bag has {listed}"
