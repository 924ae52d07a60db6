"""What is wrong with the topics that are recorded, while it can still be mended; no ROS in here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from vpr_kd_ros.bag_topics import TopicQos
from vpr_kd_ros.nodes.statistics import Rate, Window

# Header stamps and arrivals go on at the same pace but for jitter; more than this is a clock that was set.
JUMP_S = 0.5
# Transport and exposure take less; more is a clock that is not synchronised.
MAX_AGE_S = 1.0
SILENT_S = 2.0


@dataclass(frozen=True)
class Publishers:
    """Who publishes a topic.

    Attributes:
        types: the message types they announce.
        profiles: what each of them offers.
    """

    types: tuple[str, ...]
    profiles: tuple[TopicQos, ...]

    @property
    def least(self) -> TopicQos:
        """What all of them offer at least: a subscription with it hears every one."""
        return TopicQos(
            reliable=all(profile.reliable for profile in self.profiles),
            transient_local=all(profile.transient_local for profile in self.profiles),
            # Each of them may latch a message.
            depth=max([10, len(self.profiles), *(profile.depth for profile in self.profiles)]),
        )

    def __str__(self) -> str:
        offers = sorted({qos_text(profile) for profile in self.profiles})
        return f"{len(self.profiles)} publisher(s): {'; '.join(offers) or 'none'}"


def qos_text(qos: TopicQos) -> str:
    """Such as "best effort, volatile"."""
    reliability = "reliable" if qos.reliable else "best effort"
    return f"{reliability}, {'transient local' if qos.transient_local else 'volatile'}"


class Stamps:
    """Whether the header stamps of a topic go on as the time of arrival does."""

    def __init__(self) -> None:
        self.back = 0
        self.forward = 0
        self.unset = 0
        self.largest_jump_s = 0.0
        self.age_s = Window()
        self._last: tuple[int, int] | None = None

    def add(self, stamp_ns: int, arrival_ns: int) -> None:
        """Take in one message."""
        if stamp_ns == 0:
            self.unset += 1
            return
        self.age_s.add((arrival_ns - stamp_ns) * 1e-9)
        last, self._last = self._last, (stamp_ns, arrival_ns)
        if last is None:
            return
        step_s = (stamp_ns - last[0]) * 1e-9
        # Between two messages as much time passes in the stamps as on arrival, also across a pause.
        jump_s = step_s - (arrival_ns - last[1]) * 1e-9
        if step_s < 0:
            self.back += 1
        elif jump_s > JUMP_S:
            self.forward += 1
        else:
            return
        self.largest_jump_s = max(self.largest_jump_s, abs(step_s if step_s < 0 else jump_s))

    def problems(self) -> Iterator[str]:
        """What is wrong, in words."""
        if self.unset:
            yield f"{self.unset} messages without a stamp (header.stamp is zero)"
        if self.back:
            yield f"its stamps jumped back {self.back} times, by up to {self.largest_jump_s:.3g} s"
        if self.forward:
            yield f"its stamps jumped forward {self.forward} times, by up to {self.largest_jump_s:.3g} s"
        age = self.age_s.percentile(50)
        if abs(age) > MAX_AGE_S:  # False for NaN
            yield (
                f"its stamps are {abs(age):.3g} s {'behind' if age > 0 else 'ahead of'} this machine's time; "
                "synchronise the clocks (chrony, PTP), or set use_sim_time where it is a simulation"
            )


class Losses:
    """Messages that a publisher numbered and that never came; known where there is one publisher."""

    def __init__(self) -> None:
        self.count = 0
        self._last: int | None = None

    def add(self, number: int | None, publishers: int) -> None:
        """Take in the number its publisher gave a message, None where the middleware has none."""
        if number is None or publishers != 1:
            self._last = None
            return
        if self._last is not None and number <= self._last:
            # A publisher that began again, or a second one that is not in the graph yet: their numbers say nothing.
            self._last = None
            return
        self.count += 0 if self._last is None else number - self._last - 1
        self._last = number


@dataclass
class TopicQuality:
    """How one topic comes in.

    Attributes:
        type_name: its message type.
        qos: what the subscription asks for.
        publishers: who was there when it was looked up last.
        since_s: since when it is subscribed, monotonic seconds.
    """

    type_name: str
    qos: TopicQos
    publishers: Publishers
    since_s: float = field(default_factory=time.monotonic)
    rate: Rate = field(default_factory=Rate)
    stamps: Stamps = field(default_factory=Stamps)
    losses: Losses = field(default_factory=Losses)

    def problems(self, now_s: float) -> Iterator[str]:
        """What is wrong, in words, without the topic's name."""
        if not self.publishers.profiles:
            yield "its publishers are gone"
        elif self.rate.count == 0 and now_s - self.since_s > SILENT_S:
            yield (
                f"no message although there are {self.publishers}; the subscription is {qos_text(self.qos)}. "
                "Is its driver running? Large messages need config/fastdds.xml in the driver's environment too "
                "(FASTRTPS_DEFAULT_PROFILES_FILE)"
            )
        elif self.rate.silent_s(now_s) > SILENT_S and self.rate.count and not self.qos.transient_local:
            yield f"silent for {self.rate.silent_s(now_s):.0f} s, of {self.publishers}"
        others = set(self.publishers.types) - {self.type_name}
        if others:
            yield f"recorded as {self.type_name}, but published as {', '.join(sorted(others))} too"
        if len({profile.transient_local for profile in self.publishers.profiles}) > 1:
            yield f"what was latched before may be missing, as not all latch ({self.publishers})"
        if self.losses.count:
            yield (
                f"{self.losses.count} messages lost before the recorder ({qos_text(self.qos)}); is the machine too "
                "busy, or config/fastdds.xml not in the driver's environment?"
            )
        yield from self.stamps.problems()

    def values(self) -> dict[str, Any]:
        """The numbers of the diagnostics, by what they are."""
        values: dict[str, Any] = {
            "messages": self.rate.count,
            "rate_hz": self.rate.hertz,
            "gaps": f"{self.rate.gaps}, longest {self.rate.longest_gap_s:.3f} s",
            "lost": self.losses.count,
            "publishers": f"{self.publishers}; subscribed {qos_text(self.qos)}",
        }
        if len(self.stamps.age_s):
            values["stamp_age_ms"] = 1e3 * self.stamps.age_s.percentile(50)
            values["stamp_jumps"] = f"{self.stamps.back} back, {self.stamps.forward} forward"
        return values


class MachineClock:
    """Whether the clock of this machine, by which messages are stamped on arrival, is set while it is recorded."""

    def __init__(self) -> None:
        self.jumps = 0
        self._offset_ns: int | None = None

    def check(self, wall_ns: int, monotonic_ns: int) -> float:
        """Seconds by which the clock was set since the last check, 0 where it was not; forward is positive."""
        offset_ns = wall_ns - monotonic_ns
        last, self._offset_ns = self._offset_ns, offset_ns
        jump_s = 0.0 if last is None else (offset_ns - last) * 1e-9
        if abs(jump_s) <= JUMP_S:
            return 0.0
        self.jumps += 1
        return jump_s
