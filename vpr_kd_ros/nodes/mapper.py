"""Builds a place map from a camera and a source of poses.

    ros2 run vpr_kd_ros mapper --ros-args -p student:=student.pt2 -p map:=town_map -r image:=/camera/image_raw \\
        -r pose:=/ground_truth/odom

With several cameras, ``-p cameras:="[front=/front/image_raw, rear=/rear/image_raw]"`` instead of the image's topic.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from std_srvs.srv import SetBool, Trigger
from visualization_msgs.msg import MarkerArray

from vpr_kd_ros.decode import image_from_message, pose_from_message, stamp_ns
from vpr_kd_ros.errors import ConfigError, DataError, VprError
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.map_files import claim_map, find_map
from vpr_kd_ros.map_lock import MapLock, map_folder
from vpr_kd_ros.mapper import Mapper, MapperConfig
from vpr_kd_ros.nodes import base, cameras
from vpr_kd_ros.nodes.base import OK, WARN, VprNode
from vpr_kd_ros.nodes.device import free_device_memory
from vpr_kd_ros.nodes.fixes import FixPoses
from vpr_kd_ros.nodes.images import subscribe_images, why_no_image
from vpr_kd_ros.nodes.map_saver import MapSaver
from vpr_kd_ros.nodes.mapper_parameters import FIX, POSE_TYPES, TF, MapperParameters
from vpr_kd_ros.nodes.markers import places_marker
from vpr_kd_ros.nodes.pose_buffer import Missing, PoseBuffer
from vpr_kd_ros.nodes.statistics import Drops, Rate
from vpr_kd_ros.nodes.students import load_student
from vpr_kd_ros.nodes.topics import qos_profile
from vpr_kd_ros.nodes.transforms import TransformPoses
from vpr_kd_ros.place_map import PlaceMap
from vpr_kd_ros.recording import TopicQos
from vpr_kd_ros.stamps import NewestStamps
from vpr_kd_ros.student import Student

# Images that wait for a pose: a second at the rate of common cameras.
MAX_WAITING = 30


@dataclass(frozen=True)
class _Waiting:
    """An image until the pose after it arrives."""

    stamp_ns: int
    message: Any
    monotonic_s: float


@dataclass
class _View:
    """One camera: its map, the images that wait, and how many come."""

    topic: str
    mapper: Mapper
    saver: MapSaver
    waiting: deque[_Waiting] = field(default_factory=deque)
    images: Rate = field(default_factory=Rate)


class MapperNode(VprNode[MapperParameters]):
    """Images wait until the poses on both sides of them are there; a thread of its own makes the places."""

    live = ("save_on_exit",)

    def __init__(self) -> None:
        super().__init__("mapper", MapperParameters)
        self._views: dict[str, _View] = {}
        self._poses: PoseBuffer | TransformPoses = PoseBuffer()
        self._fixes = FixPoses()
        self._image_stamps = NewestStamps()
        self._locks: list[MapLock] = []
        self._drops = Drops()
        self._pose_rate = Rate()
        self._keyframes = 0
        self._paused = False
        self._stopping = False
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._saving: threading.Thread | None = None
        self._entities: list[Any] = []
        self._marker_places = -1
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
        topics = cameras.parse_cameras(config.cameras)
        # A link that is set to another map during the drive must not lead a save there.
        folders = cameras.map_folders(Path(config.map).expanduser(), topics)
        paths = {camera: map_folder(path) for camera, path in folders.items()}
        for path in paths.values():
            self._locks.append(claim_map(path))
        self._fixes = FixPoses(config.nav_origin)
        there = [path for path in paths.values() if find_map(path) is not None]
        if there and not config.append:
            raise ConfigError(f"parameter 'map': {there[0]} exists; set 'append' to add to it, or name another folder")
        if there and config.pose_source == FIX and not config.nav_origin:
            raise ConfigError(
                f"parameter 'nav_origin': it is not given, and {there[0]} was made from another first fix; give the "
                f"origin that the log of that drive named"
            )
        student = load_student(self)
        session = config.session or datetime.now().strftime("drive-%Y%m%d-%H%M%S")
        mapper_config = MapperConfig(
            min_distance_m=config.min_distance_m,
            min_angle_rad=config.min_angle_rad,
            session=session,
            min_novelty=config.min_novelty or None,
            max_views=config.max_views or None,
            view_radius_m=config.view_radius_m,
        )
        maps = {camera: self._map_at(path, student) for camera, path in paths.items()}
        self._views = {
            camera: _View(topics[camera], Mapper(student, place_map, mapper_config), MapSaver(place_map, paths[camera]))
            for camera, place_map in maps.items()
        }
        self._keyframes = 0
        self.logger.info(f"session {session!r}: {self._places} places in {config.map} so far")

    def activate(self) -> None:
        """Subscribe to the images and the poses."""
        config = self.config
        if config.pose_source == TF:
            self._poses = TransformPoses(self, config.map_frame, config.base_frame)
        else:
            self._poses = PoseBuffer(max_gap_s=config.max_pose_gap_s)
        self._drops, self._pose_rate = Drops(), Rate()
        self._image_stamps.clear()
        for view in self._views.values():
            view.waiting.clear()
            view.images = Rate()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="mapper", daemon=True)
        self._thread.start()
        self._entities = [
            subscribe_images(self, config.image_transport, partial(self._on_image, view), depth=5, topic=view.topic)
            for view in self._views.values()
        ]
        if config.pose_source != TF:
            qos = qos_profile(TopicQos(reliable=False, depth=100))
            message_type = POSE_TYPES[config.pose_source]
            self._entities.append(self.create_subscription(message_type, "pose", self._on_pose, qos))

    def deactivate(self) -> None:
        """Unsubscribe, and finish the images whose poses are there and the save that is under way."""
        for entity in self._entities:
            self.destroy_subscription(entity)
        self._entities = []
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._saving is not None:
            self._saving.join()
            self._saving = None
        if isinstance(self._poses, TransformPoses):
            self._poses.close()
            self._poses = PoseBuffer()

    def cleanup(self) -> None:
        """Save what is not saved, where 'save_on_exit' says so, and free the student, the map and its lock.

        Raises:
            DataError: the map cannot be saved; then nothing is freed.
        """
        unsaved = self._unsaved
        if unsaved and not self.config.save_on_exit:
            self.logger.warning(f"{unsaved} keyframes are not saved ('save_on_exit' is off)")
        elif unsaved:
            try:
                self._save([view for view in self._views.values() if view.saver.unsaved])
            except DataError as error:
                raise DataError(
                    f"{error}; {unsaved} keyframes stay in memory: mend that and call ~/save, or set 'save_on_exit' to "
                    f"false to lose them"
                ) from error
        self._free()

    def rescue(self) -> None:
        """Save maps that cannot be saved in their folders somewhere else, say where, and free everything."""
        try:
            for view in self._views.values():
                if view.saver.unsaved:
                    self._rescue(view.saver)
        finally:
            self._free()

    def _rescue(self, saver: MapSaver) -> None:
        try:
            folder = saver.rescue()
        except DataError as error:
            self.logger.error(f"{saver.path}: {saver.unsaved} keyframes are lost: {error}")
        else:
            self.logger.error(f"{saver.path}: could not be saved; the map is in {folder}, copy it from there")

    def _free(self) -> None:
        self._views = {}
        while self._locks:
            self._locks.pop().close()
        free_device_memory()

    def diagnose(self) -> tuple[bytes, str, dict[str, Any]]:
        """Counts and rates; a warning when images or poses do not come."""
        timeout = self.config.image_timeout_s
        values: dict[str, Any] = {
            "images": sum(view.images.count for view in self._views.values()),
            **{
                f"{camera}_rate_hz" if camera else "image_rate_hz": view.images.hertz
                for camera, view in self._views.items()
            },
            "poses": self._pose_rate.count,
            "pose_rate_hz": self._pose_rate.hertz,
            "keyframes": self._keyframes,
            "unsaved": self._unsaved,
            "map_places": self._places,
            "dropped": self._drops.total,
            "dropped_most": self._drops.most_common(),
            "replaced": sum(view.mapper.replaced for view in self._views.values()),
            "session": ", ".join(dict.fromkeys(view.mapper.session for view in self._views.values())),
        }
        if self._paused:
            return OK, "paused", values
        if silence := "; ".join(
            cameras.prefixed(camera, why_no_image(self, self.config.image_transport, view.topic))
            for camera, view in self._views.items()
            if view.images.silent_s() > timeout
        ):
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
        if recent := self._drops.recent():
            return WARN, recent, values
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
                self._forget_images()
            self._wake.notify()

    def _forget_images(self) -> None:
        """After a jump back in time: images from before it would find poses from after it."""
        for view in self._views.values():
            view.waiting.clear()
        self._image_stamps.clear()
        self._drop("time jumped back: waiting images and older poses")

    def _pose_of(self, message: Any) -> Pose:
        if self.config.pose_source == FIX:
            known = self._fixes.origin
            try:
                return self._fixes.pose(message)
            finally:
                if self._fixes.origin != known:
                    self.logger.info(
                        f"origin of the map: the first fix; for more drives: nav_origin {self._fixes.origin}"
                    )
        frame = message.header.frame_id
        if frame != self.config.map_frame:
            raise DataError(f"pose: it is in frame {frame!r}, the map in {self.config.map_frame!r}; set 'map_frame'")
        return pose_from_message(message)

    def _on_image(self, view: _View, message: Any) -> None:
        view.images.tick()
        if self._paused:
            return
        stamp = stamp_ns(message.header)
        with self._wake:
            # An image may be the first to show that the clock was set back.
            if self._image_stamps.jumped_back(stamp, view.topic):
                self._poses.clear()
                self._forget_images()
            self._image_stamps.add(stamp, view.topic)
            if len(view.waiting) >= MAX_WAITING:
                view.waiting.popleft()
                self._drop("image: too many waited" + (" while the map was saved" if self._is_saving else ""))
            view.waiting.append(_Waiting(stamp, message, time.monotonic()))
            self._wake.notify()

    def _on_save(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if not self._views:
            response.message = "the node is not configured"
            return response
        try:
            self._save(list(self._views.values()))
        except VprError as error:
            response.message = str(error)
            self.logger.error(f"cannot save: {error}")
            return response
        response.success = True
        response.message = f"{self.config.map}: {self._places} places"
        return response

    def _on_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._paused = bool(request.data)
        response.success = True
        response.message = "paused" if self._paused else "mapping"
        return response

    def _publish_markers(self) -> None:
        maps = [view.mapper.place_map for view in self._views.values()]
        if not maps or self._places == self._marker_places:
            return
        self._marker_places = self._places
        now_ns = self.get_clock().now().nanoseconds
        positions = np.concatenate([place_map.positions for place_map in maps])
        marker = places_marker(positions, maps[0].frame_id, now_ns)
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
            self._or_drop(self._observe, *ready)

    def _next_ready(self) -> tuple[_View, _Waiting, Pose] | None:
        """Take the oldest image of a camera that has a pose."""
        ready = ((view, self._oldest_ready(view)) for view in self._views.values())
        return next(((view, *found) for view, found in ready if found is not None), None)

    def _oldest_ready(self, view: _View) -> tuple[_Waiting, Pose] | None:
        """The camera's oldest image that has a pose; those that will never have one are dropped on the way."""
        while view.waiting:
            waiting = view.waiting[0]
            found = self._poses.at(waiting.stamp_ns)
            may_come = found in (Missing.NOT_YET, Missing.NO_TRANSFORM)
            if may_come and time.monotonic() - waiting.monotonic_s < self.config.max_pose_wait_s:
                return None
            view.waiting.popleft()
            if isinstance(found, Pose):
                return waiting, found
            self._drop(f"image: {found.value}")
        return None

    def _observe(self, view: _View, waiting: _Waiting, pose: Pose) -> None:
        place_id = view.mapper.observe(image_from_message(waiting.message), pose, waiting.stamp_ns)
        if place_id is None:
            return
        self._keyframes += 1
        view.saver.count_added()
        if self.config.save_every and view.saver.unsaved >= self.config.save_every and not self._is_saving:
            # Images would wait for the disk, and only so many can.
            self._saving = threading.Thread(
                target=self._or_drop, args=(self._save, [view]), name="mapper-save", daemon=True
            )
            self._saving.start()

    @property
    def _is_saving(self) -> bool:
        return self._saving is not None and self._saving.is_alive()

    def _or_drop(self, action: Callable[..., None], *arguments: Any) -> None:
        """Do something in a thread that nobody hears when it fails."""
        try:
            action(*arguments)
        except DataError as error:
            self._drop(str(error))
        except Exception:
            self._drop(f"a defect of ours:\n{traceback.format_exc()}")

    def _drop(self, reason: str) -> None:
        self._drops.add(reason)
        self.logger.warning(f"dropped: {reason}", throttle_duration_sec=5.0)

    def _save(self, views: Sequence[_View]) -> None:
        failed: list[str] = []
        for view in views:
            try:
                view.saver.save()
            except DataError as error:
                failed.append(str(error))
                continue
            self.logger.info(f"{view.saver.path}: {len(view.mapper.place_map)} places saved")
        if failed:
            raise DataError("; ".join(failed))

    @property
    def _places(self) -> int:
        return sum(len(view.mapper.place_map) for view in self._views.values())

    @property
    def _unsaved(self) -> int:
        return sum(view.saver.unsaved for view in self._views.values())

    def _map_at(self, path: Path, student: Student) -> PlaceMap:
        """The map that is there, to add to, or a new one."""
        fingerprint, frame = student.metadata.fingerprint, self.config.map_frame
        if find_map(path) is None:
            return PlaceMap(student.metadata.descriptor_dim, fingerprint, frame)
        place_map = PlaceMap.load(path, fingerprint)
        if place_map.frame_id != frame:
            raise ConfigError(f"parameter 'map_frame': {frame!r}, but {path} is in {place_map.frame_id!r}")
        return place_map


def main() -> None:
    """Entry point of the executable ``mapper``."""
    base.main(MapperNode)


if __name__ == "__main__":
    main()
