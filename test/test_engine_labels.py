"""Models that read semantic labels, and those that the robot cannot run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from support.sessions import loop_session
from support.training_runs import STUDENT, Drives, labelled_drives, metrics
from training.data.dataset import Keyframes
from training.engine.config import MethodConfig, ModelConfig
from training.engine.jobs import distill, teach
from training.engine.runs import Run
from training.export import export_student
from training.models import build_model
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.preprocess import Preprocess

SEG = replace(STUDENT, model=ModelConfig("structvpr-seg"), height=32, width=32, steps=4, validate_every=4)


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Drives:
    return labelled_drives(tmp_path_factory.mktemp("drives"))


@pytest.fixture(scope="module")
def teacher(drives: Drives, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "teacher"
    teach(SEG, *drives, run)
    return run


@pytest.mark.parametrize(("height", "width"), [(24, 32), (12, 16), (48, 96), (10, 14)])
def test_labels_are_those_of_the_nearest_pixel(drives: Drives, height: int, width: int) -> None:
    session = drives[0][1]
    keyframes = Keyframes(drives[0], Preprocess(height=height, width=width))
    frames = keyframes.frames([30, 25], labels=True)
    assert frames.images is None
    assert frames.labels is not None
    assert frames.labels.dtype == torch.uint8
    assert frames.labels.shape == (2, height, width)
    for found, index in zip(frames.labels.numpy(), (6, 1), strict=True):
        whole = session.semantics(index)
        assert whole is not None
        for row in range(height):
            for column in range(width):
                # The pixel of the original that the centre of this one lies in.
                y, x = int((row + 0.5) * 24 / height), int((column + 0.5) * 32 / width)
                assert found[row, column] == whole[y, x]


def test_the_segmentation_teacher_trains_and_teaches(drives: Drives, teacher: Path, tmp_path: Path) -> None:
    assert np.isfinite([line["loss"] for line in metrics(teacher) if "loss" in line]).all()
    # The student's images have another size than the teacher's labels.
    config = replace(STUDENT, method=MethodConfig("rkd", {}), steps=2, validate_every=2)
    distill(config, *drives, tmp_path / "run", teacher)
    assert any(key.startswith("loss/") and key != "loss/task" for key in metrics(tmp_path / "run")[0])


def test_sessions_without_labels_are_named(drives: Drives, tmp_path: Path) -> None:
    bare = loop_session(tmp_path / "bare", "bare", "train", 24, 3, clouds=False)
    with pytest.raises(DataError, match=r"semantic labels are needed.*none: bare; simulate"):
        teach(SEG, [drives[0][0], bare], drives[1], tmp_path / "run")


def test_a_model_that_reads_labels_is_not_exported(drives: Drives, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="reads semantic labels; the robot has only a camera"):
        export_student(teacher, tmp_path / "student.pt2", drives[1])
    assert not list(tmp_path.iterdir())


def test_a_model_that_compares_the_images_of_its_batch_is_not_exported(
    drives: Drives, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(STUDENT.model.name, STUDENT.model.options)
    Run(tmp_path / "run", STUDENT).save_best(model, step=1)
    monkeypatch.setattr(type(model), "depends_on_batch", True)
    with pytest.raises(DataError, match="one image at a time"):
        export_student(tmp_path / "run", tmp_path / "student.pt2", drives[1])
    assert not (tmp_path / "student.pt2").exists()
