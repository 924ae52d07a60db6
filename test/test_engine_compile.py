"""A training whose network is compiled takes the steps of one whose network is not."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch._dynamo.utils import counters

from support.training_runs import STUDENT, TEACHER, write_drives
from training.distillation import build_method
from training.engine.config import MethodConfig, TrainConfig, to_dict
from training.engine.jobs import distill, teach
from training.engine.learning import compiled
from training.engine.runs import load_run
from training.models import build_model
from training.sessions import Session, load_sessions
from vpr_kd_ros.errors import ConfigError

SHORT = replace(STUDENT, method=MethodConfig("distilvpr", {}), steps=3, validate_every=3)
NOT_HERE = "compile: not on this machine"


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drives(tmp_path_factory.mktemp("drives"))


@pytest.fixture(scope="module")
def sessions(drives: Path) -> tuple[list[Session], list[Session]]:
    return load_sessions([drives / "train"]), load_sessions([drives / "validation"])


@pytest.fixture(scope="module")
def teacher(sessions: tuple[list[Session], list[Session]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "teacher"
    teach(replace(TEACHER, steps=2), *sessions, run)
    return run


def weights(
    config: TrainConfig, sessions: tuple[list[Session], list[Session]], teacher: Path, run: Path
) -> torch.Tensor:
    """All weights after a training, in one vector (N,)."""
    distill(config, *sessions, run, teacher)
    state = load_run(run)[0].state_dict()
    return torch.cat([value.double().flatten() for value in state.values()])


def test_it_learns_what_it_would_have_learnt(
    sessions: tuple[list[Session], list[Session]], teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = weights(SHORT, sessions, teacher, tmp_path / "plain")
    again = weights(replace(SHORT, seed=1), sessions, teacher, tmp_path / "other")
    counters.clear()
    fast = weights(replace(SHORT, compile=True), sessions, teacher, tmp_path / "compiled")
    if NOT_HERE in capsys.readouterr().err:
        pytest.skip("torch.compile finds no C++ compiler on this machine")
    graphs = counters["stats"]["unique_graphs"]
    assert 2 <= graphs <= 4, "the probe and the network, compiled for batches of any size"
    assert (fast - plain).norm() < 1e-3 * (again - plain).norm(), "other kernels round otherwise, and no more"


def test_a_machine_without_a_compiler_trains_and_says_so(drives: Path, teacher: Path, tmp_path: Path) -> None:
    config, run = tmp_path / "student.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(to_dict(replace(SHORT, compile=True))))
    paths = ["--train", f"{drives}/train", "--validation", f"{drives}/validation", "--teacher", str(teacher)]
    ended = subprocess.run(
        [sys.executable, "-m", "training", "distill", "--config", str(config), *paths, "--out", str(run)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CXX": str(tmp_path / "no-compiler")},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert NOT_HERE in ended.stderr + ended.stdout
    assert "no-compiler" in ended.stderr + ended.stdout, "what is missing is named"
    load_run(run)


def test_what_cannot_be_compiled_is_refused(sessions: tuple[list[Session], list[Session]], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this network reads clouds"):
        teach(replace(TEACHER, compile=True), *sessions, tmp_path / "clouds")
    with pytest.raises(ConfigError, match="compares feature maps"):
        compiled(build_model(SHORT.model.name, SHORT.model.options), build_method("afd", {}), torch.device("cpu"))
