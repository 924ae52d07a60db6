"""Stamps of the messages of one topic."""

from __future__ import annotations

from array import array

from training.ingest.bag import Bag
from vpr_kd_ros.errors import DataError


class Stamps:
    """Stamps of one topic; a message without a stamp or without a header has the time of its recording.

    Attributes:
        values: nanoseconds, in the order of the bag.
    """

    def __init__(self) -> None:
        self.values = array("q")
        self._unstamped = 0
        self._backwards = 0

    def add(self, bag: Bag, topic: str, log_time: int, data: bytes) -> None:
        """Take the stamp of one message."""
        stamp = _header_stamp(bag, topic, data)
        if stamp is None:
            self._unstamped += 1
            stamp = log_time
        if self.values and stamp < self.values[-1]:
            self._backwards += 1
        self.values.append(stamp)

    def notices(self, topic: str) -> list[str]:
        """What the owner should know of them."""
        lines = []
        if self._unstamped:
            lines.append(f"{topic}: {self._unstamped} messages have no stamp; their time of recording is taken")
        if self._backwards:
            lines.append(f"{topic}: stamps go backwards {self._backwards} times; sorted")
        return lines


def _header_stamp(bag: Bag, topic: str, data: bytes) -> int | None:
    try:
        return bag.stamp_ns(topic, data) or None
    except DataError:
        return None
