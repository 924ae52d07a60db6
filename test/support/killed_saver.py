"""Saves maps in children of its own that are killed with SIGKILL.

Run as a process, with the map's path as argument and commands on its standard input:

``line N``: the child saves a map of 6 places and is killed before the N-th line that writing executes.
``time MS``: the child saves maps of 5 and 6 places in turn and is killed after MS milliseconds.
Answers ``killed`` or ``done`` (the save ended before the N-th line).
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa

from vpr_kd_ros import map_files
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.place_map import PlaceMap


def make_map(places: int) -> PlaceMap:
    place_map = PlaceMap(4, "f" * 64, "map")
    for i in range(places):
        picture = np.full((20, 30, 3), places, dtype=np.uint8)
        place_map.add(np.eye(4, dtype=np.float32)[i % 4], Pose.planar(places, i, 0.0), i, "drive", picture)
    return place_map


def save_until_line(path: str, last: int) -> None:
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename != map_files.__file__ or frame.f_code.co_name not in (
            "write_map",
            "claim_map",
            "_replace",
            "_write_files",
        ):
            return None
        if event == "line":
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    place_map = make_map(6)
    sys.settrace(trace)
    place_map.save(path)
    sys.settrace(None)


def save_for_ever(path: str) -> None:
    maps = itertools.cycle([make_map(5), make_map(6)])
    while True:
        next(maps).save(path)


def main() -> None:
    path = sys.argv[1]
    pa.array(["imports pandas here, once, and not in each child"])
    print("ready", flush=True)
    for command in sys.stdin:
        kind, number = command.split()
        child = os.fork()
        if child == 0:
            if kind == "line":
                save_until_line(path, int(number))
            else:
                save_for_ever(path)
            os._exit(0)
        if kind == "time":
            time.sleep(float(number) / 1000)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print("killed" if os.WIFSIGNALED(status) else "done", flush=True)


if __name__ == "__main__":
    main()
