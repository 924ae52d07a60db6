"""Parameters of the replay."""

from __future__ import annotations

from dataclasses import dataclass

from vpr_kd_ros.parameters import parameter


@dataclass(frozen=True)
class ReplayParameters:
    """Parameters of the replay."""

    bag: str = parameter("", "the bag: a rosbag2 folder or an .mcap file")
    rate: float = parameter(1.0, "how many times faster than it was recorded", low=0.01, high=1000.0)
    start_offset_s: float = parameter(0.0, "leave out this many seconds at the start", low=0.0)
    loop: bool = parameter(False, "start again at the end; the clock jumps back then")
    clock: bool = parameter(True, "publish /clock, for nodes with use_sim_time")
    topics: tuple[str, ...] = parameter((), "topics to play, each NAME or NAME:=OTHER_NAME; empty: all of the bag")
    wait_for_subscribers: tuple[str, ...] = parameter((), "topics that must have a subscriber before it starts")
