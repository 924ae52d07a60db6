"""Whether a localizer stays the same for half an hour: memory, threads and latency, minute by minute.

    python benchmarks/soak.py --student student.pt2 --map town_map
    python benchmarks/soak.py --student student.pt2 --map town_map --minutes 120 --json soak.json

A camera of 640x480 publishes the map's own pictures at 30 Hz over DDS; the localizer runs in a process of its own.
Printed are, by minute, the node's resident memory, threads and processor time, the images answered, the latency from an
image's stamp to its answer in the camera's process, and the machine's load. The last line says how memory moved from
the first to the last third, past a minute of warming up. On a machine that is busy otherwise, p99 is the machine's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Run as a file, the checkout is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.live_node import Camera, NodeUnderTest, pictures_of
from benchmarks.measuring import write_report

WIDTH, HEIGHT = 640, 480
WARM_UP = 30


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--student", type=Path, required=True, help="the student artefact")
    options.add_argument("--map", type=Path, required=True, help="a place map made with it")
    options.add_argument("--minutes", type=int, default=30, help="length (default: 30)")
    options.add_argument("--rate", type=float, default=30.0, help="images a second (default: 30)")
    options.add_argument("--mode", default="belief", help="the node's mode (default: belief)")
    options.add_argument("--domain", type=int, default=91, help="ROS domain that nobody else uses (default: 91)")
    options.add_argument("--json", type=Path, help="file for the rows")
    return options


def minute(node: NodeUnderTest, camera: Camera, seconds: float) -> dict[str, Any]:
    """Measure for a while."""
    sent, answered, poses, cpu = camera.sent, len(camera.answers), camera.poses, node.cpu_seconds()
    began = time.monotonic()
    while node.alive and time.monotonic() - began < seconds:
        time.sleep(min(1.0, max(0.0, began + seconds - time.monotonic())))
    if not node.alive:
        raise RuntimeError(f"the node ended:\n{node.output}")
    latencies = np.array(camera.answers[answered:]) * 1e3
    elapsed = time.monotonic() - began
    return {
        "rss_mb": round(node.resident_mb(), 1),
        "threads": node.threads(),
        "cpu_percent": round(100 * (node.cpu_seconds() - cpu) / elapsed, 1),
        "sent": camera.sent - sent,
        "answered": len(latencies),
        "accepted": camera.poses - poses,
        "latency_p50_ms": round(float(np.percentile(latencies, 50)), 2) if len(latencies) else None,
        "latency_p99_ms": round(float(np.percentile(latencies, 99)), 2) if len(latencies) else None,
        "load": round(os.getloadavg()[0], 2),
    }


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """How memory and threads moved, past the first minute."""
    kept = rows[1:] or rows
    third = max(1, len(kept) // 3)
    first, last = (statistics.median(row["rss_mb"] for row in part) for part in (kept[:third], kept[-third:]))
    threads = sorted({row["threads"] for row in kept})
    return f"memory {first:.1f} -> {last:.1f} MB ({last - first:+.1f}); threads {threads}"


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run and return the rows."""
    args = parser().parse_args(argv)
    images = pictures_of(args.map, 40, WIDTH, HEIGHT)
    parameters = {"student": args.student.resolve(), "map": args.map.resolve(), "mode": args.mode, "threads": 1}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        node = NodeUnderTest(["-m", "vpr_kd_ros.nodes.localizer"], parameters, args.domain, Path(folder) / "log")
        try:
            with Camera(images, args.rate, args.domain) as camera:
                camera.wait_for_answers(WARM_UP, node)
                for number in range(1, args.minutes + 1):
                    rows.append({"minute": number, **minute(node, camera, 60.0)})
                    print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
                    write_report(args.json, "soak", rows)
        finally:
            status = node.end()
    print(f"{summary(rows)}; exit status {status}", flush=True)
    return rows


if __name__ == "__main__":
    main()
