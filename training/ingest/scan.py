"""First reading of a bag: stamps of images and clouds, all poses, frames. Decodes no image and no cloud."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from training.ingest.bag import Bag
from training.ingest.config import IngestConfig
from training.ingest.frames import BASE, transforms_of
from training.ingest.poses import TF_TYPE, pose_source
from training.ingest.progress import Progress
from training.ingest.stamps import Stamps
from training.ingest.topics import Roles
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.geometry import Floats, Ints, Trajectory

FRAMES_LOOKED_AT = 25
"""Clouds whose frame is asked for; the most frequent one counts, so that one damaged message moves no others."""


@dataclass
class Scan:
    """What the first reading found.

    Attributes:
        stamps_ns: role ("camera", "lidar") to the stamps of its messages in the order of the bag, (N,) int64.
        times_ns: likewise their times of recording, by which they are found again.
        trajectory: all usable poses, None without a pose source.
        lidar_frame, base_frame, pose_frame: frames of the clouds, of the body whose pose is given, and of the poses.
        transforms: static transforms, (parent, child) to (4, 4).
        calibration: what the session should keep of how the poses were made.
        notices: what the owner should know.
    """

    stamps_ns: dict[str, Ints] = field(default_factory=dict)
    times_ns: dict[str, Ints] = field(default_factory=dict)
    trajectory: Trajectory | None = None
    lidar_frame: str = ""
    base_frame: str = BASE
    pose_frame: str = ""
    transforms: dict[tuple[str, str], Floats] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


def scan(bag: Bag, roles: Roles, config: IngestConfig, progress: Progress) -> Scan:
    """Read the bag through once.

    Raises:
        DataError: no pose of the pose source is usable.
    """
    found = Scan(base_frame=config.base_frame)
    sensors = {roles.camera: "camera"} if roles.lidar is None else {roles.camera: "camera", roles.lidar: "lidar"}
    static = {t.name for t in bag.topics.values() if t.type == TF_TYPE and t.name.endswith("tf_static")}
    stamps = {role: Stamps() for role in sensors.values()}
    times = {role: array("q") for role in sensors.values()}
    frames: Counter[str] = Counter()
    source = pose_source(bag, roles, config)
    posed = set(source.topics) if source is not None else set()
    wanted = set(sensors) | static | posed
    total = sum(bag.topics[name].count for name in wanted)
    for topic, log_time, data in progress.of("scan", bag.messages(wanted, heads=set(sensors) - posed), total):
        if topic in static:
            _add_transforms(bag, topic, data, found)
        if source is not None and topic in posed:
            source.add(bag, topic, log_time, data)
        if topic in sensors:
            role = sensors[topic]
            stamps[role].add(bag, topic, log_time, data)
            times[role].append(log_time)
            if role == "lidar" and frames.total() < FRAMES_LOOKED_AT:
                frames[_frame_id(bag, topic, data)] += 1
    for topic, role in sensors.items():
        found.stamps_ns[role] = np.frombuffer(stamps[role].values, dtype=np.int64)
        found.times_ns[role] = np.frombuffer(times[role], dtype=np.int64)
        found.notices.extend(stamps[role].notices(topic))
    del frames[""]
    found.lidar_frame = frames.most_common(1)[0][0] if frames else ""
    if source is not None:
        poses = source.poses()
        found.trajectory, found.pose_frame, found.base_frame = poses.trajectory, poses.frame, poses.base_frame
        found.calibration = poses.calibration
        found.notices.extend(poses.notices)
    return found


def _frame_id(bag: Bag, topic: str, data: bytes) -> str:
    try:
        return bag.frame_id(topic, data)
    except DataError:
        return ""


def _add_transforms(bag: Bag, topic: str, data: bytes, found: Scan) -> None:
    try:
        found.transforms.update(transforms_of(bag.decode(topic, data)))
    except DataError as error:
        found.notices.append(str(error))
