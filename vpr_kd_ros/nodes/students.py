"""The parameters that every node with a student has, and loading it as they say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vpr_kd_ros.backends import PRECISIONS
from vpr_kd_ros.nodes.base import VprNode
from vpr_kd_ros.parameters import parameter
from vpr_kd_ros.student import Student


@dataclass(frozen=True)
class StudentParameters:
    """The student and what runs it."""

    student: str = parameter("", "the student artefact, a .pt2 or .onnx file")
    device: str = parameter("cpu", "where the student runs: cpu, cuda, cuda:N, or auto: cuda where there is one")
    backend: str = parameter(
        "auto",
        "what runs the student: torch, onnxruntime, tensorrt, torch-tensorrt; several with commas between them: the "
        "first that runs; auto: the fastest, measured once",
    )
    precision: str = parameter("fp32", "fp32, or fp16 on a CUDA device", choices=PRECISIONS)
    threads: int = parameter(0, "CPU threads of the student; 0: the backend's own choice", low=0, high=256)


def load_student(node: VprNode[StudentParameters]) -> Student:
    """The student of a node that is being configured; its log tells what runs it and why.

    Raises:
        VprError: see ``Student.load``.
    """
    config = node.config
    return Student.load(
        Path(config.student).expanduser(),
        device=config.device,
        threads=config.threads or None,
        backend=config.backend,
        precision=config.precision,
        notice=node.logger.info,
    )
