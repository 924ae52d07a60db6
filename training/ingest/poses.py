"""Where the poses come from: messages with a pose, satellite fixes, transforms, or a file beside the bag.

Each source names the topics that it reads, takes their messages during the first reading, and then gives all poses.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from scipy.spatial.transform import Rotation

from training.ingest.bag import Bag
from training.ingest.config import TF, IngestConfig
from training.ingest.frames import find_chain, stamped_transforms
from training.ingest.stamps import Stamps
from training.ingest.topics import FIX_TYPE, Roles
from training.ingest.trajectory_files import read_trajectory
from vpr_kd_ros.decode import pose_from_message
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.geodesy import course, east_north_up, fix_from_message
from vpr_kd_ros.geometry import Floats, Ints, Trajectory, quaternion_from_yaw

TF_TYPE = "tf2_msgs/msg/TFMessage"
ENU = "enu"
"""Frame of poses from satellite fixes: x east, y north, z up of their origin."""


@dataclass(frozen=True)
class Poses:
    """All poses of a drive.

    Attributes:
        trajectory: of the body ``base_frame`` in ``frame``.
        frame, base_frame: names of the frames.
        calibration: what the session should keep of how they were made.
        notices: what the owner should know.
    """

    trajectory: Trajectory
    frame: str
    base_frame: str
    calibration: dict[str, Any] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


class PoseSource(Protocol):
    """Collects poses while the bag is read."""

    @property
    def topics(self) -> Collection[str]:
        """Topics whose messages it takes."""

    def add(self, bag: Bag, topic: str, log_time: int, data: bytes) -> None:
        """Take one message of one of the topics."""

    def poses(self) -> Poses:
        """Return all of them, when the bag was read.

        Raises:
            DataError: none is usable.
        """


def pose_source(bag: Bag, roles: Roles, config: IngestConfig) -> PoseSource | None:
    """Return the source that the configuration asks for, None where there are no poses."""
    if config.trajectory is not None:
        return FilePoses(config)
    if roles.pose is None:
        return None
    if roles.pose == TF:
        return TransformPoses([t.name for t in bag.topics.values() if t.type == TF_TYPE], config)
    if bag.topics[roles.pose].type == FIX_TYPE:
        return FixPoses(roles.pose, config)
    return MessagePoses(roles.pose, config)


class _Numbers:
    """Rows of numbers with stamps, and the messages of one topic that gave none."""

    def __init__(self, topic: str, columns: int) -> None:
        self.topic = topic
        self._columns = columns
        self._stamps = Stamps()
        self._values = array("d")
        self._unusable = 0
        self._first_error = ""

    def add(self, bag: Bag, log_time: int, data: bytes, row: Collection[float]) -> None:
        self._stamps.add(bag, self.topic, log_time, data)
        self._values.extend(row)

    def refuse(self, error: DataError) -> None:
        self._unusable += 1
        self._first_error = self._first_error or str(error)

    def table(self) -> tuple[Ints, Floats]:
        if not self._values:
            raise DataError(
                f"{self.topic}: none of its {self._unusable} poses is usable ({self._first_error}); "
                "give another --pose_topic, or none"
            )
        stamps = np.frombuffer(self._stamps.values, dtype=np.int64)
        return stamps, np.frombuffer(self._values, dtype=np.float64).reshape(-1, self._columns)

    def notices(self) -> list[str]:
        lines = self._stamps.notices(self.topic)
        if self._unusable:
            lines.append(f"{self.topic}: {self._unusable} poses are unusable, the first: {self._first_error}")
        return lines


class MessagePoses:
    """A topic of Odometry, PoseStamped or PoseWithCovarianceStamped."""

    def __init__(self, topic: str, config: IngestConfig) -> None:
        self.topics = (topic,)
        self._rows = _Numbers(topic, 7)
        self._frame = self._child_frame = ""
        self._usual_base = config.base_frame

    def add(self, bag: Bag, topic: str, log_time: int, data: bytes) -> None:
        """Take one pose."""
        try:
            message = bag.decode(topic, data)
            pose = pose_from_message(message)
        except DataError as error:
            self._rows.refuse(error)
            return
        self._rows.add(bag, log_time, data, (*pose.position.tolist(), *pose.quaternion.tolist()))
        self._frame = self._frame or str(message.header.frame_id)
        self._child_frame = self._child_frame or str(getattr(message, "child_frame_id", ""))

    def poses(self) -> Poses:
        """Return the poses as they are."""
        stamps, values = self._rows.table()
        trajectory = Trajectory(stamps, values[:, :3], values[:, 3:])
        return Poses(trajectory, self._frame, self._child_frame or self._usual_base, notices=self._rows.notices())


class FixPoses:
    """A topic of NavSatFix: metres east, north and up of an origin, headed where the drive goes."""

    def __init__(self, topic: str, config: IngestConfig) -> None:
        self.topics = (topic,)
        self._rows = _Numbers(topic, 3)
        self._origin = config.nav_origin
        self._base = config.base_frame

    def add(self, bag: Bag, topic: str, log_time: int, data: bytes) -> None:
        """Take one fix."""
        try:
            row = fix_from_message(bag.decode(topic, data))
        except DataError as error:
            self._rows.refuse(error)
        else:
            self._rows.add(bag, log_time, data, row)

    def poses(self) -> Poses:
        """Return the fixes in the plane of the origin: the one given, or the first fix."""
        stamps, fixes = self._rows.table()
        order = np.argsort(stamps, kind="stable")
        stamps, fixes = stamps[order], fixes[order]
        latitude, longitude, altitude = self._origin or np.nan_to_num(fixes[0]).tolist()
        positions = east_north_up(fixes, (latitude, longitude, altitude))
        notices = [
            *self._rows.notices(),
            f"{self._rows.topic}: fixes tell no orientation; the robot is taken to head where it drives, and to be "
            "where its antenna is",
        ]
        origin = [latitude, longitude, altitude]
        if self._origin is None:
            notices.append(f"positions are metres from the first fix; give other drives here --nav_origin '{origin}'")
        trajectory = Trajectory(stamps, positions, quaternion_from_yaw(course(positions)))
        return Poses(trajectory, ENU, self._base, {"nav_origin": origin}, notices)


class TransformPoses:
    """The chain of transforms, moving and static, from the map's frame to the base's."""

    def __init__(self, topics: list[str], config: IngestConfig) -> None:
        self.topics = tuple(topics)
        self._map, self._base = config.map_frame, config.base_frame
        self._max_gap_ns = round(config.max_pose_gap_s * 1e9)
        self._stamps: dict[tuple[str, str], array[int]] = {}
        self._values: dict[tuple[str, str], array[float]] = {}
        self._static: set[tuple[str, str]] = set()
        self._errors: list[str] = []

    def add(self, bag: Bag, topic: str, log_time: int, data: bytes) -> None:
        """Take the transforms of one message."""
        try:
            message = bag.decode(topic, data)
        except DataError as error:
            self._errors.append(str(error))
            return
        for edge, stamp_ns, position, quaternion in stamped_transforms(message):
            if topic.endswith("tf_static"):
                self._static.add(edge)
            self._stamps.setdefault(edge, array("q")).append(stamp_ns or log_time)
            self._values.setdefault(edge, array("d")).extend((*position, *quaternion))

    def poses(self) -> Poses:
        """Return map_from_base wherever a transform of the chain has a stamp and all the others are known."""
        chain = find_chain(self._map, self._base, self._stamps)
        if chain is None:
            known = ", ".join(f"{parent} -> {child}" for parent, child in sorted(self._stamps)) or "none"
            raise DataError(
                f"no chain of transforms leads from {self._map!r} to {self._base!r}; the bag has {known}: give "
                "--map_frame and --base_frame"
            )
        moving = [self._trajectory(edge) for edge, _ in chain if edge not in self._static]
        if not moving:
            raise DataError(f"the transforms from {self._map!r} to {self._base!r} are all static: nothing moves")
        stamps = np.unique(np.concatenate([trajectory.stamps_ns for trajectory in moving]))
        valid = np.ones(len(stamps), dtype=bool)
        matrices: Floats = np.tile(np.eye(4), (len(stamps), 1, 1))
        for edge, forward in chain:
            parent_from_child, known_there = self._at(edge, stamps)
            matrices = matrices @ (parent_from_child if forward else np.linalg.inv(parent_from_child))
            valid &= known_there
        if not valid.any():
            raise DataError(
                f"the transforms from {self._map!r} to {self._base!r} are never known together; "
                "if one of them comes seldom, give a larger --max_pose_gap_s"
            )
        quaternions = Rotation.from_matrix(matrices[valid, :3, :3]).as_quat()
        trajectory = Trajectory(stamps[valid], matrices[valid, :3, 3], quaternions)
        lines = [f"{len(self._errors)} transform messages are unusable, the first: {e}" for e in self._errors[:1]]
        return Poses(trajectory, self._map, self._base, notices=lines)

    def _trajectory(self, edge: tuple[str, str]) -> Trajectory:
        values = np.frombuffer(self._values[edge], dtype=np.float64).reshape(-1, 7)
        return Trajectory(np.frombuffer(self._stamps[edge], dtype=np.int64), values[:, :3], values[:, 3:])

    def _at(self, edge: tuple[str, str], stamps: Ints) -> tuple[Floats, Any]:
        """parent_from_child at the stamps, (N, 4, 4), identity where it is not known, and where it is, (N,) bool."""
        trajectory = self._trajectory(edge)
        if edge in self._static:
            latest = [-1] * len(stamps)
            positions, quaternions = trajectory.positions[latest], trajectory.quaternions[latest]
            known = np.ones(len(stamps), dtype=bool)
        else:
            positions, quaternions, known = trajectory.at(stamps, self._max_gap_ns)
        matrices: Floats = np.tile(np.eye(4), (len(stamps), 1, 1))
        if known.any():
            matrices[known, :3, :3] = Rotation.from_quat(quaternions[known]).as_matrix()
            matrices[known, :3, 3] = positions[known]
        return matrices, known


class FilePoses:
    """A trajectory file beside the bag."""

    topics: Collection[str] = ()

    def __init__(self, config: IngestConfig) -> None:
        assert config.trajectory is not None
        trajectory = read_trajectory(config.trajectory, config.trajectory_format, config.trajectory_stamps)
        self._poses = Poses(trajectory, config.map_frame, config.base_frame)

    def add(self, bag: Bag, topic: str, log_time: int, data: bytes) -> None:
        """Never called: no topic is read."""

    def poses(self) -> Poses:
        """Return the poses of the file."""
        return self._poses
