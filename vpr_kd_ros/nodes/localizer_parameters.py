"""Parameters of the localizer."""

from __future__ import annotations

from dataclasses import dataclass

from vpr_kd_ros.choices import MODES, SEARCHES
from vpr_kd_ros.nodes.student_parameters import StudentParameters
from vpr_kd_ros.parameters import parameter


@dataclass(frozen=True)
class LocalizerParameters(StudentParameters):
    """Parameters of the localizer."""

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
    max_speed_mps: float = parameter(
        10.0, "mode belief, publish_tf: fastest the robot moves, metres per second", low=0.01
    )
    search: str = parameter(
        "auto",
        "exact; approximate: may miss a place; auto: exact up to 250 000 places",
        choices=SEARCHES,
    )
    verify_places: int = parameter(
        0,
        "compare an accepted image with the pictures of so many of its best places by local features; 0: do not",
        low=0,
        high=20,
    )
    candidates: int = parameter(10, "places looked up for each image", low=1, high=1000)
    cluster_radius_m: float = parameter(
        0.0, "candidates nearer to one another are one place, metres; 0: what the student was calibrated with", low=0.0
    )
    publish_tf: bool = parameter(
        False,
        "publish the transform from the map to the odometry's frame, renewed with each accepted match; needs tf2_ros",
    )
    max_rate_hz: float = parameter(
        0.0, "process at most so many images a second of each camera; 0: as many as it can", low=0.0
    )
    image_timeout_s: float = parameter(
        2.0, "warn when no image, or no odometry where it is used, came for this long, seconds", low=0.1
    )
