"""Artefacts with an ONNX model inside, of the tiny network, for tests of runtimes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from support.tiny import TINY_DIM, TINY_PREPROCESS, TinyNet, export_tiny
from training.onnx_model import to_onnx
from vpr_kd_ros.calibration import Calibration
from vpr_kd_ros.student_file import StudentFile, save_onnx, save_student
from vpr_kd_ros.student_metadata import Parity, StudentMetadata

CALIBRATION = Calibration(-3.0, 5.5, 0.25, 12.0, 80, 20)
PARITY = (Parity("onnxruntime on cpu", "fp32", 0.9999998, 0.5, 0.0, 40),)


def save_both(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """``tiny.pt2`` with an ONNX model in it, and ``tiny.onnx``, that model by itself; with calibration and parity."""
    program = export_tiny(TinyNet(seed))
    metadata = StudentMetadata("tiny", "none", TINY_DIM, TINY_PREPROCESS, {"seed": seed}, CALIBRATION)
    archive, model = folder / "tiny.pt2", folder / "tiny.onnx"
    save_student(archive, program, replace(metadata, parity=PARITY), to_onnx(program))
    save_onnx(model, StudentFile.open(archive))
    return archive, model
