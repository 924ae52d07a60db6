"""What of a frame's time the localizer node spends outside the network: transport, decoding, resizing, search, answer.

    python benchmarks/node_share.py
    python benchmarks/node_share.py --students mobilenetv2-gem --seconds 60 --rate 10 --backend torch

A camera of 640x480 publishes over DDS; the node runs a student of 240x320 (random weights), with a map of 5000 places,
in a process of its own, where every run of the network is timed: DistilVPR's student, which
``config/training/distilvpr.yaml`` trains, then the lightest, of which any share is the largest. Each drives twice.

On one thread, the processor's time: ``node_ms`` is that of the whole process per processed frame (all its threads, DDS
and deserialisation included), ``network_ms`` what of it the network took, ``own_ms`` the rest, and ``share`` the rest
over the whole. It does not count waiting for a busy machine; frames that were received and replaced by newer ones count
as the node's own. Then as the node runs by itself, on the machine's cores: ``age`` is how old an image is when its
answer arrives at the camera's process; allowed is a period of the camera and a run of the student.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Run as a file, the checkout is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.live_node import Camera, NodeUnderTest
from benchmarks.measuring import write_report

STUDENTS = ("minkloc++2d", "mobilenetv2-gem")
PLACES, DIM = 5000, 256
TIMES = "NODE_SHARE_TIMES"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--students", nargs="+", default=STUDENTS, help=f"models (default: {' '.join(STUDENTS)})")
    options.add_argument("--seconds", type=float, default=30.0, help="length of each drive (default: 30)")
    options.add_argument("--rate", type=float, default=30.0, help="images a second (default: 30)")
    options.add_argument("--size", type=int, nargs=2, default=(240, 320), help="network input (default: 240 320)")
    options.add_argument("--backend", default="auto", help="parameter of the node (default: auto)")
    options.add_argument("--domain", type=int, default=92, help="ROS domain that nobody else uses (default: 92)")
    options.add_argument("--json", type=Path, help="file for the rows")
    return options


def make_student(path: Path, model: str, height: int, width: int) -> str:
    """The artefact of a model with random weights; returns its fingerprint."""
    import torch

    from training.export import camera_program
    from training.models import build_model
    from training.onnx_model import to_onnx
    from vpr_kd_ros.preprocess import Preprocess
    from vpr_kd_ros.student import StudentMetadata, save_student

    torch.manual_seed(0)
    preprocess = Preprocess(height, width)
    program = camera_program(build_model(model, {"descriptor_dim": DIM}).eval(), preprocess)
    metadata = StudentMetadata(model, "none", DIM, preprocess)
    return save_student(path, program, metadata, to_onnx(program)).fingerprint


def make_map(path: Path, fingerprint: str) -> None:
    """A map of random descriptors on a line."""
    from vpr_kd_ros.geometry import Pose
    from vpr_kd_ros.map_files import MapContent, Place, write_map

    rows = np.random.default_rng(0).standard_normal((PLACES, DIM))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    places = [Place(Pose.planar(2.0 * i, 0.0, 0.0), i, "drive", None) for i in range(PLACES)]
    write_map(path, MapContent(fingerprint, "map", PLACES, np.arange(PLACES), rows.astype(np.float16), places))


def run_node() -> None:
    """The node's process: the localizer, with a clock around its network; every second it writes what it took."""
    from vpr_kd_ros.nodes import base, localizer
    from vpr_kd_ros.student import Student

    spent: list[float] = []
    load = Student.load

    def load_with_clock(*args: Any, **kwargs: Any) -> Student:
        student = load(*args, **kwargs)
        network = student._backend.describe

        def describe(batch: Any) -> Any:
            began = time.thread_time()
            rows = network(batch)
            spent.append((time.thread_time() - began) * 1e3)
            return rows

        student._backend.describe = describe  # type: ignore[method-assign]
        return student

    class Timed(localizer.LocalizerNode):
        def diagnose(self) -> tuple[bytes, str, dict[str, Any]]:
            steps = {step: window.percentile(50) * 1e3 for step, window in dict(self._tally.steps).items()}
            received = sum(rate.count for rate in self._tally.received.values())
            values = {"network": list(spent), "steps": steps, "received": received}
            path = Path(os.environ[TIMES])
            path.with_suffix(".new").write_text(json.dumps(values))
            path.with_suffix(".new").replace(path)
            return super().diagnose()

    Student.load = load_with_clock  # type: ignore[method-assign]
    base.main(Timed)


