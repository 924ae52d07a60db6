"""Parameters of the recorder."""

from __future__ import annotations

from dataclasses import dataclass

from vpr_kd_ros.parameters import parameter


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
    max_file_mb: int = parameter(0, "begin another file of the bag when one has about this size, MB; 0: never", low=0)
    max_file_s: float = parameter(0.0, "begin another file of the bag after this many seconds; 0: never", low=0.0)
    max_queue_mb: int = parameter(256, "messages waiting for the disk, MB; beyond it they are dropped", low=1)
    chunk_mb: int = parameter(1, "size of the bag's chunks, MB; they are closed every second in any case", low=1)
    compress: bool = parameter(True, "compress the chunks with zstd")
    min_free_mb: int = parameter(500, "stop and exit when the disk has less than this left, MB", low=0)
    gate_distance_m: float = parameter(
        0.0, "record only while the robot moves by this much, metres, or turns by 15 degrees; 0: always", low=0.0
    )
    gate_topic: str = parameter("odom", "Odometry or pose that tells whether the robot moves")
    gate_standing_s: float = parameter(5.0, "the robot stands when it has not moved for this long, seconds", low=0.1)
    gate_buffer_s: float = parameter(1.0, "recorded from before it moved again, seconds", low=0.0)
