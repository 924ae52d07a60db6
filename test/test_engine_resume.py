"""A killed training goes on to the result it would have had."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from support.sessions import loop_session
from support.training_runs import STUDENT, TEACHER, metrics, write_drives
from training.engine.config import MethodConfig, TrainConfig, to_dict
from training.engine.jobs import distill, teach
from training.engine.runs import Run
from training.sessions import Session, load_sessions
from vpr_kd_ros.errors import ConfigError, DataError

CONFIG = replace(
    STUDENT, method=MethodConfig("rkd", {"adaptor": "teacher"}), clip_norm=1.0, steps=36, validate_every=6, patience=50
)
"""Chance in batches and augmentation, weights in model and adaptor, a schedule, a task loss that changes half way."""


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drives(tmp_path_factory.mktemp("drives"))


@pytest.fixture(scope="module")
def sessions(drives: Path) -> tuple[list[Session], list[Session]]:
    return load_sessions([drives / "train"]), load_sessions([drives / "validation"])


@pytest.fixture(scope="module")
def teacher(sessions: tuple[list[Session], list[Session]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "teacher"
    teach(replace(TEACHER, steps=4), *sessions, run)
    return run


@pytest.fixture(autouse=True)
def _last_state_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished run drops the state of its training, which the tests compare."""
    monkeypatch.setattr(Run, "finish", lambda self, results: None)


@pytest.fixture(scope="module")
def uninterrupted(
    sessions: tuple[list[Session], list[Session]], teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    run = tmp_path_factory.mktemp("runs") / "uninterrupted"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "finish", lambda self, results: None)
        distill(CONFIG, *sessions, run, teacher)
    return run


def stored(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Bit for bit, all the way down."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_same(left, right, f"{where}/{number}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


def assert_same_runs(one: Path, other: Path) -> None:
    assert_same(stored(one / "last.pt"), stored(other / "last.pt"))
    assert_same(stored(one / "best.pt"), stored(other / "best.pt"))
    assert metrics(one) == metrics(other)


def test_a_process_killed_in_training_goes_on_to_the_same_weights(
    drives: Path, sessions: tuple[list[Session], list[Session]], teacher: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    config, run = tmp_path / "student.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(to_dict(CONFIG)))
    paths = ["--train", f"{drives}/train", "--validation", f"{drives}/validation", "--teacher", str(teacher)]
    command = [sys.executable, "-m", "training", "distill", "--config", str(config), *paths, "--out", str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=Path(__file__).parents[1], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 120
    while not (run / "last.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    output = process.communicate()[0].decode()
    assert process.returncode == -signal.SIGKILL, output
    assert not (run / "run.json").exists()
    assert 6 <= stored(run / "last.pt")["training"]["step"] < 36
    distill(CONFIG, *sessions, run, teacher, resume=True)
    assert_same_runs(run, uninterrupted)
    assert not list(run.glob(".*")), "what the killed process was writing is cleared away"


@pytest.mark.parametrize(
    ("method", "call"), [("save_best", 1), ("save_last", 1), ("save_last", 3), ("log", 5), ("finish", 1)]
)
def test_wherever_it_stops_it_goes_on_to_the_same_weights(
    method: str, call: int, sessions: tuple[list[Session], list[Session]], teacher: Path, uninterrupted: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    calls = 0
    real = getattr(Run, method)

    def stop(self: Run, *args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Run, method, stop)
        with pytest.raises(KeyboardInterrupt):
            distill(CONFIG, *sessions, tmp_path / "run", teacher)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 35, "seco')  # as a process leaves it that is killed while it writes
    distill(CONFIG, *sessions, tmp_path / "run", teacher, resume=True)
    assert_same_runs(tmp_path / "run", uninterrupted)


@pytest.fixture
def killed(
    sessions: tuple[list[Session], list[Session]], teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A run that came to its first validation."""

    def stop(self: Run, state: Any) -> None:
        save_last(self, state)
        raise KeyboardInterrupt

    save_last = Run.save_last
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_last", stop)
        with pytest.raises(KeyboardInterrupt):
            distill(CONFIG, *sessions, tmp_path / "killed", teacher)
    return tmp_path / "killed"


def test_another_configuration_is_refused_with_the_keys_that_differ(
    killed: Path, sessions: tuple[list[Session], list[Session]], teacher: Path
) -> None:
    before = {path: path.read_bytes() for path in killed.iterdir()}
    other = replace(CONFIG, steps=40, batch=replace(CONFIG.batch, views=3))
    with pytest.raises(ConfigError, match=r"other values of batch\.views, steps;"):
        distill(other, *sessions, killed, teacher, resume=True)
    assert {path: path.read_bytes() for path in killed.iterdir()} == before


def test_another_teacher_or_other_sessions_are_refused(
    killed: Path, sessions: tuple[list[Session], list[Session]], teacher: Path, tmp_path: Path
) -> None:
    teach(replace(TEACHER, steps=4, seed=9), *sessions, tmp_path / "other")
    with pytest.raises(DataError, match=r"has changed: teacher$"):
        distill(CONFIG, *sessions, killed, tmp_path / "other", resume=True)
    one_more = loop_session(tmp_path / "more", "more", "train", 24, 5)
    with pytest.raises(DataError, match=r"has changed: train$"):
        distill(CONFIG, [*sessions[0], one_more], sessions[1], killed, teacher, resume=True)


def test_a_killed_run_is_not_overwritten_and_says_how_to_go_on(
    killed: Path, sessions: tuple[list[Session], list[Session]], teacher: Path
) -> None:
    with pytest.raises(DataError, match="--resume true"):
        distill(CONFIG, *sessions, killed, teacher)


def test_a_damaged_state_is_named(killed: Path, sessions: tuple[list[Session], list[Session]], teacher: Path) -> None:
    whole = (killed / "last.pt").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        (killed / "last.pt").write_bytes(damaged)
        with pytest.raises(DataError, match=r"last\.pt: not a checkpoint"):
            distill(CONFIG, *sessions, killed, teacher, resume=True)


def test_a_finished_run_has_nothing_to_resume(
    sessions: tuple[list[Session], list[Session]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    config: TrainConfig = replace(STUDENT, steps=2, validate_every=1)
    teach(config, *sessions, tmp_path / "run", resume=True)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "best.pt", "config.yaml", "metrics.jsonl", "run.json",
    ]  # fmt: skip
    assert json.loads((tmp_path / "run" / "run.json").read_text())["validation_ar1"] >= 0
    with pytest.raises(DataError, match="finished"):
        teach(config, *sessions, tmp_path / "run", resume=True)
