"""Plays a bag: the serialized messages as they are, at their times, with ``/clock``.

ros2 run vpr_kd_ros replay --ros-args -p bag:=drive1 -p rate:=2.0
ros2 run vpr_kd_ros replay --ros-args -p bag:=drive1 -p topics:="['/camera/image_raw:=/image']"
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from rclpy.duration import Duration
from rclpy.publisher import Publisher
from rosgraph_msgs.msg import Clock

from vpr_kd_ros.bag_topics import TopicQos
from vpr_kd_ros.conversions import stamp_from_ns
from vpr_kd_ros.errors import ConfigError, DataError, did_you_mean
from vpr_kd_ros.nodes import base
from vpr_kd_ros.nodes.base import OK, WARN, VprNode
from vpr_kd_ros.nodes.replay_parameters import ReplayParameters
from vpr_kd_ros.nodes.topics import message_class, qos_profile
from vpr_kd_ros.playback import Bag

CLOCK_PERIOD_S = 0.01
SETTLE_S = 0.5


class Replay(VprNode[ReplayParameters]):
    """Publishes from a thread of its own; deactivating it stops, activating it starts from the beginning."""

    def __init__(self) -> None:
        super().__init__("replay", ReplayParameters)
        self._bag: Bag | None = None
        self._names: dict[str, str] = {}
        # By the name in the bag.
        self._topic_publishers: dict[str, Publisher] = {}
        self._clock_publisher: Publisher | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._played = 0
        self._position_s = 0.0

    def configure(self) -> None:
        """Open the bag and see which topics to play under which names."""
        if not self.config.bag:
            raise ConfigError("parameter 'bag': give the bag to play, -p bag:=FOLDER_OR_FILE")
        self._bag = Bag(Path(self.config.bag).expanduser())
        self._warn_of_damage(self._bag)
        self._names = self._chosen_topics(self._bag)
        played = {self.resolve_topic_name(name) for name in self._names.values()}
        for name in self.config.wait_for_subscribers:
            if self.resolve_topic_name(name) not in played:
                raise ConfigError(
                    f"parameter 'wait_for_subscribers': {name!r} is not played{did_you_mean(name, played)}; "
                    f"played: {', '.join(sorted(played))}"
                )
        length_s = (self._bag.end_ns - self._bag.start_ns) * 1e-9
        if self.config.start_offset_s > length_s:
            raise ConfigError(
                f"parameter 'start_offset_s': {self._bag.path} is only {length_s:.1f} s long, "
                f"got {self.config.start_offset_s}"
            )
        self.logger.info(f"{self._bag.path}: {length_s:.1f} s, topics {', '.join(self._names)}")

    def activate(self) -> None:
        """Create the publishers and play."""
        assert self._bag is not None
        for topic, name in self._names.items():
            info = self._bag.topics[topic]
            # A reliable publisher serves best-effort subscribers as well.
            qos = TopicQos(reliable=True, transient_local=info.qos.transient_local, depth=max(10, info.qos.depth))
            self._topic_publishers[topic] = self.create_publisher(message_class(info.type_name), name, qos_profile(qos))
        if self.config.clock:
            self._clock_publisher = self.create_publisher(Clock, "/clock", 10)
        self._stop.clear()
        self._played = 0
        self._thread = threading.Thread(target=self._play, args=(self._bag,), name="player", daemon=True)
        self._thread.start()

    def deactivate(self) -> None:
        """Stop playing and take the publishers down."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        for publisher in [*self._topic_publishers.values(), self._clock_publisher]:
            if publisher is not None:
                self.destroy_publisher(publisher)
        self._topic_publishers, self._clock_publisher = {}, None

    def cleanup(self) -> None:
        """Forget the bag."""
        self._bag = None

    def diagnose(self) -> tuple[bytes, str, dict[str, Any]]:
        """How far it is."""
        level = WARN if self._bag is not None and self._bag.damage else OK
        return level, "playing", {"messages": self._played, "position_s": self._position_s}

    # --- configuring -------------------------------------------------------------------------------------------------

    def _chosen_topics(self, bag: Bag) -> dict[str, str]:
        wanted = self.config.topics or tuple(bag.topics)
        names: dict[str, str] = {}
        for entry in wanted:
            source, _, target = entry.partition(":=")
            if source not in bag.topics:
                raise ConfigError(
                    f"parameter 'topics': {bag.path} has no topic {source!r}{did_you_mean(source, bag.topics)}; "
                    f"it has {', '.join(bag.topics)}"
                )
            try:
                message_class(bag.topics[source].type_name)
            except DataError as error:
                self.logger.warning(f"{bag.path}: {source} is not played: {error}")
                continue
            names[source] = target or source
        if not names:
            raise DataError(f"{bag.path}: none of its topics can be played here")
        return names

    def _warn_of_damage(self, bag: Bag) -> None:
        for file, what in bag.damage.items():
            count = sum(topic.count for topic in bag.topics.values())
            length_s = (bag.end_ns - bag.start_ns) * 1e-9
            self.logger.warning(f"{file}: {what}; {count} messages over {length_s:.1f} s of the bag are readable")

    # --- the player's thread -----------------------------------------------------------------------------------------

    def _play(self, bag: Bag) -> None:
        try:
            self._wait_for_subscribers()
            known_damage = dict(bag.damage)
            while not self._stop.is_set():
                self._play_once(bag)
                if bag.damage != known_damage:
                    self._warn_of_damage(bag)
                    known_damage = dict(bag.damage)
                if not self.config.loop:
                    break
            if not self._stop.is_set():
                for publisher in self._topic_publishers.values():
                    publisher.wait_for_all_acked(Duration(seconds=1.0))
                self.logger.info(f"{bag.path}: {self._played} messages played")
                self.request_stop()
        # A thread that dies silently would leave the process waiting for ever.
        except Exception as error:
            self.logger.error(f"{bag.path}: playing failed: {error!r}")
            self.request_stop(1)

    def _wait_for_subscribers(self) -> None:
        awaited = {self.resolve_topic_name(name) for name in self.config.wait_for_subscribers}
        publishers = [publisher for publisher in self._topic_publishers.values() if publisher.topic_name in awaited]
        if not publishers:
            return
        waited = 0
        while not self._stop.wait(0.1):
            missing = [publisher.topic_name for publisher in publishers if not publisher.get_subscription_count()]
            if not missing:
                # Matched on this side; the subscriber still has to match, and would not hear what comes before.
                self._stop.wait(SETTLE_S)
                return
            waited += 1
            if waited % 50 == 0:
                self.logger.info(f"waiting for a subscriber of {', '.join(missing)}")

    def _play_once(self, bag: Bag) -> None:
        first_ns = bag.start_ns + int(self.config.start_offset_s * 1e9)
        started = time.monotonic()
        for message in bag.messages():
            publisher = self._topic_publishers.get(message.topic)
            if publisher is None:
                continue
            latched = bag.topics[message.topic].qos.transient_local
            if message.stamp_ns < first_ns:
                # Latched topics (static transforms) are said once, at the start of a drive; without them it is no use.
                if latched:
                    publisher.publish(message.data)
                continue
            if not self._wait_until(message.stamp_ns, first_ns, started):
                return
            publisher.publish(message.data)
            self._played += 1
            self._position_s = (message.stamp_ns - bag.start_ns) * 1e-9

    def _wait_until(self, stamp_ns: int, first_ns: int, started: float) -> bool:
        """Sleep until the message is due while the clock goes on; False when stopped meanwhile."""
        while not self._stop.is_set():
            now_ns = first_ns + int((time.monotonic() - started) * self.config.rate * 1e9)
            if self._clock_publisher is not None:
                self._clock_publisher.publish(Clock(clock=stamp_from_ns(min(now_ns, stamp_ns))))
            if now_ns >= stamp_ns:
                return True
            self._stop.wait(min(CLOCK_PERIOD_S, (stamp_ns - now_ns) * 1e-9 / self.config.rate))
        return False


def main() -> None:
    """Entry point of the executable ``replay``."""
    base.main(Replay, exit_on_failure=True)


if __name__ == "__main__":
    main()
