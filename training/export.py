"""From a trained run to the artefact that the robot loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from training.calibration import calibrate
from training.data.dataset import Keyframes
from training.engine.config import TrainConfig, to_dict
from training.engine.descriptors import describe, fastest_device, preprocess_of, split_by_session
from training.engine.runs import load_run, trained_on
from training.models import EmbeddingModel
from training.onnx_model import to_onnx
from training.parity import Reference, compare, require_parity, students
from training.sessions import Session
from vpr_kd_ros import __version__
from vpr_kd_ros.backends import PRECISIONS
from vpr_kd_ros.backends.cache import Notice
from vpr_kd_ros.backends.choice import log_notice
from vpr_kd_ros.errors import ConfigError, DataError
from vpr_kd_ros.preprocess import Preprocess
from vpr_kd_ros.student_file import StudentFile, save_onnx, save_student
from vpr_kd_ros.student_metadata import StudentMetadata


@dataclass(frozen=True)
class Exported:
    """What an export came to.

    Attributes:
        metadata: as stored in the artefact, with the parity of every runtime.
        files: the artefact and, by itself, the ONNX model in it.
        recall_at_1: of the checkpoint, on the queries that the parity was measured on; in [0, 1].
        queries: how many those were.
    """

    metadata: StudentMetadata
    files: tuple[Path, Path]
    recall_at_1: float
    queries: int


class _CameraOnly(nn.Module):
    """A student as a function of one tensor, which is what the robot calls."""

    def __init__(self, model: EmbeddingModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        descriptors: torch.Tensor = self.model(images, None)
        return descriptors


def export_student(
    run: Path,
    out: Path,
    sessions: Sequence[Session],
    compare_images: int = 1000,
    precisions: Sequence[str] = PRECISIONS,
    notice: Notice = log_notice,
) -> Exported:
    """Export a run's student, calibrated on held-out sessions and compared with its checkpoint in every runtime.

    Args:
        run: folder of a finished run of a camera-only model.
        out: the ``.pt2`` file to write; its ONNX model is written beside it, as ``.onnx``.
        sessions: labelled, not trained on, at least two of one region: for calibration and parity.
        compare_images: images, at most about, that every runtime describes.
        precisions: that the student must hold.
        notice: told which runtimes could not be compared here.

    Raises:
        DataError: the model reads more than one camera image, the sessions were trained on or do not allow a
            calibration, or a runtime's descriptors differ from the checkpoint's; then no file is left behind.
    """
    if out.suffix != ".pt2":
        raise ConfigError(f"--out: {out} must end in .pt2")
    model, config = load_run(run)
    _require_camera_only(run, model, config)
    if known := sorted(trained_on(run) & {session.name for session in sessions}):
        raise DataError(
            f"--sessions: {', '.join(known)}: {run} was trained on them, and its answers there are surer than on the "
            "robot; give sessions that it has not seen"
        )
    preprocess = preprocess_of(config)
    keyframes = Keyframes(sessions, preprocess)
    device = fastest_device()
    rows = split_by_session(keyframes, describe(model.to(device), keyframes, preprocess, device))
    model.cpu()
    program = camera_program(model, preprocess)
    onnx = to_onnx(program)
    metadata = StudentMetadata(
        name=run.resolve().name,
        method=config.method.name,
        descriptor_dim=model.descriptor_dim,
        preprocess=preprocess,
        training_run={"config": to_dict(config), "vpr_kd_ros": __version__, "torch": torch.__version__},
        calibration=calibrate(sessions, rows),
    )
    reference = Reference.of(sessions, rows, config.radius_m, compare_images)
    recall, queries = reference.recall_at_1([r[a] for r, a in zip(reference.rows, reference.asked, strict=True)])
    draft = out.with_name(f".{out.stem}.draft.pt2")
    files = (out, out.with_suffix(".onnx"))
    try:
        save_student(draft, program, metadata, onnx)
        parity = [
            compare(reference, precision, student)
            for precision, student in students(StudentFile.open(draft), precisions, notice)
        ]
        require_parity(parity, queries)
        metadata = save_student(draft, program, replace(metadata, parity=tuple(parity)), onnx)
        save_onnx(files[1], StudentFile.open(draft))
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
    return Exported(metadata, files, recall, queries)


def camera_program(model: EmbeddingModel, preprocess: Preprocess) -> ExportedProgram:
    """A camera-only model as a program from images (B, 3, height, width) float32, dynamic B, to descriptors (B, C)."""
    # Two images, for the exporter takes a batch of one for a constant.
    example = torch.zeros(2, 3, preprocess.height, preprocess.width)
    return torch.export.export(
        _CameraOnly(model).eval(), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
    )


def _require_camera_only(run: Path, model: EmbeddingModel, config: TrainConfig) -> None:
    if model.uses_clouds:
        raise DataError(f"{run}: its model {config.model.name!r} reads LiDAR clouds; the robot has only a camera")
    if model.uses_labels:
        raise DataError(f"{run}: its model {config.model.name!r} reads semantic labels; the robot has only a camera")
    if model.depends_on_batch:
        raise DataError(
            f"{run}: a descriptor of its model {config.model.name!r} depends on the other images of the batch; the "
            "robot has one image at a time"
        )
