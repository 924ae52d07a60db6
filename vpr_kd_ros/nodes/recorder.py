"""Records topics to a bag, as they come: no message is decoded, and the bag survives being killed.

ros2 run vpr_kd_ros recorder --ros-args -p output:=drive1 -p topics:="[camera/image_raw, lidar/points, odom]"
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from rclpy.subscription import Subscription

from vpr_kd_ros.errors import DataError
from vpr_kd_ros.nodes import base
from vpr_kd_ros.nodes.base import ERROR, OK, WARN, VprNode
from vpr_kd_ros.nodes.statistics import Rate
from vpr_kd_ros.nodes.sync import StampOffset
from vpr_kd_ros.nodes.topics import (
    has_header,
    header_stamp_ns,
    message_class,
    offered_qos,
    published_topics,
    qos_profile,
    topic_type,
)
from vpr_kd_ros.parameters import parameter
from vpr_kd_ros.recording import BagWriter, TopicQos

CAMERA_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
LIDAR_TYPE = "sensor_msgs/msg/PointCloud2"
# A burst that waits for the interpreter: at 100 messages the biggest topics still fit in memory.
SUBSCRIPTION_DEPTH = 100
MEGABYTE = 1 << 20
# A topic that is misspelt should show early, a recording that runs should not fill the console.
FIRST_REPORT_S, REPORT_S = 2.0, 5.0


@dataclass(frozen=True)
class RecorderParameters:
    """Parameters of the recorder."""

    topics: tuple[str, ...] = parameter(
        ("camera/image_raw", "lidar/points", "odom", "ground_truth/odom"), "topics to record; names may be relative"
    )
    output: str = parameter(
        "", "folder of the bag, which must not exist; empty: named by date and time, in the working folder"
    )
    max_duration_s: float = parameter(0.0, "stop and exit after this many seconds of recording; 0: never", low=0.0)
    max_queue_mb: int = parameter(256, "messages waiting for the disk, MB; beyond it they are dropped", low=1)
    chunk_mb: int = parameter(4, "size of the bag's chunks, MB; they are closed every second in any case", low=1)
    compress: bool = parameter(True, "compress the chunks with zstd")
    min_free_mb: int = parameter(500, "stop and exit when the disk has less than this left, MB", low=0)


@dataclass
class _Recorded:
    """One topic while it is recorded."""

    type_name: str
    qos: TopicQos
    subscription: Subscription
    rate: Rate = field(default_factory=Rate)


class Recorder(VprNode[RecorderParameters]):
    """Subscribes to each topic when it appears, with the QoS that its publishers offer."""

    def __init__(self) -> None:
        super().__init__("recorder", RecorderParameters)
        self._writer: BagWriter | None = None
        self._timer: Any = None
        self._recorded: dict[str, _Recorded] = {}
        self._refused: dict[str, str] = {}
        self._without_time = 0
        self._offset = StampOffset()
        self._started_s = 0.0
        self._last_report_s = 0.0

    def configure(self) -> None:
        """Check that there is something to record and somewhere to put it."""
        if not self.config.topics:
            raise DataError("parameter 'topics': it is empty; name at least one topic")
        if self.config.output and Path(self.config.output).expanduser().exists():
            raise DataError(f"parameter 'output': {self.config.output} exists already; name another folder")

    def activate(self) -> None:
        """Open the bag and look for the topics."""
        output = self.config.output or datetime.now().strftime("recording_%Y%m%d_%H%M%S")
        self._writer = BagWriter(
            Path(output).expanduser(),
            chunk_bytes=self.config.chunk_mb * MEGABYTE,
            max_queue_bytes=self.config.max_queue_mb * MEGABYTE,
            compress=self.config.compress,
        )
        self._recorded, self._refused, self._without_time = {}, {}, 0
        self._offset = StampOffset()
        self._started_s = time.monotonic()
        self._last_report_s = self._started_s + FIRST_REPORT_S - REPORT_S
        self.logger.info(f"recording to {self._writer.path}")
        self._timer = self.create_steady_timer(0.25, self._tick)
        self._subscribe_to_new()

    def deactivate(self) -> None:
        """Unsubscribe and finish the bag."""
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None
        for recorded in self._recorded.values():
            self.destroy_subscription(recorded.subscription)
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
            dropped = sum(writer.dropped.values())
            self.logger.info(
                f"{writer.path}: {sum(writer.written.values())} messages of {len(self._recorded)} topics"
                + (f", {dropped} dropped" if dropped else "")
            )
            for topic in self._missing():
                self.logger.warning(f"topic {topic!r} was never recorded: nobody published it")

    def diagnose(self) -> tuple[bytes, str, dict[str, Any]]:
        """Rates, gaps and drops by topic, and the camera's offset to the LiDAR."""
        writer = self._writer
        if writer is None:
            return ERROR, "no bag is open", {}
        values: dict[str, Any] = {"bag": writer.path, "queue_mb": writer.queue_bytes / MEGABYTE}
        for topic, recorded in self._recorded.items():
            rate = recorded.rate
            values[f"{topic} messages"] = rate.count
            values[f"{topic} rate_hz"] = rate.hertz
            values[f"{topic} gaps"] = f"{rate.gaps}, longest {rate.longest_gap_s:.3f} s"
            values[f"{topic} dropped"] = writer.dropped[topic]
        values |= self._offset.summary()
        problems = [f"nobody publishes {topic}" for topic in self._missing()]
        problems += [f"{topic}: {why}" for topic, why in self._refused.items()]
        problems += [
            f"{topic} is silent"
            for topic, recorded in self._recorded.items()
            if recorded.rate.silent_s() > 2.0 and not recorded.qos.transient_local
        ]
        if any(writer.dropped.values()):
            problems.append("the disk is too slow, messages were dropped")
        if self._without_time:
            problems.append(f"{self._without_time} messages came before /clock and were left out")
        return (WARN if problems else OK), "; ".join(problems) or "recording", values

    # --- four times a second -----------------------------------------------------------------------------------------

    def _tick(self) -> None:
        assert self._writer is not None
        now = time.monotonic()
        try:
            self._writer.check()
        except DataError as error:
            self.logger.error(str(error))
            self.request_stop(1)
            return
        self._subscribe_to_new()
        if now - self._last_report_s >= REPORT_S:
            self._last_report_s = now
            self._report(now)
        if self.config.max_duration_s and now - self._started_s >= self.config.max_duration_s:
            self.logger.info(f"{self.config.max_duration_s:g} s recorded")
            self.request_stop()
        free_mb = shutil.disk_usage(self._writer.path).free // MEGABYTE
        if free_mb < self.config.min_free_mb:
            self.logger.error(f"{self._writer.path}: only {free_mb} MB left on the disk, stopping ('min_free_mb')")
            self.request_stop(1)

    def _subscribe_to_new(self) -> None:
        for name in self.config.topics:
            topic = self.resolve_topic_name(name)
            type_name = topic_type(self, topic)
            if type_name is None or topic in self._refused:
                continue
            recorded = self._recorded.get(topic)
            qos = offered_qos(self, topic)
            if recorded is None:
                self._subscribe(topic, type_name, qos)
            elif (recorded.qos.reliable and not qos.reliable) or (
                recorded.qos.transient_local and not qos.transient_local
            ):
                # A publisher that offers less joined; the old subscription would not hear it.
                self.destroy_subscription(recorded.subscription)
                recorded.subscription = self._create_subscription(topic, type_name, qos)
                recorded.qos = qos

    def _subscribe(self, topic: str, type_name: str, qos: TopicQos) -> None:
        assert self._writer is not None
        try:
            self._writer.declare_topic(topic, type_name, qos)
            self._recorded[topic] = _Recorded(type_name, qos, self._create_subscription(topic, type_name, qos))
        except DataError as error:
            self._refused[topic] = str(error)
            self.logger.error(f"topic {topic!r} is not recorded: {error}")
            return
        self.logger.info(f"recording {topic} ({type_name}, {'reliable' if qos.reliable else 'best effort'})")

    def _create_subscription(self, topic: str, type_name: str, qos: TopicQos) -> Subscription:
        message_type = message_class(type_name)
        return self.create_subscription(
            message_type,
            topic,
            partial(self._receive, topic, type_name, has_header(message_type)),
            qos_profile(qos, SUBSCRIPTION_DEPTH),
            raw=True,
        )

    def _receive(self, topic: str, type_name: str, stamped: bool, serialized: bytes, info: dict[str, int]) -> None:
        if self._writer is None:
            return
        simulated = self.get_parameter("use_sim_time").value
        now_ns = self.get_clock().now().nanoseconds if simulated else info["received_timestamp"]
        if now_ns <= 0:
            self._without_time += 1
            return
        self._recorded[topic].rate.tick()
        if stamped:
            if type_name in CAMERA_TYPES:
                self._offset.camera(header_stamp_ns(serialized))
            elif type_name == LIDAR_TYPE:
                self._offset.lidar(header_stamp_ns(serialized))
        # What the disk refuses is reported by _tick, once.
        with suppress(DataError):
            self._writer.write(topic, type_name, now_ns, serialized)

    def _missing(self) -> list[str]:
        topics = [self.resolve_topic_name(name) for name in self.config.topics]
        return [topic for topic in topics if topic not in self._recorded and topic not in self._refused]

    def _report(self, now: float) -> None:
        assert self._writer is not None
        rates = ", ".join(f"{topic} {recorded.rate.hertz:.1f} Hz" for topic, recorded in self._recorded.items())
        self.logger.info(f"{now - self._started_s:.0f} s, {sum(self._writer.written.values())} messages: {rates}")
        dropped = Counter(self._writer.dropped)
        if dropped:
            self.logger.warning(f"the disk is too slow; dropped {dict(dropped)}")
        missing = self._missing()
        if missing:
            there = ", ".join(published_topics(self)) or "none"
            self.logger.warning(
                f"nobody publishes {', '.join(missing)}; topics that are published: {there}. "
                "Give the ones to record as parameter 'topics'"
            )


def main() -> None:
    """Entry point of the executable ``recorder``."""
    base.main(Recorder)


if __name__ == "__main__":
    main()
