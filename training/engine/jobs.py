"""Teaching and distilling: a run from sessions to a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import lightning.fabric
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from training.data.dataset import Keyframes
from training.data.placing import place
from training.distillation import build_method
from training.distillation.method import Beginning
from training.engine.config import TrainConfig
from training.engine.descriptors import describe, preprocess_of
from training.engine.fingerprints import sessions_fingerprint, weights_fingerprint
from training.engine.fit import fit, validation_protocol
from training.engine.processes import FAST, fast_precision, run_processes
from training.engine.runs import NoRun, Run, load_run
from training.engine.teacher_cache import teacher_descriptors
from training.engine.teaching import LiveTeacher, Teaching, map_shapes
from training.evaluation.protocol import require_answers
from training.models import EmbeddingModel, build_model
from training.sessions import Session
from vpr_kd_ros.errors import ConfigError, DataError


def teach(
    config: TrainConfig, train: Sequence[Session], validation: Sequence[Session], out: Path, resume: bool = False
) -> float:
    """Train a model on the labelled sessions alone; returns its best validation AR@1, in [0, 1].

    Args:
        config: of the run.
        train, validation: sessions of different regions.
        out: the run folder.
        resume: go on with the killed run in ``out``.

    Raises:
        DataError: too few labelled sessions, or they lack what the model reads, or the run in ``out`` is finished.
        ConfigError: the configuration asks for a distillation, which needs a teacher, or is not the resumed run's.
    """
    if config.method.name != "none":
        raise ConfigError(f"method {config.method.name!r} needs a teacher: use distill, or set method.name to none")
    if config.placing.precision > 0:
        raise ConfigError("placing needs a teacher: use distill, or leave placing.precision at 0")
    labelled = [session for session in train if session.labelled]
    return _train(config, labelled, validation, out, None, resume)


def distill(
    config: TrainConfig, train: Sequence[Session], validation: Sequence[Session], out: Path, teacher: Path,
    resume: bool = False,
) -> float:  # fmt: skip
    """Train a student with the relations of a trained teacher; returns its best validation AR@1, in [0, 1].

    Sessions with poses serve the task loss and the distillation, sessions without poses the distillation.

    Args:
        config: of the run.
        train, validation: sessions of different regions.
        out: the run folder.
        teacher: the run folder of the teacher.
        resume: go on with the killed run in ``out``.

    Raises:
        DataError: the teacher is no finished run, the sessions lack what teacher or student reads, or the run in
            ``out`` is finished.
        ConfigError: neither a distillation method nor placing is configured, teacher and student do not fit, or the
            configuration is not the resumed run's.
    """
    if config.method.name == "none" and config.placing.precision == 0:
        raise ConfigError(
            "no distillation method, and no placing: set method.name, for example --method.name distilvpr, or "
            "placing.precision"
        )
    return _train(config, train, validation, out, teacher, resume)


def _train(
    config: TrainConfig, train: Sequence[Session], validation: Sequence[Session], out: Path, teacher: Path | None,
    resume: bool,
) -> float:  # fmt: skip
    unlabelled = [session.name for session in validation if not session.labelled]
    if unlabelled:
        raise DataError(f"validation sessions need poses; these have none: {', '.join(unlabelled)}")
    shared = {s.region for s in train} & {s.region for s in validation}
    if shared:
        raise DataError(f"validation must be in other regions than training; both have: {', '.join(sorted(shared))}")
    require_answers(validation, validation_protocol(config))
    if config.precision == FAST:
        config = replace(config, precision=fast_precision())
    work = partial(
        _train_in_process, config=config, train=train, validation=validation, out=out, teacher=teacher, resume=resume
    )
    return run_processes(config, work)


def _train_in_process(
    fabric: lightning.fabric.Fabric, config: TrainConfig, train: Sequence[Session], validation: Sequence[Session],
    out: Path, teacher: Path | None, resume: bool,
) -> float:  # fmt: skip
    """What each process does; the first one writes the run."""
    torch.manual_seed(config.seed)
    model = build_model(config.model.name, config.model.options)
    if config.start:
        _start_from(model, Path(config.start))
    preprocess = preprocess_of(config)
    keyframes = Keyframes(train, preprocess)
    taught_by = None if teacher is None else load_run(teacher)
    run: Run = NoRun()
    if fabric.is_global_zero:
        sources = {"train": sessions_fingerprint(train), "validation": sessions_fingerprint(validation)}
        if config.start:
            sources["start"] = weights_fingerprint(model)
        if taught_by is not None:
            sources["teacher"] = weights_fingerprint(taught_by[0])
        run = Run(out, config, sources, resume)
    teaching, placed = None, 0
    if teacher is not None and taught_by is not None:
        with fabric.rank_zero_first():
            of_teacher = _TeacherData.of(teacher, *taught_by, keyframes)
            if config.method.name != "none":
                teaching = _teaching(of_teacher, config, keyframes, model, fabric.device)
            if config.placing.precision > 0:
                if taught_by[0].depends_on_batch:
                    raise ConfigError(f"placing: the descriptors of {taught_by[1].model.name} depend on their batch")
                placing = place(of_teacher.descriptors(fabric.device), keyframes, config.placing, config.pairing)
                tqdm.write(str(placing))
                keyframes, placed = keyframes.with_poses(placing.positions, placing.yaws), int(placing.placed.sum())
    best = fit(fabric, model, config, keyframes, Keyframes(validation, preprocess), run, teaching)
    run.finish(
        {
            "validation_ar1": best,
            "teacher": None if teacher is None else str(teacher),
            "parameters": sum(p.numel() for p in model.parameters()),
            "keyframes": {"labelled": int(keyframes.labelled.sum()), "placed": placed, "all": len(keyframes)},
            "train": [session.name for session in train],
            "validation": [session.name for session in validation],
            "train_regions": sorted({session.region for session in train}),
        }
    )
    return best


@dataclass(frozen=True)
class _TeacherData:
    """A trained teacher, and the keyframes as it reads them."""

    run: Path
    model: EmbeddingModel
    config: TrainConfig
    keyframes: Keyframes

    @classmethod
    def of(cls, run: Path, model: EmbeddingModel, config: TrainConfig, keyframes: Keyframes) -> _TeacherData:
        if model.uses_images or model.uses_labels:
            keyframes = keyframes.seen_by(preprocess_of(config))
        return cls(run, model, config, keyframes)

    def descriptors(self, device: torch.device) -> NDArray[np.float32]:
        """(N, C) float32, of all keyframes; see ``teacher_descriptors``."""
        preprocess = preprocess_of(self.config)
        return teacher_descriptors(self.run, self.model, self.config.model, self.keyframes, preprocess, device)


def _teaching(
    of_teacher: _TeacherData, config: TrainConfig, keyframes: Keyframes, student: EmbeddingModel, device: torch.device
) -> Teaching:
    """What the teacher brings: the configured method, its descriptors, and itself where the method asks it live."""
    teacher, preprocess = of_teacher.model, preprocess_of(of_teacher.config)
    method = build_method(
        config.method.name,
        config.method.options,
        teacher_dim=teacher.descriptor_dim,
        student_dim=student.descriptor_dim,
    )
    if method.needs_maps:
        method.begin_maps(
            map_shapes(teacher, of_teacher.keyframes, preprocess, device),
            map_shapes(student, keyframes, preprocess_of(config), device),
        )
    if method.hands_over:
        student.inherit(teacher)
    live = method.needs_maps or method.same_batch or teacher.depends_on_batch
    descriptors = None
    if not live or method.needs_beginning or config.batch.anchors > 0:
        descriptors = of_teacher.descriptors(device)
    if method.needs_beginning:
        assert descriptors is not None
        rows = describe(student.to(device), keyframes, preprocess_of(config), device, title="student")
        method.begin(
            Beginning(torch.from_numpy(descriptors), torch.from_numpy(rows), torch.from_numpy(keyframes.session_of))
        )
    return Teaching(method, descriptors, LiveTeacher(teacher, preprocess, of_teacher.keyframes) if live else None)


def _start_from(model: EmbeddingModel, run: Path) -> None:
    """Give the model the weights of a finished run."""
    try:
        model.load_state_dict(load_run(run)[0].state_dict(), strict=True)
    except RuntimeError as error:
        raise ConfigError(f"start: the model of {run} has other weights than the configured one: {error}") from error
