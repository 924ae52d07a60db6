"""How fast a bag becomes a session: camera 30 Hz, 640x480 raw, LiDAR 10 Hz, 130,000 points, odometry 50 Hz.

    python benchmarks/ingest.py
    python benchmarks/ingest.py --seconds 120 --speed 10 --folder /data/scratch

Records such bags with the package's own writer (chunked MCAP with CRCs, zstd or none) and ingests them in a fresh
process with the defaults of ``python -m training ingest``: first one, then all at once. Printed: how many times faster
than the drive, megabytes of messages a second, processor time, and the largest memory that a process held. On a machine
with other work read the processor time; the load before the run is printed beside it.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.typesys import Stores, get_typestore

# Run as a file, the checkout is not on the path, and `training` is not an installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measuring import REPOSITORY, Row, finish, load, parser
from vpr_kd_ros.recording import BagWriter, TypeDefinition

STORE = get_typestore(Stores.ROS2_JAZZY)
START_NS = 1_700_000_000_000_000_000
HEIGHT, WIDTH, POINTS = 480, 640, 130_000
RATES_HZ = {"/camera/image_raw": 30, "/lidar/points": 10, "/odom": 50}
POINT_BYTES = 22  # as Velodyne's driver packs x, y, z, intensity, ring, time
FIELDS = (("x", 0, 7), ("y", 4, 7), ("z", 8, 7), ("intensity", 12, 7), ("ring", 16, 4), ("time", 18, 7))


@dataclass(frozen=True)
class Measured:
    """Of one run: wall and processor seconds, and the largest resident memory of its processes, megabytes."""

    wall_s: float
    cpu_s: float
    peak_mb: float


def write_bag(path: Path, seconds: float, speed: float, compress: bool) -> int:
    """Record the drive; returns the size of its messages, bytes."""
    total = 0
    with BagWriter(path, compress=compress, wait_for_disk=True) as writer:
        for topic, stamp, kind, message in _messages(seconds, speed):
            data = bytes(STORE.serialize_cdr(message, kind))
            writer.declare_topic(topic, kind, definition=TypeDefinition(""))
            writer.write(topic, kind, stamp, data)
            total += len(data)
    return total


def run(arguments: list[str]) -> Measured:
    """Run ``python -m training ingest`` and wait for it."""
    command = [sys.executable, "-m", "training", "ingest", *arguments]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measured(wall, cpu, after.ru_maxrss / 1e3)


def _messages(seconds: float, speed: float) -> Iterator[tuple[str, int, str, Any]]:
    """Topic, stamp (ns), type and message, in the order of time."""
    rng = np.random.default_rng(0)
    texture = _texture(rng)
    cloud = _cloud(rng)
    ticks = sorted(
        (round(i * 1e9 / rate), topic) for topic, rate in RATES_HZ.items() for i in range(round(seconds * rate))
    )
    for number, (offset, topic) in enumerate(ticks):
        stamp = START_NS + offset
        if topic == "/odom":
            yield topic, stamp, "nav_msgs/msg/Odometry", _odometry(stamp, speed * offset / 1e9)
        elif topic == "/lidar/points":
            cloud.header = _header(stamp, "base_link")
            cloud.data = np.roll(cloud.data.reshape(-1, POINT_BYTES), 997, axis=0).ravel()
            yield topic, stamp, "sensor_msgs/msg/PointCloud2", cloud
        else:
            pixels = np.roll(texture, 3 * number, axis=1)
            yield topic, stamp, "sensor_msgs/msg/Image", _image(stamp, pixels)


def _texture(rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture as compressible as a camera's: smooth shapes and the noise of a sensor."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    shapes = [120 + 60 * np.sin(rows / a) * np.cos(columns / b) for a, b in ((31, 47), (53, 19), (17, 71))]
    return np.asarray(np.dstack(shapes) + rng.normal(0, 2, (HEIGHT, WIDTH, 3)), dtype=np.uint8)


def _cloud(rng: np.random.Generator) -> Any:
    """Rings on a ground plane and walls; a tenth of the beams do not come back."""
    angle = np.linspace(0, 2 * np.pi, POINTS // 64, endpoint=False)
    reach = np.clip(rng.gamma(4.0, 5.0, (64, len(angle))), 2, 100)
    elevation = np.deg2rad(np.linspace(-25, 15, 64))[:, None]
    x, y = reach * np.cos(elevation) * np.cos(angle), reach * np.cos(elevation) * np.sin(angle)
    names, formats = zip(*((name, {7: "<f4", 4: "<u2"}[kind]) for name, _, kind in FIELDS), strict=True)
    layout = np.dtype(
        {"names": names, "formats": formats, "offsets": [o for _, o, _ in FIELDS], "itemsize": POINT_BYTES}
    )
    points = np.zeros(POINTS, dtype=layout)
    used = x.size
    for name, values in (("x", x), ("y", y), ("z", reach * np.sin(elevation))):
        points[name][:used] = values.ravel()
    points["intensity"] = rng.integers(0, 256, POINTS)
    points["ring"][:used] = np.repeat(np.arange(64), len(angle))
    points["x"][rng.random(POINTS) < 0.1] = np.nan
    return STORE.types["sensor_msgs/msg/PointCloud2"](
        header=_header(0, "base_link"),
        height=1,
        width=POINTS,
        fields=[
            STORE.types["sensor_msgs/msg/PointField"](name=name, offset=offset, datatype=kind, count=1)
            for name, offset, kind in FIELDS
        ],
        is_bigendian=False,
        point_step=POINT_BYTES,
        row_step=POINT_BYTES * POINTS,
        data=points.view(np.uint8).ravel(),
        is_dense=False,
    )


def _header(stamp_ns: int, frame: str) -> Any:
    stamp = STORE.types["builtin_interfaces/msg/Time"](sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return STORE.types["std_msgs/msg/Header"](stamp=stamp, frame_id=frame)


def _image(stamp_ns: int, pixels: NDArray[np.uint8]) -> Any:
    return STORE.types["sensor_msgs/msg/Image"](
        header=_header(stamp_ns, "camera"),
        height=HEIGHT,
        width=WIDTH,
        encoding="rgb8",
        is_bigendian=0,
        step=WIDTH * 3,
        data=np.ascontiguousarray(pixels).ravel(),
    )


def _odometry(stamp_ns: int, x: float) -> Any:
    types, covariance = STORE.types, np.zeros(36)
    zero = types["geometry_msgs/msg/Vector3"](x=0.0, y=0.0, z=0.0)
    pose = types["geometry_msgs/msg/Pose"](
        position=types["geometry_msgs/msg/Point"](x=x, y=0.0, z=0.0),
        orientation=types["geometry_msgs/msg/Quaternion"](x=0.0, y=0.0, z=0.0, w=1.0),
    )
    twist = types["geometry_msgs/msg/Twist"](linear=zero, angular=zero)
    return types["nav_msgs/msg/Odometry"](
        header=_header(stamp_ns, "map"),
        child_frame_id="base_link",
        pose=types["geometry_msgs/msg/PoseWithCovariance"](pose=pose, covariance=covariance),
        twist=types["geometry_msgs/msg/TwistWithCovariance"](twist=twist, covariance=covariance),
    )


def measure(folder: Path, compression: str, seconds: float, speed: float, count: int) -> list[Row]:
    """The rows of one way of compressing: one bag, then all ``count`` at once."""
    bags = [folder / "bags" / f"drive{i}" for i in range(count)]
    size = 0
    for bag in bags:
        size = write_bag(bag, seconds, speed, compression == "zstd")
    stored = sum(file.stat().st_size for file in bags[0].iterdir())
    rows = []
    for chosen in (bags[:1], bags) if count > 1 else (bags,):
        busy = load()
        found = run([*map(str, chosen), "--out", str(folder / f"out{len(chosen)}"), "--region", "town"])
        driven, megabytes = seconds * len(chosen), size * len(chosen) / 1e6
        rows.append(
            {
                "compression": compression,
                "bags": len(chosen),
                "seconds_driven": driven,
                "messages_mb": round(megabytes),
                "stored_mb": round(stored * len(chosen) / 1e6),
                "times_real_time": round(driven / found.wall_s, 2),
                "mb_per_s": round(megabytes / found.wall_s, 1),
                "wall_s": round(found.wall_s, 1),
                "processor_s": round(found.cpu_s, 1),
                "peak_mb": round(found.peak_mb),
                "load": busy,
            }
        )
    return rows


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Measure, print the table and return its rows."""
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=60.0, help="length of the drive")
    options.add_argument("--speed", type=float, default=5.0, help="metres a second; a keyframe each metre")
    options.add_argument("--bags", type=int, default=2, help="bags of the second run; 1: no second run")
    options.add_argument("--compression", nargs="+", default=["zstd", "none"], choices=["zstd", "none"])
    options.add_argument("--folder", type=Path, default=None, help="where to work (default: the system's)")
    args = options.parse_args(argv)
    rows: list[Row] = []
    for compression in args.compression:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            rows += measure(Path(folder), compression, args.seconds, args.speed, args.bags)
    return finish(args, "ingest", rows)


if __name__ == "__main__":
    main()
