"""Builds a place map from a camera and a source of poses.

    ros2 run vpr_kd_ros mapper --ros-args -p student:=student.pt2 -p map:=town_map -r image:=/camera/image_raw \\
        -r pose:=/ground_truth/odom
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
from sensor_msgs.msg import NavSatFix
from std_srvs.srv import SetBool, Trigger
from visualization_msgs.msg import MarkerArray

from vpr_kd_ros.decode import image_from_message, pose_from_message, stamp_ns
from vpr_kd_ros.errors import ConfigError, DataError, VprError
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.map_lock import MapLock
from vpr_kd_ros.mapper import Mapper, MapperConfig
from vpr_kd_ros.nodes import base
from vpr_kd_ros.nodes.base import OK, WARN, VprNode
from vpr_kd_ros.nodes.device import free_device_memory
from vpr_kd_ros.nodes.fixes import FixPoses
from vpr_kd_ros.nodes.images import TRANSPORTS, subscribe_images, why_no_image
from vpr_kd_ros.nodes.markers import places_marker
from vpr_kd_ros.nodes.pose_buffer import Missing, PoseBuffer
from vpr_kd_ros.nodes.statistics import Drops, Rate
from vpr_kd_ros.nodes.students import StudentParameters, load_student
from vpr_kd_ros.nodes.topics import qos_profile
from vpr_kd_ros.nodes.transforms import TransformPoses
from vpr_kd_ros.parameters import parameter
from vpr_kd_ros.place_map import PlaceMap
from vpr_kd_ros.recording import TopicQos

FIX, TF = "fix", "tf"
POSE_TYPES = {
    "odometry": Odometry,
    "pose": PoseStamped,
    "pose_with_covariance": PoseWithCovarianceStamped,
    FIX: NavSatFix,
}
# Images that wait for a pose: a second at the rate of common cameras.
MAX_WAITING = 30


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
    image_transport: str = parameter("raw", "raw, or compressed for TOPIC/compressed", choices=TRANSPORTS)


@dataclass(frozen=True)
class _Waiting:
    """An image until the pose after it arrives."""

    stamp_ns: int
    message: Any
    monotonic_s: float


class MapperNode(VprNode[MapperParameters]):
    """Images wait until the poses on both sides of them are there; a thread of its own makes the places."""

    def __init__(self) -> None:
        super().__init__("mapper", MapperParameters)
        self._mapper: Mapper | None = None
        self._path = Path()
        self._poses: PoseBuffer | TransformPoses = PoseBuffer()
        self._fixes = FixPoses()
        self._map_lock: MapLock | None = None
        self._waiting: deque[_Waiting] = deque()
        self._drops = Drops()
        self._images = Rate()
        self._pose_rate = Rate()
        self._keyframes = 0
        self._unsaved = 0
        self._paused = False
        self._stopping = False
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._entities: list[Any] = []
        self._marker_places = -1
        self._save_lock = threading.Lock()
        self._markers = self.create_publisher(MarkerArray, "~/keyframes", qos_profile(TopicQos(True, True, 1)))
        self.create_service(Trigger, "~/save", self._on_save)
        self.create_service(SetBool, "~/pause", self._on_pause)
        self.create_steady_timer(1.0, self._publish_markers)

    # --- life cycle --------------------------------------------------------------------------------------------------

    def configure(self) -> None:
        """Load the student, and the map to append to."""
        config = self.config
        for name in ("student", "map"):
            if not getattr(config, name):
                raise ConfigError(f"parameter {name!r}: it is not given")
        self._path = Path(config.map).expanduser()
        self._path.absolute().parent.mkdir(parents=True, exist_ok=True)
        self._map_lock = MapLock(self._path)
        self._fixes = FixPoses(config.nav_origin)
        there = self._path.exists()
        if there and not config.append:
            raise ConfigError(
                f"parameter 'map': {config.map} exists; set 'append' to add to it, or name another folder"
            )
        if there and config.pose_source == FIX and not config.nav_origin:
            raise ConfigError(
                f"parameter 'nav_origin': it is not given, and {config.map} was made from another first fix; give the "
                f"origin that the log of that drive named"
            )
        student = load_student(self)
        fingerprint = student.metadata.fingerprint
        if there:
            place_map = PlaceMap.load(self._path, fingerprint)
            if place_map.frame_id != config.map_frame:
                raise ConfigError(
                    f"parameter 'map_frame': {config.map_frame!r}, but {config.map} is in {place_map.frame_id!r}"
                )
        else:
            place_map = PlaceMap(student.metadata.descriptor_dim, fingerprint, config.map_frame)
        session = config.session or datetime.now().strftime("drive-%Y%m%d-%H%M%S")
        mapper_config = MapperConfig(
            min_distance_m=config.min_distance_m,
            min_angle_rad=config.min_angle_rad,
            session=session,
            min_novelty=config.min_novelty or None,
            max_views=config.max_views or None,
            view_radius_m=config.view_radius_m,
        )
        self._mapper = Mapper(student, place_map, mapper_config)
        self._keyframes = self._unsaved = 0
        self.logger.info(f"session {session!r}: {len(place_map)} places in {config.map} so far")

    def activate(self) -> None:
        """Subscribe to the images and the poses."""
        config = self.config
        if config.pose_source == TF:
            self._poses = TransformPoses(self, config.map_frame, config.base_frame)
        else:
            self._poses = PoseBuffer(max_gap_s=config.max_pose_gap_s)
        self._waiting.clear()
        self._drops, self._images, self._pose_rate = Drops(), Rate(), Rate()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="mapper", daemon=True)
        self._thread.start()
        self._entities = [subscribe_images(self, config.image_transport, self._on_image, depth=5)]
        if config.pose_source != TF:
            qos = qos_profile(TopicQos(reliable=False, depth=100))
            message_type = POSE_TYPES[config.pose_source]
            self._entities.append(self.create_subscription(message_type, "pose", self._on_pose, qos))

    def deactivate(self) -> None:
        """Unsubscribe, and finish the images whose poses are there."""
        for entity in self._entities:
            self.destroy_subscription(entity)
        self._entities = []
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if isinstance(self._poses, TransformPoses):
            self._poses.close()
            self._poses = PoseBuffer()

    def cleanup(self) -> None:
        """Save what is not saved, where 'save_on_exit' says so, and free the student, the map and its lock."""
        try:
            if self._mapper is not None and self._unsaved:
                if self.config.save_on_exit:
                    self._save()
                else:
                    self.logger.warning(f"{self._unsaved} keyframes are not saved ('save_on_exit' is off)")
        finally:
            self._mapper = None
            if self._map_lock is not None:
                self._map_lock.close()
                self._map_lock = None
            free_device_memory()

    def diagnose(self) -> tuple[bytes, str, dict[str, Any]]:
        """Counts and rates; a warning when images or poses do not come."""
        assert self._mapper is not None
        timeout = self.config.image_timeout_s
        values: dict[str, Any] = {
            "images": self._images.count,
            "image_rate_hz": self._images.hertz,
            "poses": self._pose_rate.count,
            "pose_rate_hz": self._pose_rate.hertz,
            "keyframes": self._keyframes,
            "unsaved": self._unsaved,
            "map_places": len(self._mapper.place_map),
            "dropped": self._drops.total,
            "replaced": self._mapper.replaced,
            "session": self._mapper.session,
        }
        if self._paused:
            return OK, "paused", values
        if self._images.silent_s() > timeout:
            silence = why_no_image(self, self.config.image_transport)
            self.logger.warning(silence, throttle_duration_sec=10.0)
            return WARN, silence, values
        if self.config.pose_source != TF and self._pose_rate.silent_s() > timeout:
            topic = self.resolve_topic_name("pose")
            return (
                WARN,
                f"no pose on {topic} ({POSE_TYPES[self.config.pose_source].__name__}, "
                f"{self.count_publishers(topic)} publishers); remap with -r pose:=TOPIC, set 'pose_source'",
                values,
            )
        if self._drops.total:
            return WARN, self._drops.most_common(), values
        return OK, "mapping", values

    # --- callbacks ---------------------------------------------------------------------------------------------------

    def _on_pose(self, message: Any) -> None:
        self._pose_rate.tick()
        poses = self._poses
        assert isinstance(poses, PoseBuffer)
        try:
            pose = self._pose_of(message)
        except DataError as error:
            self._drop(str(error))
            return
        with self._wake:
            if not poses.add(stamp_ns(message.header), pose):
                self._waiting.clear()
                self.logger.warning("time jumped back; waiting images and older poses are forgotten")
            self._wake.notify()

    def _pose_of(self, message: Any) -> Pose:
        if self.config.pose_source == FIX:
            known = self._fixes.origin is not None
            try:
                return self._fixes.pose(message)
            finally:
                if not known and self._fixes.origin is not None:
                    self.logger.info(
                        f"origin of the map: the first fix; for more drives: nav_origin {self._fixes.origin}"
                    )
        frame = message.header.frame_id
        if frame != self.config.map_frame:
            raise DataError(f"pose: it is in frame {frame!r}, the map in {self.config.map_frame!r}; set 'map_frame'")
        return pose_from_message(message)

    def _on_image(self, message: Any) -> None:
        self._images.tick()
        if self._paused:
            return
        with self._wake:
            if len(self._waiting) >= MAX_WAITING:
                self._waiting.popleft()
                self._drop("image: too many waited for their poses")
            self._waiting.append(_Waiting(stamp_ns(message.header), message, time.monotonic()))
            self._wake.notify()

    def _on_save(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._mapper is None:
            response.message = "the node is not configured"
            return response
        try:
            self._save()
        except VprError as error:
            response.message = str(error)
            self.logger.error(f"cannot save: {error}")
            return response
        response.success = True
        response.message = f"{self.config.map}: {len(self._mapper.place_map)} places"
        return response

    def _on_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._paused = bool(request.data)
        response.success = True
        response.message = "paused" if self._paused else "mapping"
        return response

    def _publish_markers(self) -> None:
        mapper = self._mapper
        if mapper is None or len(mapper.place_map) == self._marker_places:
            return
        self._marker_places = len(mapper.place_map)
        now_ns = self.get_clock().now().nanoseconds
        marker = places_marker(mapper.place_map.positions, mapper.place_map.frame_id, now_ns)
        self._markers.publish(MarkerArray(markers=[marker]))

    # --- the mapper's thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._wake:
                ready = self._next_ready()
                if ready is None:
                    if self._stopping:
                        return
                    self._wake.wait(timeout=0.1)
                    continue
            self._observe(*ready)

    def _next_ready(self) -> tuple[_Waiting, Pose] | None:
        """Take the oldest image that has a pose; those that will never have one are dropped on the way."""
        while self._waiting:
            waiting = self._waiting[0]
            found = self._poses.at(waiting.stamp_ns)
            may_come = found in (Missing.NOT_YET, Missing.NO_TRANSFORM)
            if may_come and time.monotonic() - waiting.monotonic_s < self.config.max_pose_wait_s:
                return None
            self._waiting.popleft()
            if isinstance(found, Pose):
                return waiting, found
            self._drop(f"image: {found.value}")
        return None

    def _observe(self, waiting: _Waiting, pose: Pose) -> None:
        assert self._mapper is not None
        try:
            place_id = self._mapper.observe(image_from_message(waiting.message), pose, waiting.stamp_ns)
            if place_id is None:
                return
            self._keyframes += 1
            self._unsaved += 1
            if self.config.save_every and self._unsaved >= self.config.save_every:
                self._save()
        except DataError as error:
            self._drop(str(error))
        except Exception:
            self._drop(f"a defect of ours:\n{traceback.format_exc()}")

    def _drop(self, reason: str) -> None:
        self._drops.add(reason)
        self.logger.warning(f"dropped: {reason}", throttle_duration_sec=5.0)

    def _save(self) -> None:
        mapper = self._mapper
        assert mapper is not None
        # The services and the mapper's thread both save.
        with self._save_lock:
            unsaved = self._unsaved
            mapper.place_map.save(self._path)
            self._unsaved -= unsaved
        self.logger.info(f"{self.config.map}: {len(mapper.place_map)} places saved")


def main() -> None:
    """Entry point of the executable ``mapper``."""
    base.main(MapperNode)


if __name__ == "__main__":
    main()
