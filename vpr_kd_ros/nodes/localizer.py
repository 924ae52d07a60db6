"""Tells from a camera image where in the map the robot is.

ros2 run vpr_kd_ros localizer --ros-args -p student:=student.pt2 -p map:=town_map -r image:=/camera/image_raw

With several cameras, ``-p cameras:="[front=/front/image_raw, rear=/rear/image_raw]"`` instead of the last.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Odometry as OdometryMessage
from numpy.typing import NDArray
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage, PointCloud2
from std_srvs.srv import Trigger
from visualization_msgs.msg import MarkerArray

from vpr_kd_ros.belief import BeliefConfig
from vpr_kd_ros.conversions import pose_with_covariance_to_message
from vpr_kd_ros.decode import image_from_message, pose_from_message, stamp_ns
from vpr_kd_ros.errors import ConfigError, DataError, VprError
from vpr_kd_ros.geometry import Floats
from vpr_kd_ros.localizer import Localizer, LocalizerConfig
from vpr_kd_ros.match import Match
from vpr_kd_ros.nodes import base, cameras
from vpr_kd_ros.nodes.base import OK, WARN, VprNode
from vpr_kd_ros.nodes.candidates import candidates_cloud
from vpr_kd_ros.nodes.device import free_device_memory
from vpr_kd_ros.nodes.images import listen_for_images, why_no_image
from vpr_kd_ros.nodes.listening import Listener
from vpr_kd_ros.nodes.localizer_parameters import LocalizerParameters
from vpr_kd_ros.nodes.markers import belief_marker, match_markers, match_picture, places_marker, route_marker
from vpr_kd_ros.nodes.newest import NewestWorker
from vpr_kd_ros.nodes.odometry import Odometry, OdometryPose
from vpr_kd_ros.nodes.statistics import Drops, Rate, Window
from vpr_kd_ros.nodes.students import load_student
from vpr_kd_ros.nodes.topics import qos_profile
from vpr_kd_ros.nodes.transforms import SEND_PERIOD_S, MapFromOdomBroadcaster, map_from_odom
from vpr_kd_ros.recording import TopicQos
from vpr_kd_ros.serialized_images import read_compressed_image, read_image
from vpr_kd_ros.student import Student
from vpr_kd_ros.verification import VerificationConfig

# The route in the markers: so many accepted positions, this far apart at least.
ROUTE_POSES, ROUTE_STEP_M = 1000, 1.0


@dataclass(frozen=True)
class _Received:
    camera: str
    serialized: bytes
    monotonic_s: float


class _Tally:
    """What the diagnostics report."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.received = {camera: Rate() for camera in names}
        self.processed = Rate()
        self.odometry = Rate()
        self.without_odometry = 0
        self.accepted = 0
        self.drops = Drops()
        self.age_of_stamp = Window()
        self.age_of_reception = Window()
        self.steps: dict[str, Window] = {}
        self.transforms = 0
        self.last_refusal = ""


