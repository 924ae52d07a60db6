"""First reading of a bag: stamps of images and clouds, all poses, frames. Decodes no image and no cloud."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from training.ingest.bag import Bag
from training.ingest.frames import BASE, transforms_of
from training.ingest.topics import Roles
from vpr_kd_ros.decode import pose_from_message
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.geometry import Floats, Ints, Trajectory

TF_TYPE = "tf2_msgs/msg/TFMessage"


@dataclass
class Scan:
    """What the first reading found.

    Attributes:
        stamps_ns: role ("camera", "lidar") to the stamps of its messages in the order of the bag, (N,) int64.
        trajectory: all usable poses, None without a pose topic.
        lidar_frame, base_frame, pose_frame: frames of the clouds, of the body whose pose is given, and of the poses.
        transforms: static transforms, (parent, child) to (4, 4).
        notices: what the owner should know.
    """

    stamps_ns: dict[str, Ints] = field(default_factory=dict)
    trajectory: Trajectory | None = None
    lidar_frame: str = ""
    base_frame: str = BASE
    pose_frame: str = ""
    transforms: dict[tuple[str, str], Floats] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


def scan(bag: Bag, roles: Roles) -> Scan:
    """Read the bag through once.

    Raises:
        DataError: no pose of the pose topic is usable.
    """
    found = Scan()
    role_of = {topic: role for role, topic in roles.filled().items()}
    static = {t.name for t in bag.topics.values() if t.type == TF_TYPE and t.name.endswith("tf_static")}
    stamps = {"camera": _Stamps(), "lidar": _Stamps()}
    poses = _Poses()
    wanted = set(role_of) | static
    total = sum(bag.topics[name].count for name in wanted)
    for topic, log_time, data in tqdm(bag.messages(wanted), total=total, desc="scan", unit="msg", leave=False):
        if topic in static:
            _add_transforms(bag, topic, data, found)
        elif role_of[topic] == "pose":
            poses.add(bag, topic, log_time, data)
        else:
            role = role_of[topic]
            stamps[role].add(bag, topic, log_time, data)
            if role == "lidar" and not found.lidar_frame:
                found.lidar_frame = _frame_id(bag, topic, data)
    for role, series in stamps.items():
        if topic_of_role := roles.filled().get(role):
            found.stamps_ns[role] = np.frombuffer(series.values, dtype=np.int64)
            found.notices.extend(series.notices(topic_of_role))
    if roles.pose is not None:
        found.trajectory = poses.trajectory(roles.pose)
        found.pose_frame, found.base_frame = poses.frame, poses.child_frame or BASE
        found.notices.extend(poses.notices(roles.pose))
    return found


class _Stamps:
    """Stamps of one topic; a message without a stamp or without a header has the time of its recording."""

    def __init__(self) -> None:
        self.values = array("q")
        self._unstamped = 0
        self._backwards = 0

    def add(self, bag: Bag, topic: str, log_time: int, data: bytes) -> int:
        stamp = _header_stamp(bag, topic, data)
        if stamp is None:
            self._unstamped += 1
            stamp = log_time
        if self.values and stamp < self.values[-1]:
            self._backwards += 1
        self.values.append(stamp)
        return stamp

    def notices(self, topic: str) -> list[str]:
        lines = []
        if self._unstamped:
            lines.append(f"{topic}: {self._unstamped} messages have no stamp; their time of recording is taken")
        if self._backwards:
            lines.append(f"{topic}: stamps go backwards {self._backwards} times; sorted")
        return lines


class _Poses:
    def __init__(self) -> None:
        self.frame = ""
        self.child_frame = ""
        self._stamps = _Stamps()
        self._values = array("d")
        self._unusable = 0
        self._first_error = ""

    def add(self, bag: Bag, topic: str, log_time: int, data: bytes) -> None:
        try:
            message = bag.decode(topic, data)
            pose = pose_from_message(message)
        except DataError as error:
            self._unusable += 1
            self._first_error = self._first_error or str(error)
            return
        self._stamps.add(bag, topic, log_time, data)
        self._values.extend((*pose.position.tolist(), *pose.quaternion.tolist()))
        self.frame = self.frame or str(message.header.frame_id)
        self.child_frame = self.child_frame or str(getattr(message, "child_frame_id", ""))

    def trajectory(self, topic: str) -> Trajectory:
        if not self._values:
            raise DataError(
                f"{topic}: none of its {self._unusable} poses is usable ({self._first_error}); "
                "give another --pose_topic, or none"
            )
        values = np.frombuffer(self._values, dtype=np.float64).reshape(-1, 7)
        return Trajectory(np.frombuffer(self._stamps.values, dtype=np.int64), values[:, :3], values[:, 3:])

    def notices(self, topic: str) -> list[str]:
        lines = self._stamps.notices(topic)
        if self._unusable:
            lines.append(f"{topic}: {self._unusable} poses are unusable, the first: {self._first_error}")
        return lines


def _header_stamp(bag: Bag, topic: str, data: bytes) -> int | None:
    try:
        return bag.stamp_ns(topic, data) or None
    except DataError:
        return None


def _frame_id(bag: Bag, topic: str, data: bytes) -> str:
    try:
        return str(bag.decode(topic, data).header.frame_id)
    except DataError:
        return ""


def _add_transforms(bag: Bag, topic: str, data: bytes, found: Scan) -> None:
    try:
        found.transforms.update(transforms_of(bag.decode(topic, data)))
    except DataError as error:
        found.notices.append(str(error))