@dataclass(frozen=True)
class Drive:
    """What was seen of the node while the camera published.

    Attributes:
        network_ms: of each run of the network, its thread's processor time.
        cpu_seconds: processor time of the node's process.
        received: images that reached it.
        ages_ms: of each answered image, from its stamp to the answer's arrival.
        steps_ms: median time on the clock of each step of a frame.
        runtime: what the student runs with, in the node's words.
        load: of the machine, as it began.
    """

    network_ms: list[float]
    cpu_seconds: float
    received: int
    ages_ms: np.ndarray
    steps_ms: dict[str, float]
    runtime: str
    load: float


def drive(args: argparse.Namespace, folder: Path, threads: int) -> Drive:
    """Run node and camera for ``args.seconds``; ``threads`` is the node's parameter."""
    os.environ[TIMES] = str(folder / "times.json")
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (480, 640, 3), dtype=np.uint8) for _ in range(10)]
    parameters = {"student": folder / "student.pt2", "map": folder / "map", "min_similarity": 0.5, "threads": threads}
    parameters |= {"backend": args.backend}
    node = NodeUnderTest([__file__, "--node"], parameters, args.domain, folder / f"log-{threads}")

    def now() -> dict[str, Any]:
        stamp = Path(os.environ[TIMES]).stat().st_mtime_ns
        while Path(os.environ[TIMES]).stat().st_mtime_ns == stamp:
            time.sleep(0.001)
        return {"cpu": node.cpu_seconds(), **json.loads(Path(os.environ[TIMES]).read_text())}

    try:
        with Camera(images, args.rate, args.domain) as camera:
            camera.wait_for_answers(30, node)
            before, load = now(), os.getloadavg()[0]
            time.sleep(args.seconds)
            after = now()
            ages = np.array(camera.answers[30:]) * 1e3
    finally:
        node.end()
    runtime = next((line for line in node.output.splitlines() if "runs with" in line), "").split("runs with ")[-1]
    return Drive(
        after["network"][len(before["network"]) :],
        after["cpu"] - before["cpu"],
        after["received"] - before["received"],
        ages,
        after["steps"],
        runtime,
        load,
    )


def measure(args: argparse.Namespace, model: str, folder: Path) -> dict[str, Any]:
    """The row of a student."""
    height, width = args.size
    make_map(folder / "map", make_student(folder / "student.pt2", model, height, width))
    alone = drive(args, folder, threads=1)
    network_ms = float(np.mean(alone.network_ms))
    per_frame = alone.cpu_seconds * 1e3 / len(alone.network_ms)
    live = drive(args, folder, threads=0)
    return {
        "student": f"{model} {height}x{width}",
        "runtime": alone.runtime,
        "processed": f"{len(alone.network_ms)} of {alone.received}",
        "node_ms": round(per_frame, 2),
        "network_ms": round(network_ms, 2),
        "own_ms": round(per_frame - network_ms, 2),
        "share": round(1 - network_ms / per_frame, 3),
        "wall_p50_ms": {step: round(value, 2) for step, value in alone.steps_ms.items()},
        "live_processed": f"{len(live.network_ms)} of {live.received}",
        "live_describe_ms": round(live.steps_ms["describe"], 1),
        "age_p50_ms": round(float(np.percentile(live.ages_ms, 50)), 1),
        "age_p99_ms": round(float(np.percentile(live.ages_ms, 99)), 1),
        "age_allowed_ms": round(1e3 / args.rate + live.steps_ms["describe"], 1),
        "load": round(max(alone.load, live.load), 1),
    }


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run and return the rows."""
    args = parser().parse_args(argv)
    rows = []
    for model in args.students:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(args, model, Path(folder)))
        print("\n".join(f"{key}: {value}" for key, value in rows[-1].items()), end="\n\n")
    write_report(args.json, "node_share", rows)
    return rows


if __name__ == "__main__":
    if sys.argv[1:2] == ["--node"]:
        del sys.argv[1]
        run_node()
    main()