class LocalizerNode(VprNode[LocalizerParameters]):
    """Newest image in, match out; a thread of its own runs the student."""

    live = ("min_probability", "min_similarity", "max_rate_hz", "image_timeout_s")

    def __init__(self) -> None:
        super().__init__("localizer", LocalizerParameters)
        self._localizer: Localizer | None = None
        self._worker: NewestWorker[_Received] | None = None
        self._cameras: dict[str, str] = {}
        self._listeners: list[Listener] = []
        self._odometry: Odometry | None = None
        # A reset must not come while an image is in work.
        self._localising = threading.Lock()
        self._tally = _Tally()
        self._lock = threading.Lock()
        self._marker_subscribers = 0
        self._route: deque[Floats] = deque(maxlen=ROUTE_POSES)
        self._broadcaster: MapFromOdomBroadcaster | None = None
        self._pose = self.create_publisher(PoseWithCovarianceStamped, "~/pose", 10)
        self._candidates = self.create_publisher(PointCloud2, "~/candidates", 10)
        self._markers = self.create_publisher(MarkerArray, "~/markers", 10)
        self._picture = self.create_publisher(CompressedImage, "~/match_image/compressed", QoSProfile(depth=1))
        self.create_service(Trigger, "~/reload_map", self._on_reload_map)
        self.create_service(Trigger, "~/reset", self._on_reset)

    # --- life cycle --------------------------------------------------------------------------------------------------

    def configure(self) -> None:
        """Load the student and the map, and run the student once: the first run is the slow one."""
        config = self.config
        for name in ("student", "map"):
            if not getattr(config, name):
                raise ConfigError(f"parameter {name!r}: it is not given")
        self._cameras = cameras.parse_cameras(config.cameras)
        if config.publish_tf and self._broadcaster is None:
            self._broadcaster = MapFromOdomBroadcaster(self)
            self.create_steady_timer(SEND_PERIOD_S, self._broadcaster.send)
        student = load_student(self)
        localizer = self._with_map(student)
        size = student.metadata.preprocess
        student.describe([np.zeros((size.height, size.width, 3), dtype=np.uint8)])
        self._localizer = localizer
        self.logger.info(
            f"student {student.metadata.name!r} ({student.metadata.method}, {student.runtime}), "
            f"map {config.map}: {_sizes(localizer)} in frame {localizer.place_map.frame_id!r}, "
            f"{'approximate' if localizer.place_map.approximate else 'exact'} search"
        )

    def activate(self) -> None:
        """Subscribe to the images, and to the odometry where the mode or the transform needs it."""
        self._tally = _Tally(self._cameras)
        self._route.clear()
        if self._localizer is not None:
            self._localizer.reset()
        self._odometry = self._listen_for_odometry() if self._uses_odometry else None
        self._worker = NewestWorker(self._process, self.config.max_rate_hz)
        for camera, topic in self._cameras.items():
            callback = partial(self._on_image, camera)
            self._listeners.append(listen_for_images(self, self.config.image_transport, callback, topic))

    def deactivate(self) -> None:
        """Unsubscribe and finish the image in work."""
        while self._listeners:
            self._listeners.pop().stop()
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()
        self._forget_transform()

    def cleanup(self) -> None:
        """Free the student and the map, and the device's memory with them."""
        self._localizer = None
        free_device_memory()

    def reconfigure(self, config: LocalizerParameters) -> None:
        """Take over what decides over matches and how often images are looked at."""
        localizer, worker = self._localizer, self._worker
        assert localizer is not None
        min_similarity = config.min_similarity if config.min_similarity > -1.0 else None
        if min_similarity is None and localizer.student.metadata.calibration is None:
            raise ConfigError("parameter 'min_similarity': the student carries no calibration that could replace it")
        judged = replace(localizer.config, min_probability=config.min_probability, min_similarity=min_similarity)
        with self._localising:
            localizer.config = judged
        if worker is not None:
            worker.limit(config.max_rate_hz)

    def diagnose(self) -> tuple[bytes, str, dict[str, Any]]:
        """Counts, rates, ages and latencies; a warning when images or odometry fail, or images were dropped lately."""
        tally, worker, localizer = self._tally, self._worker, self._localizer
        assert worker is not None
        assert localizer is not None
        values: dict[str, Any] = {
            "received": sum(rate.count for rate in tally.received.values()),
            **{f"{camera}_rate_hz": rate.hertz for camera, rate in tally.received.items() if camera},
            "processed": tally.processed.count,
            "accepted": tally.accepted,
            "dropped_for_newer": worker.replaced,
            "dropped_bad": tally.drops.total,
            "dropped_most": tally.drops.most_common(),
            "rate_hz": tally.processed.hertz,
            "age_of_stamp_p50_s": tally.age_of_stamp.percentile(50),
            "age_of_stamp_p99_s": tally.age_of_stamp.percentile(99),
            "age_of_reception_p50_s": tally.age_of_reception.percentile(50),
            "age_of_reception_p99_s": tally.age_of_reception.percentile(99),
            **{f"{step}_p50_ms": window.percentile(50) * 1e3 for step, window in dict(tally.steps).items()},
            "map_places": sum(len(place_map) for place_map in localizer.maps.values()),
            "last_refusal": tally.last_refusal,
            "mode": self.config.mode,
        }
        if localizer.belief is not None:
            values |= {"belief_unknown": localizer.belief.unknown, "belief_resets": localizer.belief.resets}
        if self._odometry is not None:
            values |= {
                "odometry": tally.odometry.count,
                "odometry_rate_hz": tally.odometry.hertz,
                "odometry_restarts": self._odometry.start,
                "without_odometry": tally.without_odometry,
                "transforms": tally.transforms,
            }
        # A camera that fails is named; the others go on.
        if silence := "; ".join(
            cameras.prefixed(camera, why_no_image(self, self.config.image_transport, self._cameras[camera]))
            for camera, rate in tally.received.items()
            if rate.silent_s() > self.config.image_timeout_s
        ):
            self.logger.warning(silence, throttle_duration_sec=10.0)
            return WARN, silence, values
        if self._odometry is not None and tally.odometry.silent_s() > self.config.image_timeout_s:
            return WARN, self._why_no_odometry(), values
        if dropped := tally.drops.recent():
            return WARN, dropped, values
        return OK, "localising", values

    # --- callbacks ---------------------------------------------------------------------------------------------------

    def _on_image(self, camera: str, serialized: bytes) -> None:
        self._tally.received[camera].tick()
        if self._worker is not None:
            self._worker.put(_Received(camera, serialized, time.monotonic()), camera)

    def _listen_for_odometry(self) -> Odometry:
        odometry = Odometry(self.config.max_speed_mps, self._forget_transform)
        qos = qos_profile(TopicQos(reliable=False, depth=100))
        self._listeners.append(Listener(self, OdometryMessage, "odom", partial(self._on_odometry, odometry), qos))
        return odometry

    def _on_odometry(self, odometry: Odometry, message: OdometryMessage) -> None:
        self._tally.odometry.tick()
        try:
            pose = pose_from_message(message)
        except DataError as error:
            self._drop(self._tally, f"odom: {error}")
            return
        if not odometry.add(stamp_ns(message.header), pose, message.header.frame_id):
            self.logger.warning(
                "odom: it has started over in time, place or frame (or is faster than 'max_speed_mps'); what was known "
                "of it is forgotten",
                throttle_duration_sec=5.0,
            )

    def _forget_transform(self) -> None:
        if self._broadcaster is not None:
            self._broadcaster.forget()

    def _why_no_odometry(self) -> str:
        topic = self.resolve_topic_name("odom")
        user = "parameter 'publish_tf' needs" if self.config.publish_tf else "mode 'belief' asks for"
        return (
            f"no odometry on {topic} (nav_msgs/msg/Odometry, {self.count_publishers(topic)} publishers), which {user}; "
            f"remap with -r odom:=TOPIC"
        )

    def _on_reload_map(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        current = self._localizer
        if current is None:
            response.message = "the node is not configured"
            return response
        try:
            localizer = self._with_map(current.student)
        except VprError as error:
            response.message = f"the map in use stays: {error}"
            self.logger.error(response.message)
            return response
        with self._localising:
            self._localizer = localizer
            self._forget_transform()
        with self._lock:
            self._marker_subscribers = 0
        response.success = True
        response.message = f"{self.config.map}: {_sizes(localizer)}"
        self.logger.info(f"map reloaded: {response.message}")
        return response

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        localizer = self._localizer
        with self._localising:
            self._tally = _Tally(self._cameras)
            self._route.clear()
            self._forget_transform()
            if localizer is not None:
                localizer.reset()
        response.success = True
        response.message = "counts and statistics start again"
        if localizer is not None and localizer.belief is not None:
            response.message += ", and where the robot is is unknown"
        return response

    def _with_map(self, student: Student) -> Localizer:
        config = self.config
        folder = Path(config.map).expanduser()
        return Localizer(
            student,
            cameras.load_maps(folder, self._cameras, student.metadata.fingerprint, config.search),
            LocalizerConfig(
                candidates=config.candidates,
                min_probability=config.min_probability,
                min_similarity=config.min_similarity if config.min_similarity > -1.0 else None,
                cluster_radius_m=config.cluster_radius_m or None,
                mode=config.mode,
                belief=BeliefConfig(max_speed_mps=config.max_speed_mps),
                verification=VerificationConfig(places=config.verify_places),
            ),
        )

    # --- the worker's thread -----------------------------------------------------------------------------------------

    def _process(self, received: _Received) -> None:
        tally, localizer = self._tally, self._localizer
        if localizer is None:
            return
        try:
            compressed = self.config.image_transport == "compressed"
            message = (read_compressed_image if compressed else read_image)(received.serialized)
            image = image_from_message(message)
            stamp = stamp_ns(message.header)
            odometry = None if self._odometry is None else self._odometry.at(stamp, received.camera)
            with self._localising:
                match = localizer.localise(image, stamp, None if odometry is None else odometry.pose, received.camera)
                self._publish(match, image, message.header.frame_id, localizer)
                # A map that was replaced meanwhile is not that of the transform any more.
                if localizer is self._localizer:
                    self._keep_transform(match, odometry, localizer.place_map.frame_id)
        except DataError as error:
            self._drop(tally, cameras.prefixed(received.camera, str(error)))
            return
        except Exception:
            self._drop(tally, f"a defect of ours:\n{traceback.format_exc()}")
            return
        tally.processed.tick()
        tally.accepted += match.accepted
        tally.without_odometry += self._odometry is not None and odometry is None
        tally.last_refusal = match.reason or tally.last_refusal
        tally.age_of_reception.add(time.monotonic() - received.monotonic_s)
        tally.age_of_stamp.add((self.get_clock().now().nanoseconds - stamp) * 1e-9)
        for step, seconds in match.seconds.items():
            tally.steps.setdefault(step, Window()).add(seconds)

    def _drop(self, tally: _Tally, reason: str) -> None:
        tally.drops.add(reason)
        self.logger.warning(f"image dropped: {reason}", throttle_duration_sec=5.0)

    @property
    def _uses_odometry(self) -> bool:
        return self.config.mode == "belief" or self.config.publish_tf

    def _publish(self, match: Match, image: NDArray[np.uint8], camera_frame: str, localizer: Localizer) -> None:
        place_map = localizer.place_map
        frame = place_map.frame_id
        if match.pose is not None and match.covariance is not None:
            self._pose.publish(pose_with_covariance_to_message(match.pose, match.covariance, match.stamp_ns, frame))
            if not self._route or np.linalg.norm(match.pose.position - self._route[-1]) >= ROUTE_STEP_M:
                self._route.append(match.pose.position)
        if self._candidates.get_subscription_count():
            self._candidates.publish(candidates_cloud(match, frame))
        subscribers = self._markers.get_subscription_count()
        if subscribers:
            markers = match_markers(match, frame)
            markers.markers.append(route_marker(np.array(self._route).reshape(-1, 3), frame, match.stamp_ns))
            if localizer.belief is not None:
                place_ids, weights = localizer.belief.hypotheses
                at = np.array([place_map.pose(place_id).position for place_id in place_ids.tolist()]).reshape(-1, 3)
                markers.markers.append(belief_marker(at, weights, frame, match.stamp_ns))
            with self._lock:
                if subscribers > self._marker_subscribers:
                    markers.markers.append(places_marker(place_map.positions, frame, match.stamp_ns))
                self._marker_subscribers = subscribers
            self._markers.publish(markers)
        else:
            self._marker_subscribers = 0
        if self._picture.get_subscription_count():
            thumbnail = None if match.place_id is None else localizer.maps[match.camera].thumbnail(match.place_id)
            self._picture.publish(match_picture(image, thumbnail, match, camera_frame))

    def _keep_transform(self, match: Match, odometry: OdometryPose | None, map_frame: str) -> None:
        """Where the odometry's frame lies in the map, only when an accepted match and odometry say so together."""
        if self._broadcaster is None or not self.config.publish_tf or match.pose is None or odometry is None:
            return
        self._broadcaster.keep(map_from_odom(match.pose, odometry.pose), map_frame, odometry.frame_id)
        self._tally.transforms += 1
        if self._odometry is None or odometry.start != self._odometry.start:
            # It started over while the student looked at the image.
            self._forget_transform()


def _sizes(localizer: Localizer) -> str:
    return ", ".join(cameras.prefixed(name, f"{len(place_map)} places") for name, place_map in localizer.maps.items())


def main() -> None:
    """Entry point of the executable ``localizer``."""
    base.main(LocalizerNode)


if __name__ == "__main__":
    main()
