"""Teaching and distilling: a run from sessions to a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.data.dataset import Keyframes
from training.distillation import build_method
from training.engine.config import TrainConfig
from training.engine.descriptors import describe, preprocess_of
from training.engine.fit import Teaching, fit
from training.engine.runs import Run, load_run
from training.models import build_model
from training.sessions import Session
from vpr_kd_ros.errors import ConfigError, DataError


def teach(config: TrainConfig, train: Sequence[Session], validation: Sequence[Session], out: Path) -> float:
    """Train a model on the labelled sessions alone; returns its best validation AR@1, in [0, 1].

    Raises:
        DataError: too few labelled sessions, or they lack what the model reads.
        ConfigError: the configuration asks for a distillation, which needs a teacher.
    """
    if config.method.name != "none":
        raise ConfigError(f"method {config.method.name!r} needs a teacher: use distill, or set method.name to none")
    labelled = [session for session in train if session.labelled]
    return _train(config, labelled, validation, out, teacher=None)


def distill(
    config: TrainConfig, train: Sequence[Session], validation: Sequence[Session], out: Path, teacher: Path
) -> float:
    """Train a student with the relations of a trained teacher; returns its best validation AR@1, in [0, 1].

    Sessions with poses serve the task loss and the distillation, sessions without poses the distillation.

    Raises:
        DataError: the teacher is no finished run, or the sessions lack what teacher or student reads.
        ConfigError: no distillation method is configured, or teacher and student do not fit it.
    """
    if config.method.name == "none":
        raise ConfigError("no distillation method: set method.name, for example --method.name distilvpr")
    return _train(config, train, validation, out, teacher)


def _train(
    config: TrainConfig, train: Sequence[Session], validation: Sequence[Session], out: Path, teacher: Path | None
) -> float:
    unlabelled = [session.name for session in validation if not session.labelled]
    if unlabelled:
        raise DataError(f"validation sessions need poses; these have none: {', '.join(unlabelled)}")
    shared = {s.region for s in train} & {s.region for s in validation}
    if shared:
        raise DataError(f"validation must be in other regions than training; both have: {', '.join(sorted(shared))}")
    torch.manual_seed(config.seed)
    model = build_model(config.model.name, config.model.options)
    preprocess = preprocess_of(config)
    keyframes = Keyframes(train, preprocess)
    run = Run(out, config)
    teaching = None if teacher is None else _teaching(teacher, config, keyframes, model.descriptor_dim)
    best = fit(model, config, keyframes, Keyframes(validation, preprocess), run, teaching)
    results: dict[str, Any] = {
        "validation_ar1": best,
        "teacher": None if teacher is None else str(teacher),
        "parameters": sum(p.numel() for p in model.parameters()),
        "keyframes": {"labelled": int(keyframes.labelled.sum()), "all": len(keyframes)},
        "train": [session.name for session in train],
        "validation": [session.name for session in validation],
    }
    run.finish(results)
    return best


def _teaching(path: Path, config: TrainConfig, keyframes: Keyframes, student_dim: int) -> Teaching:
    """The teacher's descriptors of every training keyframe, computed once, and the configured method."""
    teacher, teacher_config = load_run(path)
    preprocess = preprocess_of(teacher_config)
    if teacher.uses_images and preprocess != keyframes.preprocess:
        keyframes = Keyframes(keyframes.sessions, preprocess)
    descriptors = describe(teacher, keyframes, preprocess, title="teacher")
    if not np.isfinite(descriptors).all():
        raise DataError(f"{path}: the teacher gives descriptors that are not finite")
    method = build_method(
        config.method.name, config.method.options, teacher_dim=teacher.descriptor_dim, student_dim=student_dim
    )
    return Teaching(method, descriptors)
