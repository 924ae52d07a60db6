"""Records topics to a bag, as they come: no message is decoded, and the bag survives being killed.

ros2 run vpr_kd_ros recorder --ros-args -p output:=drive1 -p topics:="[camera/image_raw, lidar/points, odom]"

What is wrong with the topics (missing, silent, late, lost, stamped by another clock) is said on the console and in
``/diagnostics`` while it can still be mended.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from vpr_kd_ros.bag_topics import TopicQos
from vpr_kd_ros.decode import pose_from_message
from vpr_kd_ros.errors import ConfigError, DataError
from vpr_kd_ros.nodes import base
from vpr_kd_ros.nodes.base import ERROR, OK, WARN, VprNode
from vpr_kd_ros.nodes.listening import Listener
from vpr_kd_ros.nodes.recording_gate import Arrival, MovementGate
from vpr_kd_ros.nodes.recording_parameters import RecorderParameters
from vpr_kd_ros.nodes.recording_quality import MachineClock, Publishers, TopicQuality, qos_text
from vpr_kd_ros.nodes.sync import StampOffset
from vpr_kd_ros.nodes.topics import (
    has_header,
    header_stamp_ns,
    message_class,
    published_topics,
    publishers_of,
    qos_profile,
)
from vpr_kd_ros.recording import BagWriter

CAMERA_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
LIDAR_TYPE = "sensor_msgs/msg/PointCloud2"
POSE_TYPES = (
    "nav_msgs/msg/Odometry",
    "geometry_msgs/msg/PoseStamped",
    "geometry_msgs/msg/PoseWithCovarianceStamped",
)
# Messages that wait for the interpreter: of the biggest ones as many as fit in memory, of the others as many as a fast
# IMU sends in two seconds.
BIG_TYPES, BIG_DEPTH, DEPTH = (*CAMERA_TYPES, LIDAR_TYPE), 100, 1000
MEGABYTE = 1 << 20
# A topic that is misspelt should show early, a recording that runs should not fill the console.
FIRST_REPORT_S, REPORT_S = 2.0, 5.0
# Half the period of a 10 Hz LiDAR: more means clocks that differ, not sensors that do not wait for each other.
MAX_OFFSET_MS = 60.0
LOW_DISK_S = 300.0


class Recorder(VprNode[RecorderParameters]):
    """Subscribes to each topic when it appears, with the QoS that its publishers offer.

    Each topic has a thread of its own, and what those change is changed and read under one lock.
    """

    def __init__(self) -> None:
        super().__init__("recorder", RecorderParameters)
        self._writer: BagWriter | None = None
        self._timer: Any = None
        self._gate: MovementGate | None = None
        self._gate_listener: Listener | None = None
        self._listeners: dict[str, Listener] = {}
        self._lock = threading.Lock()
        self._recorded: dict[str, TopicQuality] = {}
        self._refused: dict[str, str] = {}
        self._without_time = 0
        self._offset = StampOffset()
        self._clock_of_machine = MachineClock()
        self._started_s = 0.0
        self._last_report_s = 0.0
        self._stands = False

    def configure(self) -> None:
        """Check that there is something to record and somewhere to put it."""
        if not self.config.topics:
            raise DataError("parameter 'topics': it is empty; name at least one topic")
        if self.config.gate_distance_m and not self.config.gate_topic:
            raise ConfigError("parameter 'gate_topic': it is empty; name the odometry, or set 'gate_distance_m' to 0")
        output = Path(self.config.output).expanduser()
        if self.config.output and output.exists():
            raise DataError(f"parameter 'output': {self.config.output} exists already; name another folder")
        there = next(folder for folder in (output.absolute(), *output.absolute().parents) if folder.exists())
        free_mb = shutil.disk_usage(there).free // MEGABYTE
        if free_mb < self.config.min_free_mb:
            raise DataError(
                f"parameter 'output': the disk of {there} has {free_mb} MB left, and recording stops at "
                f"{self.config.min_free_mb} MB ('min_free_mb'); make room, or name a folder elsewhere"
            )

    def activate(self) -> None:
        """Open the bag and look for the topics."""
        config = self.config
        output = config.output or datetime.now().strftime("recording_%Y%m%d_%H%M%S")
        self._writer = BagWriter(
            Path(output).expanduser(),
            chunk_bytes=config.chunk_mb * MEGABYTE,
            max_queue_bytes=config.max_queue_mb * MEGABYTE,
            compress=config.compress,
            max_file_bytes=config.max_file_mb * MEGABYTE,
            max_file_seconds=config.max_file_s,
        )
        self._gate = None
        if config.gate_distance_m:
            # What was held back goes through the writer's queue at once.
            buffer_bytes = config.max_queue_mb * MEGABYTE // 2
            self._gate = MovementGate(
                config.gate_distance_m, config.gate_standing_s, config.gate_buffer_s, buffer_bytes
            )
        self._recorded, self._refused, self._without_time = {}, {}, 0
        self._offset, self._clock_of_machine, self._stands = StampOffset(), MachineClock(), False
        self._started_s = time.monotonic()
        self._last_report_s = self._started_s + FIRST_REPORT_S - REPORT_S
        self.logger.info(f"recording to {self._writer.path}")
        self._timer = self.create_steady_timer(0.25, self._tick)
        self._look_for_topics()

    def deactivate(self) -> None:
        """Unsubscribe and finish the bag."""
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None
        # Not under the lock, for which they may be waiting.
        Listener.stop_all(filter(None, (*self._listeners.values(), self._gate_listener)))
        self._listeners, self._gate_listener = {}, None
        writer, self._writer = self._writer, None
        if writer is None:
            return
        if self._gate is not None:
            self._gate.close()
        for topic, recorded in self._recorded.items():
            if recorded.losses.count:
                writer.custom[f"lost {topic}"] = str(recorded.losses.count)
        try:
            writer.close()
        finally:
            self._say_what_came(writer)

    def diagnose(self) -> tuple[bytes, str, dict[str, Any]]:
        """By topic rates, gaps, losses, drops and stamps; the camera's offset to the LiDAR; the disk."""
        writer = self._writer
        if writer is None:
            return ERROR, "no bag is open", {}
        with self._lock:
            return self._diagnose(writer)

    def _diagnose(self, writer: BagWriter) -> tuple[bytes, str, dict[str, Any]]:
        values: dict[str, Any] = {
            "bag": writer.path,
            "files": writer.file_count,
            "size_mb": writer.size / MEGABYTE,
            "queue_mb": writer.queue_bytes / MEGABYTE,
            "free_mb": self._free_bytes(writer) // MEGABYTE,
        }
        for topic, recorded in self._recorded.items():
            values |= {f"{topic} {name}": value for name, value in recorded.values().items()}
            values[f"{topic} dropped"] = writer.dropped[topic]
            if self._gate is not None:
                values[f"{topic} left out while standing"] = self._gate.left_out[topic]
        values |= self._offset.summary()
        problems = list(self._problems(writer))
        good = "standing, not recording" if self._stands else "recording"
        return (WARN if problems else OK), "; ".join(problems) or good, values

    # --- four times a second -----------------------------------------------------------------------------------------

    def _tick(self) -> None:
        writer = self._writer
        assert writer is not None
        now = time.monotonic()
        try:
            writer.check()
        except DataError as error:
            self.logger.error(str(error))
            self.request_stop(1)
            return
        self._look_for_topics()
        jump_s = self._clock_of_machine.check(time.time_ns(), time.monotonic_ns())
        if jump_s:
            self.logger.warning(f"this machine's clock was set by {jump_s:+.3f} s; the times of the bag jump there")
        if now - self._last_report_s >= REPORT_S:
            self._last_report_s = now
            with self._lock:
                self._report(writer, now)
        if self.config.max_duration_s and now - self._started_s >= self.config.max_duration_s:
            self.logger.info(f"{self.config.max_duration_s:g} s recorded")
            self.request_stop()
        # What is still in memory has to fit as well.
        free_mb = (self._free_bytes(writer) - writer.unwritten_bytes) // MEGABYTE
        if free_mb < self.config.min_free_mb:
            self.logger.error(f"{writer.path}: only {free_mb} MB left on the disk, stopping ('min_free_mb')")
            self.request_stop(1)

    def _look_for_topics(self) -> None:
        for name in self.config.topics:
            topic = self.resolve_topic_name(name)
            publishers = publishers_of(self, topic)
            recorded = self._recorded.get(topic)
            if recorded is not None:
                self._follow(topic, recorded, publishers)
            elif publishers.types and topic not in self._refused:
                self._subscribe(topic, publishers)
        if self._gate is not None and self._gate_listener is None:
            self._subscribe_gate(self._gate)

    def _follow(self, topic: str, recorded: TopicQuality, publishers: Publishers) -> None:
        """Keep up with who publishes: a publisher that offers less than was asked for is not heard."""
        recorded.publishers = publishers
        if not publishers.profiles:
            return
        least = publishers.least
        asks = recorded.qos
        if (asks.reliable and not least.reliable) or (asks.transient_local and not least.transient_local):
            self._listeners[topic].stop()
            recorded.qos = least
            self._listeners[topic] = self._listen(topic, recorded.type_name, least)
            self.logger.warning(f"{topic} is listened to as {qos_text(least)} from now on, for all of {publishers}")

    def _subscribe(self, topic: str, publishers: Publishers) -> None:
        assert self._writer is not None
        type_name, qos = publishers.types[0], publishers.least
        try:
            self._writer.declare_topic(topic, type_name, qos)
            self._recorded[topic] = TopicQuality(type_name, qos, publishers)
            self._listeners[topic] = self._listen(topic, type_name, qos)
        except DataError as error:
            self._recorded.pop(topic, None)
            self._refused[topic] = str(error)
            self.logger.error(f"topic {topic!r} is not recorded: {error}")
            return
        self.logger.info(f"recording {topic} ({type_name}, {qos_text(qos)})")

    def _subscribe_gate(self, gate: MovementGate) -> None:
        topic = self.resolve_topic_name(self.config.gate_topic)
        publishers = publishers_of(self, topic)
        if not publishers.types or topic in self._refused:
            return
        type_name = publishers.types[0]
        if type_name not in POSE_TYPES:
            self._refused[topic] = f"as 'gate_topic' it should be one of {', '.join(POSE_TYPES)}, and is {type_name}"
            self.logger.error(f"{topic}: {self._refused[topic]}; everything is recorded")
            return

        def on_pose(message: Any, info: dict[str, Any]) -> None:
            try:
                pose = pose_from_message(message)
                with self._lock:
                    gate.pose(self._arrival_ns(info), pose)
            except DataError as error:
                self.logger.warning(f"{topic}: {error}", throttle_duration_sec=REPORT_S)

        profile = qos_profile(TopicQos(reliable=False), DEPTH)
        self._gate_listener = Listener(self, message_class(type_name), topic, on_pose, profile, informed=True)

    # --- messages ----------------------------------------------------------------------------------------------------

    def _listen(self, topic: str, type_name: str, qos: TopicQos) -> Listener:
        message_type = message_class(type_name)
        recorded, stamped = self._recorded[topic], has_header(message_type)

        def receive(serialized: bytes, info: dict[str, Any]) -> None:
            with self._lock:
                self._receive(topic, recorded, stamped, serialized, info)

        profile = qos_profile(qos, BIG_DEPTH if type_name in BIG_TYPES else DEPTH)
        return Listener(self, message_type, topic, receive, profile, serialized=True, informed=True)

    def _receive(
        self, topic: str, recorded: TopicQuality, stamped: bool, serialized: bytes, info: dict[str, Any]
    ) -> None:
        assert self._writer is not None
        now_ns = self._arrival_ns(info)
        if now_ns <= 0:
            self._without_time += 1
            return
        recorded.rate.tick()
        recorded.losses.add(info.get("publication_sequence_number"), len(recorded.publishers.profiles))
        if stamped:
            stamp_ns = header_stamp_ns(serialized)
            recorded.stamps.add(stamp_ns, now_ns)
            if recorded.type_name in CAMERA_TYPES:
                self._offset.camera(stamp_ns)
            elif recorded.type_name == LIDAR_TYPE:
                self._offset.lidar(stamp_ns)
        message = Arrival(topic, recorded.type_name, now_ns, serialized)
        # What is latched is said once, and may be said while the robot stands.
        through = self._gate is None or recorded.qos.transient_local
        for arrival in [message] if through else self._through_the_gate(message):
            # What the disk refuses is reported by _tick, once.
            with suppress(DataError):
                self._writer.write(arrival.topic, arrival.type_name, arrival.stamp_ns, arrival.data)

    def _arrival_ns(self, info: dict[str, Any]) -> int:
        """When a message came, by the clock that the bag is on; 0 before a simulated clock ticks."""
        simulated = self.get_parameter("use_sim_time").value
        # Humble's Cyclone DDS does not say when a message came.
        return int(self.get_clock().now().nanoseconds if simulated else info["received_timestamp"] or time.time_ns())

    def _through_the_gate(self, message: Arrival) -> list[Arrival]:
        assert self._gate is not None
        messages = self._gate.pass_on(message)
        if self._gate.stands(message.stamp_ns) != self._stands:
            self._stands = not self._stands
            self.logger.info(
                f"the robot stands: not recording until it moves by {self.config.gate_distance_m:g} m"
                if self._stands
                else "the robot moves: recording"
            )
        return messages

    # --- what is said ------------------------------------------------------------------------------------------------

    def _free_bytes(self, writer: BagWriter) -> int:
        return shutil.disk_usage(writer.path).free

    def _missing(self) -> list[str]:
        topics = [self.resolve_topic_name(name) for name in self.config.topics]
        return [topic for topic in topics if topic not in self._recorded and topic not in self._refused]

    def _problems(self, writer: BagWriter) -> Iterator[str]:
        """What is wrong, each with the topic it is about."""
        now = time.monotonic()
        for topic in self._missing():
            yield f"nobody publishes {topic}"
        for topic, why in self._refused.items():
            yield f"{topic}: {why}"
        gate_topic = self.resolve_topic_name(self.config.gate_topic)
        if self._gate is not None and self._gate_listener is None and gate_topic not in self._refused:
            yield f"nobody publishes {gate_topic} ('gate_topic'); everything is recorded"
        for topic, recorded in self._recorded.items():
            yield from (f"{topic}: {problem}" for problem in recorded.problems(now))
        offset = self._offset.summary().get("camera_minus_lidar_median_ms", 0.0)
        if abs(offset) > MAX_OFFSET_MS:
            yield f"the stamps of camera and LiDAR are {abs(offset):.0f} ms apart; synchronise their clocks"
        if dropped := {topic: count for topic, count in writer.dropped.items() if count}:
            yield f"the disk is too slow; dropped {dropped}"
        if self._clock_of_machine.jumps:
            yield f"this machine's clock was set {self._clock_of_machine.jumps} times"
        if self._without_time:
            yield f"{self._without_time} messages came before /clock and were left out"
        spare = self._free_bytes(writer) - self.config.min_free_mb * MEGABYTE
        if spare * (now - self._started_s) < LOW_DISK_S * writer.size:
            yield f"the disk is full in {max(0.0, spare * (now - self._started_s) / writer.size / 60):.1f} minutes"

    def _report(self, writer: BagWriter, now: float) -> None:
        rates = ", ".join(f"{topic} {recorded.rate.hertz:.1f} Hz" for topic, recorded in self._recorded.items())
        standing = ", standing" if self._stands else ""
        self.logger.info(
            f"{now - self._started_s:.0f} s{standing}, {writer.size / MEGABYTE:.0f} MB, "
            f"{sum(writer.written.values())} messages: {rates}"
        )
        problems = list(self._problems(writer))
        if self._missing():
            there = ", ".join(published_topics(self)) or "none"
            problems.append(f"topics that are published: {there}. Give the ones to record as parameter 'topics'")
        if problems:
            self.logger.warning("; ".join(problems))

    def _say_what_came(self, writer: BagWriter) -> None:
        self.logger.info(
            f"{writer.path}: {sum(writer.written.values())} messages of {len(self._recorded)} topics, "
            f"{writer.size / MEGABYTE:.1f} MB"
        )
        left_out = {} if self._gate is None else self._gate.left_out
        for topic, recorded in self._recorded.items():
            counts = {"dropped": writer.dropped[topic], "lost before the recorder": recorded.losses.count}
            counts["left out while standing"] = left_out.get(topic, 0)
            text = "".join(f", {count} {what}" for what, count in counts.items() if count)
            self.logger.info(f"  {topic}: {writer.written[topic]} messages{text}")
        for topic in self._missing():
            self.logger.warning(f"topic {topic!r} was never recorded: nobody published it")


def main() -> None:
    """Entry point of the executable ``recorder``."""
    base.main(Recorder)


if __name__ == "__main__":
    main()
