"""The parameters that every node with a student has."""

from __future__ import annotations

from dataclasses import dataclass

from vpr_kd_ros.backends import PRECISIONS
from vpr_kd_ros.parameters import parameter

TRANSPORTS = ("raw", "compressed")


@dataclass(frozen=True)
class StudentParameters:
    """The student, what runs it, and the cameras whose images it describes."""

    student: str = parameter("", "the student artefact, a .pt2 or .onnx file")
    device: str = parameter("cpu", "where the student runs: cpu, cuda, cuda:N, or auto: cuda where there is one")
    backend: str = parameter(
        "auto",
        "what runs the student: torch, onnxruntime, tensorrt, torch-tensorrt; several with commas between them: the "
        "first that runs; auto: the fastest, measured once",
    )
    precision: str = parameter("fp32", "fp32, or fp16 on a CUDA device", choices=PRECISIONS)
    threads: int = parameter(0, "CPU threads of the student; 0: the backend's own choice", low=0, high=256)
    cameras: tuple[str, ...] = parameter(
        (), "several cameras, each as NAME=TOPIC, the map of each is MAP/NAME; empty: one camera, on the topic 'image'"
    )
    image_transport: str = parameter("raw", "raw, or compressed for TOPIC/compressed", choices=TRANSPORTS)
