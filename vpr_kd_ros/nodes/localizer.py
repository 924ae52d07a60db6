"""Tells from a camera image where in the map the robot is.

ros2 run vpr_kd_ros localizer --ros-args -p student:=student.pt2 -p map:=town_map -r image:=/camera/image_raw
"""

from __future__ import annotations

import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
from numpy.typing import NDArray
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage, PointCloud2
from std_srvs.srv import Trigger
from visualization_msgs.msg import MarkerArray

from vpr_kd_ros.belief import BeliefConfig
from vpr_kd_ros.conversions import columns_to_cloud, pose_with_covariance_to_message
from vpr_kd_ros.decode import image_from_message, pose_from_message, stamp_ns
from vpr_kd_ros.errors import ConfigError, DataError, VprError
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.localizer import MODES, Localizer, LocalizerConfig, Match
from vpr_kd_ros.nodes import base
from vpr_kd_ros.nodes.base import OK, WARN, VprNode
from vpr_kd_ros.nodes.images import TRANSPORTS, subscribe_images, why_no_image
from vpr_kd_ros.nodes.markers import match_markers, match_picture, places_marker
from vpr_kd_ros.nodes.newest import NewestWorker
from vpr_kd_ros.nodes.pose_buffer import Missing, PoseBuffer
from vpr_kd_ros.nodes.statistics import Drops, Rate, Window
from vpr_kd_ros.nodes.topics import qos_profile
from vpr_kd_ros.parameters import parameter
from vpr_kd_ros.place_map import PlaceMap
from vpr_kd_ros.recording import TopicQos
from vpr_kd_ros.student import Student

# An image waits this long for the odometry after it; half a second between two poses says too little.
ODOMETRY_WAIT_S = 0.1
ODOMETRY_GAP_S = 0.5


@dataclass(frozen=True)
class LocalizerParameters:
    """Parameters of the localizer."""

    student: str = parameter("", "the student artefact, a .pt2 file")
    map: str = parameter("", "the place map, a folder that the mapper saved with the same student")
    min_probability: float = parameter(0.9, "accept a match from this probability of being right on", low=0.0, high=1.0)
    min_similarity: float = parameter(
        -1.0, "and from this similarity on; -1: no limit, for students that carry a calibration", low=-1.0, high=1.0
    )
    mode: str = parameter(
        "single",
        "single: each image alone; belief: filtered over time, with the topic 'odom' if it comes",
        choices=MODES,
    )
    max_speed_mps: float = parameter(10.0, "mode belief: fastest the robot moves, metres per second", low=0.01)
    trust: float = parameter(
        0.5,
        "mode belief: how much one image counts; less is slower and knows better where there is no map",
        low=0.01,
        high=1.0,
    )
    candidates: int = parameter(10, "places looked up for each image", low=1, high=1000)
    cluster_radius_m: float = parameter(
        0.0, "candidates nearer to one another are one place, metres; 0: what the student was calibrated with", low=0.0
    )
    max_rate_hz: float = parameter(0.0, "process at most so many images a second; 0: as many as it can", low=0.0)
    image_timeout_s: float = parameter(2.0, "warn when no image came for this long, seconds", low=0.1)
    image_transport: str = parameter("raw", "raw, or compressed for TOPIC/compressed", choices=TRANSPORTS)
    device: str = parameter("cpu", "where the student runs: cpu, cuda or cuda:N")
    threads: int = parameter(0, "CPU threads of the student; 0: torch's own choice", low=0, high=256)


@dataclass(frozen=True)
class _Received:
    message: Any
    monotonic_s: float


class _Tally:
    """What the diagnostics report."""

    def __init__(self) -> None:
        self.received = Rate()
        self.processed = Rate()
        self.odometry = Rate()
        self.without_odometry = 0
        self.accepted = 0
        self.drops = Drops()
        self.age_of_stamp = Window()
        self.age_of_reception = Window()
        self.steps: dict[str, Window] = {}
        self.last_refusal = ""


