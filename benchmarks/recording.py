"""Whether the recorder keeps up with a robot: a camera and a LiDAR, and what of their messages comes into the bag.

    python benchmarks/recording.py
    python benchmarks/recording.py --seconds 60 --repeats 5 --out /mnt/ssd

A process publishes a raw camera and a LiDAR as their drivers do (best effort, `config/fastdds.xml`), ready-made
messages with new stamps; the recorder node runs in another. Printed are, by topic, the messages sent, written, dropped
by the recorder (the disk was too slow) and lost before it (the transport was), and of a core, how much the recorder,
the publisher and all other processes of the machine used: on a machine that is busy otherwise, repeat it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

# Run as a file, the checkout is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measuring import REPOSITORY, Row, cpu_seconds, finish, load, parser

CAMERA, LIDAR = "/camera/image_raw", "/lidar/points"
VARIANTS = 8
SECOND = 1_000_000_000


# --- the publisher's process -----------------------------------------------------------------------------------------


def image_message(rng: np.random.Generator, width: int, height: int) -> Any:
    """An image as compressible as a camera's: surfaces with a gradient, and noise of the sensor."""
    from vpr_kd_ros.conversions import image_to_message

    rows, columns = np.mgrid[0:height, 0:width]
    surface = 128 + 60 * np.sin(columns / 40 + rng.uniform(0, 6)) + 40 * np.cos(rows / 30 + rng.uniform(0, 6))
    noisy = surface[:, :, None] + rng.normal(0, 3, (height, width, 3))
    return image_to_message(noisy.clip(0, 255).astype(np.uint8), 0, "camera")


def cloud_message(rng: np.random.Generator, points: int) -> Any:
    """A turn of a LiDAR: x, y, z and intensity as float32, 16 bytes a point."""
    from vpr_kd_ros.conversions import cloud_to_message

    distance, azimuth = rng.gamma(4, 5, points), np.linspace(0, 2 * np.pi, points)
    xyz = np.stack([distance * np.cos(azimuth), distance * np.sin(azimuth), rng.normal(0, 2, points)], axis=1)
    intensity = rng.integers(0, 256, points)
    return cloud_to_message(xyz.astype(np.float32), intensity.astype(np.float32), 0, "lidar")


def publish(args: argparse.Namespace) -> None:
    """Publish for the seconds wanted once both topics are recorded; print what was sent as JSON."""
    import rclpy
    from rclpy.node import Node
    from rclpy.qos import qos_profile_sensor_data
    from rclpy.serialization import serialize_message
    from sensor_msgs.msg import Image, PointCloud2

    rng = np.random.default_rng(0)
    width, height = map(int, args.size.split("x"))
    rclpy.init(args=None)
    node = Node("robot")
    images = [image_message(rng, width, height) for _ in range(VARIANTS)]
    clouds = [cloud_message(rng, args.points) for _ in range(VARIANTS)]
    streams = []
    for kind, topic, hertz, made in (
        (Image, CAMERA, args.camera_hz, images),
        (PointCloud2, LIDAR, args.lidar_hz, clouds),
    ):
        messages = [bytearray(serialize_message(message)) for message in made]
        streams.append((node.create_publisher(kind, topic, qos_profile_sensor_data), 1.0 / hertz, messages))
    while not all(publisher.get_subscription_count() for publisher, _, _ in streams):
        time.sleep(0.05)
    time.sleep(1.0)
    print("ready", flush=True)
    start = time.monotonic()
    end = start + args.seconds
    due, sent, late_s = [start] * len(streams), [0] * len(streams), 0.0
    while min(due) < end:
        number = due.index(min(due))
        publisher, period, messages = streams[number]
        time.sleep(max(0.0, due[number] - time.monotonic()))
        late_s = max(late_s, time.monotonic() - due[number])
        message = messages[sent[number] % VARIANTS]
        struct.pack_into("<iI", message, 4, *divmod(time.time_ns(), SECOND))
        publisher.publish(bytes(message))
        sent[number] += 1
        due[number] += period
    result = {
        "sent": {publisher.topic_name: count for (publisher, _, _), count in zip(streams, sent, strict=True)},
        "bytes": {publisher.topic_name: len(messages[0]) for publisher, _, messages in streams},
        "seconds": time.monotonic() - start,
        "late_s": late_s,
    }
    print(json.dumps(result), flush=True)
    rclpy.try_shutdown()


# --- the measuring process -------------------------------------------------------------------------------------------


def _publisher_options(args: argparse.Namespace) -> list[str]:
    """The command line of the publisher's process."""
    names = ("seconds", "camera_hz", "size", "lidar_hz", "points")
    return ["--publish", *(f"--{name}={getattr(args, name)}" for name in names)]


