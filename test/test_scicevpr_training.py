"""SciceVPR's training: its loss against loops, the teacher on the student's batch, the convolution handed over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support.sessions import loop_session
from support.shallow import shallow_dinov2
from support.training_runs import STUDENT, TEACHER, metrics
from training.data.dataset import Frames
from training.distillation import build_method
from training.engine import teaching
from training.engine.config import MethodConfig, ModelConfig, TaskConfig, TrainConfig
from training.engine.jobs import distill, teach
from training.engine.learning import Learning
from training.engine.optimisation import learning_schedule
from training.engine.runs import load_run
from training.models import EmbeddingModel
from training.sessions import Session, load_sessions
from vpr_kd_ros.errors import ConfigError

SMALL = {"backbone": "vit_small_patch14_dinov2", "height": 42, "width": 56, "width_out": 16, "layers": 2, "mixers": 1}
BASE = replace(
    STUDENT, task=TaskConfig(loss="multi-similarity"), height=42, width=56, steps=3, validate_every=3,
    learning_rate=1e-3,
)  # fmt: skip
CRICA = replace(BASE, model=ModelConfig("super-cricavpr", dict(SMALL)))
SCICE = replace(BASE, model=ModelConfig("scicevpr", dict(SMALL)), method=MethodConfig("scicevpr", {}), seed=1)
Sessions = tuple[list[Session], list[Session]]


@pytest.fixture(scope="module", autouse=True)
def _shallow() -> Iterator[None]:
    with shallow_dinov2():
        yield


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Sessions:
    root = tmp_path_factory.mktemp("drives")
    for part in ("train", "validation"):
        for seed, name in enumerate(("sun", "night")):
            loop_session(root / part / name, f"{part}-{name}", part, 8, seed, condition=name)
    return load_sessions([root / "train"]), load_sessions([root / "validation"])


@pytest.fixture(scope="module")
def teacher(sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "super-cricavpr"
    teach(CRICA, *sessions, run)
    return run


def naive(teacher: Tensor, student: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for t, s in zip(teacher, student, strict=True):
        for a, b in zip(t, s, strict=True):
            total = total + (a / t.square().sum().sqrt() - b / s.square().sum().sqrt()) ** 2
    return total / len(teacher)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_and_its_gradient_are_those_of_the_loops(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(6, 5, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    student.requires_grad_()
    actual, expected = build_method("scicevpr", {"weight": 2.0})(teacher, student), 2 * naive(teacher, student)
    assert list(actual) == ["descriptor"]
    torch.testing.assert_close(actual["descriptor"], expected.to(dtype), rtol=1e-6, atol=0)
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (actual["descriptor"], expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def test_the_loss_does_not_see_lengths_and_is_at_most_four() -> None:
    teacher, student = torch.randn(4, 8), torch.randn(4, 8)
    method = build_method("scicevpr", {})
    torch.testing.assert_close(method(teacher, student), method(3 * teacher, 0.2 * student))
    assert method(teacher, -teacher)["descriptor"].item() == pytest.approx(4)


def test_the_convolution_is_the_teachers_and_stays_it_while_the_rest_learns(
    sessions: Sessions, teacher: Path, tmp_path: Path
) -> None:
    distill(SCICE, *sessions, tmp_path / "run", teacher)
    theirs, ours = (load_run(run)[0].state_dict() for run in (teacher, tmp_path / "run"))
    for name in ("weight", "bias"):
        assert torch.equal(ours[f"features.fuse.{name}"], theirs[f"features.fuse.{name}"])
    assert {"loss/task", "loss/descriptor"} < set().union(*metrics(tmp_path / "run"))
    distill(replace(SCICE, steps=1, learning_rate=0.0), *sessions, tmp_path / "still", teacher)
    still = load_run(tmp_path / "still")[0].state_dict()
    moved = {name for name in ours if not torch.equal(ours[name], still[name])}
    assert any(name.startswith("project.") for name in moved)
    assert any(name.startswith("features.mixers.") for name in moved)
    assert not [name for name in moved if name.startswith(("features.fuse", "features.backbone"))]


def test_the_teacher_describes_the_very_batch_of_the_student(
    sessions: Sessions, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Image for image, augmented alike, in one call: what its descriptors depend on."""
    calls: list[tuple[EmbeddingModel, Tensor]] = []
    real = teaching.model_inputs

    def noted(model: EmbeddingModel, frames: Frames, *others: Any) -> Any:
        assert frames.images is not None
        calls.append((model, frames.images.clone()))
        return real(model, frames, *others)

    monkeypatch.setattr(teaching, "model_inputs", noted)
    distill(replace(SCICE, steps=2), *sessions, tmp_path / "run", teacher)
    pairs = list(zip(calls[::2], calls[1::2], strict=True))
    assert len(pairs) == 2
    for (student, seen), (super_crica, taught) in pairs:
        assert (student.depends_on_batch, super_crica.depends_on_batch) == (False, True)
        assert torch.equal(seen, taught)


def test_a_killed_training_goes_on_with_the_convolution_frozen(
    sessions: Sessions, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SCICE, validate_every=1)
    distill(config, *sessions, tmp_path / "whole", teacher)
    update, steps = Learning.update, [0]

    def killed(self: Learning, terms: Any) -> Tensor:
        steps[0] += 1
        if steps[0] == 3:
            raise KeyboardInterrupt
        return update(self, terms)

    with monkeypatch.context() as patch:
        patch.setattr(Learning, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            distill(config, *sessions, tmp_path / "killed", teacher)
    distill(config, *sessions, tmp_path / "killed", teacher, resume=True)
    whole, resumed = (metrics(tmp_path / name) for name in ("whole", "killed"))
    assert whole[-2:] == resumed[-2:]


def test_other_pairs_say_what_to_switch_off(sessions: Sessions, teacher: Path, tmp_path: Path) -> None:
    other = replace(SCICE, model=replace(STUDENT.model), height=24, width=32)
    with pytest.raises(ConfigError, match="hand_over to false"):
        distill(
            replace(other, method=MethodConfig("scicevpr", {"adaptor": "teacher"})), *sessions, tmp_path / "a", teacher
        )
    lidar = tmp_path / "lidar"
    teach(replace(TEACHER, steps=1), *sessions, lidar)
    with pytest.raises(ConfigError, match="inherits from super-cricavpr only"):
        distill(
            replace(SCICE, method=MethodConfig("scicevpr", {"adaptor": "teacher"})), *sessions, tmp_path / "b", lidar
        )
    options = {"adaptor": "teacher", "hand_over": False}
    distill(replace(other, method=MethodConfig("scicevpr", options)), *sessions, tmp_path / "c", teacher)
    assert json.loads((tmp_path / "c" / "run.json").read_text())["teacher"] == str(teacher)


def test_the_published_schedule_halves_the_learning_rate_every_three_epochs() -> None:
    epoch = 5
    config = TrainConfig(
        model=ModelConfig("scicevpr"), schedule="step", step_factor=0.5, step_every=3 * epoch, steps=10 * epoch
    )
    optimiser = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    schedule = learning_schedule(optimiser, config)
    rates = []
    for _ in range(10 * epoch):
        rates.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    assert [rates[i * epoch] for i in range(10)] == pytest.approx([1e-4 * 0.5 ** (i // 3) for i in range(10)])
