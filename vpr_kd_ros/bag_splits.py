"""The files of one bag that its recorder split, told from several bags that lie in one folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Protocol

LONGEST_PAUSE_NS = 60_000_000_000
"""A part begins with the next message; a recorder that runs only while the robot moves may wait for it."""
OVERLAP_NS = 1_000_000_000
"""Messages that were queued when a part was closed are in the next one."""
# ROS 1 puts the time at which a part was begun between the name and the number.
_PART = re.compile(r"(?P<stem>.*?)(?:_?\d{4}(?:-\d\d){5})?_(?P<number>\d+)")


class Recorded(Protocol):
    """A file with messages; times of the first and of the last, nanoseconds, None without a message."""

    @property
    def path(self) -> Path: ...
    @property
    def start_ns(self) -> int | None: ...
    @property
    def end_ns(self) -> int | None: ...


def numbered(paths: Sequence[Path]) -> bool:
    """Whether the files are named as the parts of one bag: ``drive_0.mcap``, ``drive_1.mcap``, ..."""
    parts = [_PART.fullmatch(path.stem) for path in paths]
    series = {(part["stem"], path.suffix) for part, path in zip(parts, paths, strict=True) if part is not None}
    return all(parts) and len(series) == 1


def follow_on(files: Sequence[Recorded]) -> bool:
    """Whether each of the files, in the order of their numbers, begins where the one before it ends."""
    spans = [(file.start_ns, file.end_ns) for file in files]
    known = [(start, end) for start, end in spans if start is not None and end is not None]
    return all(-OVERLAP_NS <= later[0] - earlier[1] <= LONGEST_PAUSE_NS for earlier, later in pairwise(known))