def run_once(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Record for the seconds wanted; counts by topic, and cores used by whom."""
    bag = folder / "bag"
    environment = {
        **os.environ,
        "ROS_DOMAIN_ID": str(1 + os.getpid() % 100),
        "FASTRTPS_DEFAULT_PROFILES_FILE": str(REPOSITORY / "config" / "fastdds.xml"),
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
    }
    options = {"output": bag, "topics": f"[{CAMERA}, {LIDAR}]", "compress": str(args.compress).lower()}
    parameters = [part for name, value in options.items() for part in ("-p", f"{name}:={value}")]
    log = (folder / "recorder.log").open("wb")
    recorder = subprocess.Popen(
        [sys.executable, "-m", "vpr_kd_ros.nodes.recorder", "--ros-args", *parameters],
        env=environment,
        cwd=REPOSITORY,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    publisher = subprocess.Popen(
        [sys.executable, __file__, *_publisher_options(args)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert publisher.stdout is not None
    try:
        if publisher.stdout.readline().strip() != "ready":
            raise SystemExit(
                f"the publisher did not start; the recorder said:\n{(folder / 'recorder.log').read_text()}"
            )
        pids = (recorder.pid, publisher.pid, None)
        before = [cpu_seconds(pid) for pid in pids]
        result: dict[str, Any] = json.loads(publisher.stdout.readline())
        after = [cpu_seconds(recorder.pid), result_cpu(publisher, before[1]), cpu_seconds(None)]
        time.sleep(1.0)
        recorder.send_signal(signal.SIGINT)
        if recorder.wait(60) != 0:
            raise SystemExit(f"the recorder failed:\n{(folder / 'recorder.log').read_text()}")
    finally:
        for process in (recorder, publisher):
            process.kill()
            process.wait()
        log.close()
    used = [(new - old) / result["seconds"] for new, old in zip(after, before, strict=True)]
    result["cores"] = {"recorder": used[0], "publisher": used[1], "others": max(0.0, used[2] - used[0] - used[1])}
    information = yaml.safe_load((bag / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    result["written"] = {
        topic["topic_metadata"]["name"]: topic["message_count"] for topic in information["topics_with_message_count"]
    }
    custom = information["custom_data"] or {}
    result["dropped"] = {topic: int(custom.get(f"dropped {topic}", 0)) for topic in (CAMERA, LIDAR)}
    result["file_bytes"] = sum(file.stat().st_size for file in bag.glob("*.mcap"))
    return result


def result_cpu(process: subprocess.Popen[str], before: float) -> float:
    """CPU time of a process that may be gone."""
    try:
        return cpu_seconds(process.pid)
    except (FileNotFoundError, ProcessLookupError):
        return before


def row(result: dict[str, Any]) -> Row:
    """One line of the table: messages sent, written, dropped by the recorder and lost before it."""
    counts: Row = {}
    for name, topic in (("camera", CAMERA), ("lidar", LIDAR)):
        sent, written, dropped = (result[key].get(topic, 0) for key in ("sent", "written", "dropped"))
        counts |= {f"{name}_sent": sent, f"{name}_written": written, f"{name}_dropped": dropped}
        counts[f"{name}_lost"] = sent - written - dropped
    megabytes = sum(result["sent"][topic] * size for topic, size in result["bytes"].items()) / 1e6
    return {
        **counts,
        "missing": sum(result["sent"].values()) - sum(result["written"].get(topic, 0) for topic in (CAMERA, LIDAR)),
        "mb_per_s_in": round(megabytes / result["seconds"], 1),
        "mb_per_s_to_disk": round(result["file_bytes"] / 1e6 / result["seconds"], 1),
        **{f"{who}_cores": round(used, 2) for who, used in result["cores"].items()},
        "publisher_late_ms": round(1000 * result["late_s"]),
        "load": load(),
    }


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Measure, print the table and return its rows."""
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=20.0, help="of driving, each time")
    options.add_argument("--repeats", type=int, default=3, help="how many times")
    options.add_argument("--camera_hz", type=float, default=30.0, help="images per second")
    options.add_argument("--size", default="640x480", help="of the images, width x height; three bytes a pixel")
    options.add_argument("--lidar_hz", type=float, default=10.0, help="clouds per second")
    options.add_argument("--points", type=int, default=130_000, help="of a cloud, 16 bytes each")
    options.add_argument("--compress", action=argparse.BooleanOptionalAction, default=True, help="as the recorder does")
    options.add_argument("--out", type=Path, help="folder of the disk to record to; a temporary one there is removed")
    options.add_argument("--publish", action="store_true", help=argparse.SUPPRESS)
    args = options.parse_args(argv)
    if args.publish:
        publish(args)
        return []
    rows = []
    for _ in range(args.repeats):
        folder = Path(tempfile.mkdtemp(prefix="recording-", dir=args.out))
        try:
            rows.append(row(run_once(args, folder)))
        finally:
            shutil.rmtree(folder)
    return finish(args, "recording", rows)


if __name__ == "__main__":
    main()
