"""Prepares this machine for a student: builds the TensorRT engine, or measures what is fastest, before a node needs it.

    build_engine student.pt2 --device cuda --precision fp16
    build_engine student.onnx --device cuda --precision fp16 --backend tensorrt
    build_engine student.pt2

A node does the same when it starts, which takes minutes with TensorRT the first time. Give the backend, device,
precision and threads that the node will have: what is kept in the cache is kept for these. Where ROS 2 is not sourced:
``python -m vpr_kd_ros.build_engine``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vpr_kd_ros.backends import PRECISIONS
from vpr_kd_ros.backends.cache import cache_folder
from vpr_kd_ros.command_line import run_command
from vpr_kd_ros.student import Student


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="build_engine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("student", type=Path, help="the artefact, .pt2 or .onnx")
    result.add_argument(
        "--backend",
        default="auto",
        help="torch, onnxruntime, tensorrt, torch-tensorrt; several with commas between them; auto (default)",
    )
    result.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (default): cuda where there is one")
    result.add_argument("--precision", choices=PRECISIONS, default="fp32", help="default: fp32")
    result.add_argument("--threads", type=int, default=0, help="CPU threads; 0 (default): the backend's own choice")
    return result


def run(args: argparse.Namespace) -> str:
    """Load the student as a node would, describe an image, and return what there is to tell.

    Raises:
        VprError: the student or an option is wrong, or what was asked for does not run here.
    """
    student = Student.load(
        args.student,
        device=args.device,
        threads=args.threads or None,
        backend=args.backend,
        precision=args.precision,
        notice=lambda text: print(text, flush=True),
    )
    size = student.metadata.preprocess
    student.describe([np.zeros((size.height, size.width, 3), dtype=np.uint8)])
    return f"{args.student}: {student.metadata.name}, ready with {student.runtime}; cache {cache_folder()}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the executable ``build_engine``."""
    return run_command(parser(), run, arguments)


if __name__ == "__main__":
    sys.exit(main())
