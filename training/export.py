"""From a trained run to the artefact that the robot loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from training.calibration import calibrate
from training.data.dataset import Keyframes
from training.engine.config import to_dict
from training.engine.descriptors import describe, preprocess_of, split_by_session
from training.engine.runs import load_run
from training.evaluation.protocol import normalised
from training.models import EmbeddingModel
from training.sessions import Session
from vpr_kd_ros import __version__
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.student import Student, StudentMetadata, save_student

PARITY = 0.9999
"""Least cosine between the checkpoint's and the artefact's descriptor of the same image."""


@dataclass(frozen=True)
class Exported:
    """What an export came to.

    Attributes:
        metadata: as stored in the artefact.
        parity: least cosine between checkpoint and artefact over the images compared.
        images: how many were compared.
    """

    metadata: StudentMetadata
    parity: float
    images: int


class _CameraOnly(nn.Module):
    """A student as a function of one tensor, which is what the robot calls."""

    def __init__(self, model: EmbeddingModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        descriptors: torch.Tensor = self.model(images, None)
        return descriptors


def export_student(run: Path, out: Path, sessions: Sequence[Session], compare: int = 64) -> Exported:
    """Export a run's student, calibrated on held-out sessions and checked against its checkpoint.

    Args:
        run: folder of a finished run of a camera-only model.
        out: the ``.pt2`` file to write.
        sessions: labelled, not trained on, at least two of one region: for the calibration.
        compare: images on which checkpoint and artefact are compared.

    Raises:
        DataError: the model reads more than one camera image, the sessions do not allow a calibration, or the
            artefact's descriptors differ from the checkpoint's; then no file is left behind.
    """
    model, config = load_run(run)
    if model.uses_clouds:
        raise DataError(f"{run}: its model {config.model.name!r} reads LiDAR clouds; the robot has only a camera")
    if model.uses_labels:
        raise DataError(f"{run}: its model {config.model.name!r} reads semantic labels; the robot has only a camera")
    if model.depends_on_batch:
        raise DataError(
            f"{run}: a descriptor of its model {config.model.name!r} depends on the other images of the batch; the "
            "robot has one image at a time"
        )
    preprocess = preprocess_of(config)
    keyframes = Keyframes(sessions, preprocess)
    rows = describe(model, keyframes, preprocess)
    calibration = calibrate(sessions, split_by_session(keyframes, rows))
    example = torch.zeros(2, 3, preprocess.height, preprocess.width)
    program = torch.export.export(
        _CameraOnly(model), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
    )
    metadata = StudentMetadata(
        name=run.resolve().name,
        method=config.method.name,
        descriptor_dim=model.descriptor_dim,
        preprocess=preprocess,
        training_run={"config": to_dict(config), "vpr_kd_ros": __version__, "torch": torch.__version__},
        calibration=calibration,
    )
    draft = out.with_name(f".{out.stem}.draft.pt2")
    try:
        metadata = save_student(draft, program, metadata)
        chosen = np.linspace(0, len(keyframes) - 1, min(compare, len(keyframes))).astype(np.int64)
        images = [sessions[int(keyframes.session_of[i])].image(int(keyframes.frame_of[i])) for i in chosen]
        cosine = (Student.load(draft).describe(images) * normalised(rows[chosen])).sum(axis=1)
        parity = float(cosine.min())
        if not parity >= PARITY:
            raise DataError(
                f"{out}: the exported student gives other descriptors than its checkpoint (cosine {parity:.6f}, "
                f"wants {PARITY}); not written"
            )
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
    return Exported(metadata, parity, len(chosen))
