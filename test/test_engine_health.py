"""Trainings that meet odd batches, half precision, compilation and limits stay sound."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.fabric
import numpy as np
import pytest
import torch
import yaml
from torch._dynamo.utils import counters
from torch.optim.optimizer import register_optimizer_step_pre_hook

from support.contexts import maps_of, prepared
from support.training_runs import STUDENT, TEACHER, metrics, write_drives
from training.distillation import METHODS, build_method
from training.engine import fit, processes
from training.engine.batches import Batch, loss_terms
from training.engine.config import MethodConfig, ModelConfig, TaskConfig, TrainConfig, to_dict
from training.engine.jobs import distill, teach
from training.engine.learning import Learning
from training.engine.processes import run_processes
from training.engine.runs import load_run
from training.engine.task import TripletTask
from training.engine.teaching import Answers, Teaching
from training.models import EmbeddingModel, build_model
from training.sessions import Session, load_sessions
from vpr_kd_ros.errors import ConfigError

SHORT = replace(STUDENT, method=MethodConfig("distilvpr", {"adaptor": "teacher"}), steps=4, validate_every=4)
NOT_COMPILED = "compile: not on this machine"


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Session], list[Session]]:
    root = write_drives(tmp_path_factory.mktemp("drives"))
    return load_sessions([root / "train"]), load_sessions([root / "validation"])


@pytest.fixture(scope="module")
def teacher(sessions: tuple[list[Session], list[Session]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "teacher"
    teach(replace(TEACHER, steps=2), *sessions, run)
    return run


def assert_finite(run: Path) -> None:
    weights = load_run(run)[0].state_dict()
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_mixed_precision_trains_and_leaves_the_losses_in_float32(
    sessions: tuple[list[Session], list[Session]], teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: list[torch.dtype] = []
    seen: list[torch.dtype] = []

    def watched(batch: Batch, descriptors: torch.Tensor, *others: Any) -> dict[str, torch.Tensor]:
        terms = loss_terms(batch, descriptors, *others)
        seen.extend(term.dtype for term in terms.values())
        return terms

    def watch_convolutions(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, torch.nn.Conv2d) and module.training:
            inside.append(output.dtype)

    monkeypatch.setattr(fit, "loss_terms", watched)
    handle = torch.nn.modules.module.register_module_forward_hook(watch_convolutions)
    try:
        distill(replace(SHORT, precision="bf16-mixed"), *sessions, tmp_path / "bf16", teacher)
    finally:
        handle.remove()
    assert set(inside) == {torch.bfloat16}
    assert set(seen) == {torch.float32}
    assert_finite(tmp_path / "bf16")
    distill(SHORT, *sessions, tmp_path / "float32", teacher)
    half, full = (metrics(tmp_path / name)[0] for name in ("bf16", "float32"))
    assert half["loss"] == pytest.approx(full["loss"], rel=0.1)
    stored = torch.load(tmp_path / "bf16" / "best.pt", weights_only=True)["state"]
    assert {v.dtype for v in stored.values()} == {torch.float32, torch.int64}, "weights are kept in full precision"


def weights(
    config: TrainConfig, sessions: tuple[list[Session], list[Session]], teacher: Path, run: Path
) -> torch.Tensor:
    """All weights after a training, in one vector (N,)."""
    distill(config, *sessions, run, teacher)
    state = load_run(run)[0].state_dict()
    return torch.cat([value.double().flatten() for value in state.values()])


def test_a_compiled_network_learns_what_it_would_have_learnt(
    sessions: tuple[list[Session], list[Session]], teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = weights(SHORT, sessions, teacher, tmp_path / "plain")
    again = weights(replace(SHORT, seed=1), sessions, teacher, tmp_path / "other")
    counters.clear()
    fast = weights(replace(SHORT, compile=True), sessions, teacher, tmp_path / "compiled")
    if NOT_COMPILED in "".join(capsys.readouterr()):
        pytest.skip("torch.compile finds no C++ compiler on this machine")
    graphs = counters["stats"]["unique_graphs"]
    assert 2 <= graphs <= 4, "the probe and the network, compiled for batches of any size"
    assert (fast - plain).norm() < 1e-3 * (again - plain).norm(), "other kernels round otherwise, and no more"


def test_a_machine_without_a_compiler_trains_and_says_so(
    sessions: tuple[list[Session], list[Session]], teacher: Path, tmp_path: Path
) -> None:
    train, validation = (part[0].path.parent for part in sessions)
    config, run = tmp_path / "student.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(to_dict(replace(SHORT, compile=True))))
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "training", "distill", "--config", config, "--teacher", teacher, "--out", run),
            *("--train", train, "--validation", validation),
        ],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "CXX": str(tmp_path / "no-compiler")},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert NOT_COMPILED in ended.stderr + ended.stdout
    assert "no-compiler" in ended.stderr + ended.stdout, "what is missing is named"
    load_run(run)


def test_what_cannot_be_compiled_is_refused(sessions: tuple[list[Session], list[Session]], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this network reads clouds"):
        teach(replace(TEACHER, compile=True), *sessions, tmp_path / "clouds")
    fabric, model = lightning.fabric.Fabric(accelerator="cpu"), build_model(SHORT.model.name, SHORT.model.options)
    with pytest.raises(ConfigError, match="reads feature maps"):
        Learning(fabric, model, build_method("afd", {}), replace(SHORT, compile=True))
    two_tasks = replace(SHORT, method=MethodConfig(), task=replace(SHORT.task, labels_weight=0.1), compile=True)
    with pytest.raises(ConfigError, match="reads feature maps"):
        teach(two_tasks, *sessions, tmp_path / "maps")


def test_fast_is_bfloat16_where_the_processor_has_it_and_the_run_says_which(
    sessions: tuple[list[Session], list[Session]], teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name, known in {"32-true": {"avx2", "avx512f", "avx512_bf16"}, "bf16-mixed": {"avx2", "amx_bf16"}}.items():
        monkeypatch.setattr(processes, "instructions", lambda known=known: known)
        distill(replace(SHORT, precision="fast", steps=1), *sessions, tmp_path / name, teacher)
        assert load_run(tmp_path / name)[1].precision == name


@contextmanager
def gradient_norms() -> Iterator[list[float]]:
    """The norm of all gradients together at each step that an optimiser takes."""
    norms: list[float] = []

    def note(optimiser: torch.optim.Optimizer, *_: Any) -> None:
        gradients = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))

    handle = register_optimizer_step_pre_hook(note)
    try:
        yield norms
    finally:
        handle.remove()


def test_clipping_bounds_the_gradient_of_model_and_adaptor(
    sessions: tuple[list[Session], list[Session]], teacher: Path, tmp_path: Path
) -> None:
    with gradient_norms() as free:
        distill(SHORT, *sessions, tmp_path / "free", teacher)
    bound = min(free) / 2
    with gradient_norms() as clipped:
        distill(replace(SHORT, clip_norm=bound), *sessions, tmp_path / "clipped", teacher)
    assert len(free) == len(clipped) == 4
    assert max(clipped) <= bound * (1 + 1e-5)
    assert clipped[0] == pytest.approx(bound, rel=1e-3), "the first gradient was longer"


@pytest.mark.parametrize(
    ("ar1", "patience", "stops_at"),
    [
        ([0.5, 0.4, 0.5, 0.9, 0.9, 0.9, 0.9, 0.9], 2, 3),  # as good is not better
        ([0.5, 0.6, 0.6, 0.7, 0.1, 0.2, 0.3, 0.9], 3, 7),
        ([0.5, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4], 0, 8),
    ],
)
def test_training_stops_when_validations_do_not_improve(
    ar1: list[float], patience: int, stops_at: int, sessions: tuple[list[Session], list[Session]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    results = iter(ar1)
    monkeypatch.setattr(fit, "validate", lambda *_: next(results))
    config = replace(STUDENT, steps=8, validate_every=1, patience=patience)
    assert teach(config, *sessions, tmp_path / "run") == max(ar1[:stops_at])
    assert [line["validation_ar1"] for line in metrics(tmp_path / "run") if "validation_ar1" in line] == ar1[:stops_at]
    best = torch.load(tmp_path / "run" / "best.pt", weights_only=True)["step"]
    assert best == 1 + int(np.argmax(ar1[:stops_at]))


class Table(EmbeddingModel):
    """One descriptor a keyframe, learnt as it is."""

    descriptor_dim = 6
    uses_images = True

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        self.rows = torch.nn.Parameter(rows)

    def forward(self, images: torch.Tensor | None, voxels: Any = None) -> torch.Tensor:
        assert images is not None
        return self.rows[images]


class Places:
    """Keyframes of which only the places matter."""

    def __init__(self, positions: np.ndarray) -> None:
        self.positions = np.c_[positions, np.zeros((len(positions), 2))]
        self.yaws = np.zeros(len(positions))
        self.region_of = np.zeros(len(positions), dtype=np.int64)


TWO_PLACES = np.array([0.0, 1.0, 100.0, 101.0, np.nan, np.nan])
NO_PAIR = np.array([0.0, 100.0, 200.0, 300.0, np.nan, np.nan])
NO_NEGATIVE = np.array([0.0, 1.0, 0.5, 1.5, np.nan, np.nan])


def rows_as_drawn(rows: torch.Tensor) -> None:
    pass


def all_alike(rows: torch.Tensor) -> None:
    rows[:] = rows[0].clone()


def two_alike(rows: torch.Tensor) -> None:
    rows[1] = rows[0]
    rows[3] = rows[4]


def one_zero(rows: torch.Tensor) -> None:
    rows[2] = 0


def all_zero(rows: torch.Tensor) -> None:
    rows[:] = 0


def far_apart(rows: torch.Tensor) -> None:
    rows *= 1e6


@pytest.mark.parametrize(("normalise", "batch_all"), [(False, 0.0), (True, 1.0)])
def test_no_odd_batch_spoils_the_weights(normalise: bool, batch_all: float) -> None:
    task = TaskConfig(normalise=normalise, batch_all=batch_all)
    config = TrainConfig(model=ModelConfig("table"), task=task, learning_rate=0.01, clip_norm=1.0)

    def step_on(fabric: Any) -> None:
        for name in METHODS:
            for positions in (TWO_PLACES, NO_PAIR, NO_NEGATIVE):
                for change in (rows_as_drawn, all_alike, two_alike, one_zero, all_zero, far_apart):
                    for changed in ("student", "both"):
                        torch.manual_seed(5)
                        student, taught = torch.randn(6, 6), torch.randn(6, 6)
                        change(student)
                        if changed == "both":
                            change(taught)
                        model, method = Table(student), prepared(name, {}, taught, student)
                        learning = Learning(fabric, model, method, config)
                        teaching = Teaching(method, taught.numpy())
                        teacher = Answers(taught, maps_of(taught)) if method.needs_maps else None
                        for step in range(2):
                            rows = learning.learner(torch.arange(6))
                            terms = loss_terms(
                                Batch(np.arange(6), 5), Answers(rows, maps_of(rows)), teacher,
                                Places(positions), TripletTask(task), teaching, config, step / 2,  # type: ignore[arg-type]
                            )  # fmt: skip
                            learning.update(terms)
                            where = f"{name}, {change.__name__} of {changed}, places at {positions}, step {step}"
                            assert all(torch.isfinite(term) for term in terms.values()), where
                            assert torch.isfinite(model.rows).all(), where

    run_processes(config, step_on)


def test_a_diverged_training_says_so_and_keeps_no_broken_weights(
    sessions: tuple[list[Session], list[Session]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(TripletTask):
        def __call__(self, descriptors: torch.Tensor, *others: Any) -> torch.Tensor:
            calls.append(1)
            return super().__call__(descriptors, *others) * (torch.nan if len(calls) > 3 else 1.0)

    calls: list[int] = []
    monkeypatch.setattr(fit, "task_loss", lambda config, parts: Broken(config))
    config = replace(STUDENT, steps=30, validate_every=3)
    with pytest.raises(ConfigError, match=r"loss is nan at step 6; lower learning_rate"):
        teach(config, *sessions, tmp_path / "run")
    assert_finite(tmp_path / "run")
    last = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["training"]
    assert last["step"] == 3
