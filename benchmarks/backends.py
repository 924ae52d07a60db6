"""One image through a student: eager torch against the runtimes that a robot may use.

    python benchmarks/backends.py
    python benchmarks/backends.py --models mobilenetv2-gem --sizes 480x640 --threads 2 --repeats 30 --json backends.json
    python benchmarks/backends.py --device cuda

Random weights, batch 1, the network alone: resizing and normalising are not in it. Runs are interleaved, so that a busy
machine slows all alike: read the ratio, which is of medians, to eager torch. Before each the machine rests, as between
two images of a camera. On a CUDA device a run ends when its descriptor is on the CPU; fp16, compiled torch and
TensorRT, where it is installed, are measured there as well.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

# Run as a file, the checkout is not on the path, and `training` is not an installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measuring import write_report
from training.export import camera_program
from training.models import build_model
from training.onnx_model import to_onnx
from vpr_kd_ros.backends.choice import Runtime
from vpr_kd_ros.errors import VprError
from vpr_kd_ros.preprocess import Preprocess
from vpr_kd_ros.student_file import StudentFile, save_student
from vpr_kd_ros.student_metadata import StudentMetadata

MODELS: dict[str, dict[str, Any]] = {
    "mobilenetv2-gem": {"descriptor_dim": 256},
    "resnet18-gem": {"descriptor_dim": 256},
    "small-resnet-gem": {"descriptor_dim": 128},
}
SIZES = ["96x128", "224x224", "240x320", "480x640"]
SMALL = "96x128"
"""The simulated town's images; the other models are not made for them, nor is small-resnet-gem for larger ones."""
WARM = 3
REST_S = 0.02
"""Torch's threads spin for some milliseconds after a run, and would slow the next runtime's."""

Run = Callable[[torch.Tensor], torch.Tensor]


def runs_on_cpu(model: torch.nn.Module, file: StudentFile, threads: int) -> dict[str, Run]:
    """Eager torch, the exported program and ONNX Runtime."""
    device = torch.device("cpu")
    return {
        "eager": lambda batch: model(batch, None),
        **{
            label: Runtime(name, device, "fp32").open(file, threads, print).describe
            for label, name in (("exported", "torch"), ("onnxruntime", "onnxruntime"))
        },
    }


def runs_on_gpu(model: torch.nn.Module, file: StudentFile, device: torch.device) -> dict[str, Run]:
    """Eager and compiled torch, the exported program, and TensorRT by both roads where it runs, in fp32 and fp16."""
    model = model.to(device)
    compiled = torch.compile(model, mode="reduce-overhead")

    def half(network: Callable[..., torch.Tensor]) -> Run:
        def run(batch: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cuda", torch.float16):
                return network(batch, None)

        return run

    runs: dict[str, Run] = {
        "eager": lambda batch: model(batch, None),
        "eager fp16": half(model),
        "compiled": lambda batch: compiled(batch, None),
        "compiled fp16": half(compiled),
    }
    for precision in ("fp32", "fp16"):
        for name in ("torch", "tensorrt", "torch-tensorrt"):
            label = f"{'exported' if name == 'torch' else name} {precision}"
            try:
                runs[label] = Runtime(name, device, precision).open(file, None, print).describe
            except VprError as error:
                print(f"{label}: not measured: {error}")
    return runs


def measure(runs: dict[str, Run], batch: torch.Tensor, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each run, in turns, sorted."""
    taken: dict[str, list[float]] = {label: [] for label in runs}
    with torch.inference_mode():
        for repeat in range(WARM + repeats):
            for label, run in runs.items():
                time.sleep(REST_S)
                start = time.perf_counter()
                run(batch).cpu()
                if repeat >= WARM:
                    taken[label].append(1e3 * (time.perf_counter() - start))
    return {label: sorted(times) for label, times in taken.items()}


def artefact(name: str, model: torch.nn.Module, height: int, width: int, folder: Path) -> StudentFile:
    """The model as an artefact with random weights."""
    preprocess = Preprocess(height, width)
    program = camera_program(model, preprocess)  # type: ignore[arg-type]
    path = folder / f"{name}-{height}x{width}.pt2"
    metadata = StudentMetadata(name, "none", MODELS[name]["descriptor_dim"], preprocess)
    save_student(path, program, metadata, to_onnx(program))
    return StudentFile.open(path)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Print the table and return its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="height x width")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="CPU threads")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    device = torch.device(args.device)
    rows: list[dict[str, Any]] = []
    print("| model | size | threads | runtime | median ms | min | max | times as fast as eager |")
    print("|---|---|---|---|---|---|---|---|")
    for name in args.models:
        for size in args.sizes:
            if (size == SMALL) != (name == "small-resnet-gem"):
                continue
            height, width = map(int, size.split("x"))
            torch.manual_seed(0)
            model = build_model(name, MODELS[name]).eval()
            with tempfile.TemporaryDirectory() as folder:
                file = artefact(name, model, height, width, Path(folder))
                for threads in args.threads if device.type == "cpu" else [1]:
                    torch.set_num_threads(threads)
                    on_cpu = device.type == "cpu"
                    runs = runs_on_cpu(model, file, threads) if on_cpu else runs_on_gpu(model, file, device)
                    times = measure(runs, torch.randn(1, 3, height, width, device=device), args.repeats)
                    rows += report(name, size, threads, times)
    write_report(args.json, "backends", rows)
    return rows


def report(name: str, size: str, threads: int, times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Print one line for each runtime and return what is in it."""
    rows = []
    eager = statistics.median(times["eager"])
    for runtime, taken in times.items():
        median = statistics.median(taken)
        values = [name, size, threads, runtime, round(median, 2), round(taken[0], 2), round(taken[-1], 2)]
        keys = ("model", "size", "threads", "runtime", "median_ms", "min_ms", "max_ms")
        rows.append({**dict(zip(keys, values, strict=True)), "speedup": round(eager / median, 2)})
        print("|", " | ".join(map(str, rows[-1].values())), "|", flush=True)
    return rows


if __name__ == "__main__":
    main()