class LocalizerNode(VprNode[LocalizerParameters]):
    """Newest image in, match out; a thread of its own runs the student."""

    def __init__(self) -> None:
        super().__init__("localizer", LocalizerParameters)
        self._localizer: Localizer | None = None
        self._worker: NewestWorker[_Received] | None = None
        self._image_subscription: Any = None
        self._odometry_subscription: Any = None
        self._odometry = PoseBuffer(max_gap_s=ODOMETRY_GAP_S)
        self._odometry_arrived = threading.Condition()
        self._last_stamp_ns = 0
        # A reset must not come while an image is in work.
        self._localising = threading.Lock()
        self._tally = _Tally()
        self._lock = threading.Lock()
        self._marker_subscribers = 0
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
        student = Student.load(Path(config.student).expanduser(), device=config.device, threads=config.threads or None)
        localizer = self._with_map(student)
        size = student.metadata.preprocess
        student.describe([np.zeros((size.height, size.width, 3), dtype=np.uint8)])
        self._localizer = localizer
        self.logger.info(
            f"student {student.metadata.name!r} ({student.metadata.method}, {config.device}), "
            f"map {config.map}: {len(localizer.place_map)} places in frame {localizer.place_map.frame_id!r}"
        )

    def activate(self) -> None:
        """Subscribe to the images, and in mode belief to the odometry."""
        self._tally = _Tally()
        self._odometry.clear()
        if self._localizer is not None:
            self._localizer.reset()
        if self.config.mode == "belief":
            qos = qos_profile(TopicQos(reliable=False, depth=100))
            self._odometry_subscription = self.create_subscription(Odometry, "odom", self._on_odometry, qos)
        self._worker = NewestWorker(self._process, self.config.max_rate_hz)
        self._image_subscription = subscribe_images(self, self.config.image_transport, self._on_image)

    def deactivate(self) -> None:
        """Unsubscribe and finish the image in work."""
        for subscription in (self._image_subscription, self._odometry_subscription):
            if subscription is not None:
                self.destroy_subscription(subscription)
        self._image_subscription = self._odometry_subscription = None
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()

    def cleanup(self) -> None:
        """Free the student and the map."""
        self._localizer = None

    def diagnose(self) -> tuple[bytes, str, dict[str, Any]]:
        """Counts, rates, ages and latencies; a warning when no image comes."""
        tally, worker, localizer = self._tally, self._worker, self._localizer
        assert worker is not None
        assert localizer is not None
        values: dict[str, Any] = {
            "received": tally.received.count,
            "processed": tally.processed.count,
            "accepted": tally.accepted,
            "dropped_for_newer": worker.replaced,
            "dropped_bad": tally.drops.total,
            "rate_hz": tally.processed.hertz,
            "age_of_stamp_p50_s": tally.age_of_stamp.percentile(50),
            "age_of_stamp_p99_s": tally.age_of_stamp.percentile(99),
            "age_of_reception_p50_s": tally.age_of_reception.percentile(50),
            "age_of_reception_p99_s": tally.age_of_reception.percentile(99),
            **{f"{step}_p50_ms": window.percentile(50) * 1e3 for step, window in dict(tally.steps).items()},
            "map_places": len(localizer.place_map),
            "last_refusal": tally.last_refusal,
            "mode": self.config.mode,
        }
        if localizer.belief is not None:
            values |= {
                "belief_unknown": localizer.belief.unknown,
                "belief_resets": localizer.belief.resets,
                "odometry": tally.odometry.count,
                "odometry_rate_hz": tally.odometry.hertz,
                "without_odometry": tally.without_odometry,
            }
        if tally.received.silent_s() > self.config.image_timeout_s:
            return WARN, why_no_image(self, self.config.image_transport), values
        if tally.drops.total:
            return WARN, tally.drops.most_common(), values
        return OK, "localising", values

    # --- callbacks ---------------------------------------------------------------------------------------------------

    def _on_image(self, message: Any) -> None:
        self._tally.received.tick()
        if self._worker is not None:
            self._worker.put(_Received(message, time.monotonic()))

    def _on_odometry(self, message: Odometry) -> None:
        self._tally.odometry.tick()
        try:
            pose = pose_from_message(message)
        except DataError as error:
            self._drop(self._tally, f"odom: {error}")
            return
        with self._odometry_arrived:
            self._odometry.add(stamp_ns(message.header), pose)
            self._odometry_arrived.notify()

    def _on_reload_map(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        current = self._localizer
        if current is None:
            response.message = "the node is not configured"
            return response
        try:
            self._localizer = self._with_map(current.student)
        except VprError as error:
            response.message = f"the map in use stays: {error}"
            self.logger.error(response.message)
            return response
        with self._lock:
            self._marker_subscribers = 0
        response.success = True
        response.message = f"{self.config.map}: {len(self._localizer.place_map)} places"
        self.logger.info(f"map reloaded: {response.message}")
        return response

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._tally = _Tally()
        response.success = True
        response.message = "counts and statistics start again"
        localizer = self._localizer
        if localizer is not None and localizer.belief is not None:
            with self._localising:
                localizer.reset()
            response.message += ", and where the robot is is unknown"
        return response

    def _with_map(self, student: Student) -> Localizer:
        config = self.config
        place_map = PlaceMap.load(Path(config.map).expanduser(), student.metadata.fingerprint)
        return Localizer(
            student,
            place_map,
            LocalizerConfig(
                candidates=config.candidates,
                min_probability=config.min_probability,
                min_similarity=config.min_similarity if config.min_similarity > -1.0 else None,
                cluster_radius_m=config.cluster_radius_m or None,
                mode=config.mode,
                belief=BeliefConfig(max_speed_mps=config.max_speed_mps, trust=config.trust),
            ),
        )

    # --- the worker's thread -----------------------------------------------------------------------------------------

    def _process(self, received: _Received) -> None:
        tally, localizer = self._tally, self._localizer
        if localizer is None:
            return
        try:
            image = image_from_message(received.message)
            stamp = stamp_ns(received.message.header)
            odometry = None if localizer.belief is None else self._odometry_at(stamp)
            with self._localising:
                match = localizer.localise(image, stamp, odometry)
            self._publish(match, image, received.message.header.frame_id, localizer.place_map)
        except DataError as error:
            self._drop(tally, str(error))
            return
        except Exception:
            self._drop(tally, f"a defect of ours:\n{traceback.format_exc()}")
            return
        tally.processed.tick()
        tally.accepted += match.accepted
        tally.without_odometry += localizer.belief is not None and odometry is None
        tally.last_refusal = match.reason or tally.last_refusal
        tally.age_of_reception.add(time.monotonic() - received.monotonic_s)
        tally.age_of_stamp.add((self.get_clock().now().nanoseconds - stamp) * 1e-9)
        for step, seconds in match.seconds.items():
            tally.steps.setdefault(step, Window()).add(seconds)

    def _odometry_at(self, stamp: int) -> Pose | None:
        """The robot's pose in the odometry's frame when the image was taken; None where there is none."""
        with self._odometry_arrived:
            if stamp < self._last_stamp_ns:
                # Time jumped back: the poses kept are of another drive.
                self._odometry.clear()
            self._last_stamp_ns = stamp

            def found() -> Pose | Missing | None:
                pose = self._odometry.at(stamp)
                return None if pose is Missing.NOT_YET and len(self._odometry) else pose

            pose = self._odometry_arrived.wait_for(found, timeout=ODOMETRY_WAIT_S)
        return pose if isinstance(pose, Pose) else None

    def _drop(self, tally: _Tally, reason: str) -> None:
        tally.drops.add(reason)
        self.logger.warning(f"image dropped: {reason}", throttle_duration_sec=5.0)

    def _publish(self, match: Match, image: NDArray[np.uint8], camera_frame: str, place_map: PlaceMap) -> None:
        frame = place_map.frame_id
        if match.pose is not None and match.covariance is not None:
            self._pose.publish(pose_with_covariance_to_message(match.pose, match.covariance, match.stamp_ns, frame))
        self._candidates.publish(_candidates_cloud(match, frame))
        subscribers = self._markers.get_subscription_count()
        if subscribers:
            markers = match_markers(match, frame)
            with self._lock:
                if subscribers > self._marker_subscribers:
                    markers.markers.append(places_marker(place_map.positions, frame, match.stamp_ns))
                self._marker_subscribers = subscribers
            self._markers.publish(markers)
        if self._picture.get_subscription_count():
            thumbnail = None if match.place_id is None else place_map.thumbnail(match.place_id)
            self._picture.publish(match_picture(image, thumbnail, match, camera_frame))


def _candidates_cloud(match: Match, frame_id: str) -> PointCloud2:
    candidates = match.candidates
    return columns_to_cloud(
        {
            "x": candidates.positions[:, 0].astype(np.float32),
            "y": candidates.positions[:, 1].astype(np.float32),
            "z": candidates.positions[:, 2].astype(np.float32),
            "yaw": candidates.yaws.astype(np.float32),
            "similarity": candidates.similarities.astype(np.float32),
            "probability": candidates.probabilities.astype(np.float32),
            "place_id": candidates.place_ids.astype(np.int32),
        },
        match.stamp_ns,
        frame_id,
    )


def main() -> None:
    """Entry point of the executable ``localizer``."""
    base.main(LocalizerNode)


if __name__ == "__main__":
    main()
