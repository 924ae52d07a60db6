"""Trainings that compare feature maps, and students of degraded images: begun, resumed, measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.training_runs import STUDENT, TEACHER, metrics, write_drives
from training.__main__ import main
from training.data.dataset import Keyframes
from training.data.degrade import Degradation
from training.engine.config import MethodConfig, ModelConfig, TaskConfig
from training.engine.descriptors import describe, preprocess_of, split_by_session
from training.engine.jobs import distill, teach
from training.engine.runs import Run, load_run
from training.engine.teaching import LiveTeacher, map_shapes
from training.evaluation.protocol import evaluate
from training.evaluation.results import Protocol
from training.models import build_model
from training.sessions import Session, load_sessions
from vpr_kd_ros.errors import ConfigError

Sessions = tuple[list[Session], list[Session]]
BIG = replace(STUDENT, model=ModelConfig("small-resnet-gem", {"descriptor_dim": 16, "widths": [6, 8, 12]}), steps=2)
VLAD = replace(
    STUDENT,
    model=ModelConfig("netvlad", {"backbone": "resnet18", "clusters": 4, "trainable_blocks": 0}),
    height=48, width=64, steps=1, validate_every=1,
)  # fmt: skip
"""Nothing in it behaves otherwise in training than in evaluation."""


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drives(tmp_path_factory.mktemp("drives"))


@pytest.fixture(scope="module")
def sessions(drives: Path) -> Sessions:
    return load_sessions([drives / "train"]), load_sessions([drives / "validation"])


@pytest.fixture(scope="module")
def camera(sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "camera"
    teach(BIG, *sessions, run)
    return run


@pytest.fixture(scope="module")
def vlad(sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "vlad"
    teach(VLAD, *sessions, run)
    return run


def test_the_maps_sizes_are_those_of_training_and_finding_them_changes_nothing(sessions: Sessions) -> None:
    preprocess = preprocess_of(STUDENT)
    keyframes = Keyframes(sessions[0], preprocess)
    torch.manual_seed(0)
    model = build_model(BIG.model.name, BIG.model.options).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    chance = torch.get_rng_state()
    shapes = map_shapes(model, keyframes, preprocess, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), chance)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    live = LiveTeacher(model, preprocess, keyframes)
    maps = live.answers(keyframes.frames(range(3), images=True), torch.device("cpu"), maps=True).maps
    assert shapes == [(6, 12, 16), (6, 6, 8), (12, 3, 4)]
    assert [tuple(x.shape) for x in maps] == [(3, *shape) for shape in shapes]


@pytest.mark.parametrize("name", ["afd", "ickd", "lsdnet"])
def test_a_lidar_teacher_has_no_maps_to_compare(name: str, sessions: Sessions, tmp_path: Path) -> None:
    options = {"feature_weight": 1.0} if name == "lsdnet" else {}
    teach(replace(TEACHER, steps=1, validate_every=1), *sessions, tmp_path / "lidar")
    config = replace(STUDENT, method=MethodConfig(name, options), steps=1)
    with pytest.raises(
        ConfigError, match=r"MinkLoc3D makes no feature maps of an image.* take a teacher and a student"
    ):
        distill(config, *sessions, tmp_path / "run", tmp_path / "lidar")


@pytest.mark.parametrize(
    ("name", "options"),
    [("afd", {"dim": 8}), ("ickd", {}), ("lsdnet", {"feature_weight": 1.0, "triples": "task"})],
    ids=["afd", "ickd", "lsdnet"],
)
def test_a_killed_training_with_maps_goes_on_to_the_same_weights(
    name: str, options: dict[str, Any], sessions: Sessions, camera: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = replace(STUDENT, method=MethodConfig(name, options), steps=4, validate_every=2)
    monkeypatch.setattr(Run, "finish", lambda self, results: None)
    distill(config, *sessions, tmp_path / "whole", camera)
    save_last = Run.save_last

    def stop(self: Run, state: Any) -> None:
        save_last(self, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_last", stop)
        with pytest.raises(KeyboardInterrupt):
            distill(config, *sessions, tmp_path / "killed", camera)
    distill(config, *sessions, tmp_path / "killed", camera, resume=True)
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    whole, killed = (
        torch.load(tmp_path / run / "last.pt", weights_only=True)["training"]["weights"] for run in ("whole", "killed")
    )
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[key], killed[key]) for key in whole)
    learnt = [key for key in whole if key.startswith("1.")]
    assert bool(learnt) == (name != "lsdnet"), "the method's own weights are part of the state"


def test_two_processes_compare_the_maps_of_both_in_half_precision(
    sessions: Sessions, camera: Path, tmp_path: Path
) -> None:
    method = MethodConfig("afd", {"dim": 8})
    config = replace(STUDENT, method=method, steps=2, validate_every=2, devices=2, precision="bf16-mixed")
    distill(config, *sessions, tmp_path / "run", camera)
    (line, _) = metrics(tmp_path / "run")
    assert np.isfinite(line["loss"])
    assert line["loss/attended"] > 0
    assert all(v.isfinite().all() for v in load_run(tmp_path / "run")[0].state_dict().values())


def test_only_the_student_sees_degraded_images(sessions: Sessions, vlad: Path, tmp_path: Path) -> None:
    """From the teacher's weights, and on the teacher's images, the student has nothing to learn at the first step."""
    config = replace(VLAD, method=MethodConfig("low-quality"), task=TaskConfig(weight=0.0), start=str(vlad))
    losses = {}
    for name, degradation in (("plain", Degradation()), ("degraded", Degradation(scale=(0.2, 0.3)))):
        distill(replace(config, degradation=degradation), *sessions, tmp_path / name, vlad)
        losses[name] = metrics(tmp_path / name)[0]
    assert losses["plain"]["loss/task"] == losses["degraded"]["loss/task"] == 0
    assert losses["plain"]["loss/mse"] < 1e-6
    assert losses["degraded"]["loss/mse"] > 100 * losses["plain"]["loss/mse"]
    assert losses["plain"]["loss/correlation"] < 1e-5
    assert losses["degraded"]["loss/correlation"] > 100 * losses["plain"]["loss/correlation"]


def test_the_degraded_student_comes_nearer_to_the_teacher(sessions: Sessions, tmp_path: Path) -> None:
    taking = Degradation(scale=(0.15, 0.15))
    teach(replace(BIG, steps=20, validate_every=20), *sessions, tmp_path / "teacher")
    config = replace(
        BIG, method=MethodConfig("low-quality"), task=TaskConfig(weight=0.0), start=str(tmp_path / "teacher"),
        degradation=taking, steps=60, validate_every=60,
    )  # fmt: skip
    distill(config, *sessions, tmp_path / "student", tmp_path / "teacher")
    preprocess = preprocess_of(config)
    keyframes = Keyframes(sessions[0], preprocess)
    teacher, student = (load_run(tmp_path / run)[0] for run in ("teacher", "student"))
    original, before, after = (
        describe(model, keyframes, preprocess, degradation=degradation)
        for model, degradation in ((teacher, None), (teacher, taking), (student, taking))
    )
    assert np.square(after - original).mean() < 0.9 * np.square(before - original).mean()


def test_queries_alone_are_degraded_when_measuring(
    drives: Path, camera: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--model", str(camera), "--sessions", f"{drives}/test", "--radius_m", "7"]
    assert main([*command, "--out", str(tmp_path / "plain.json")]) == 0
    assert "degraded" not in capsys.readouterr().out
    taking = ["--degradation.scale", "[0.1,0.2]", "--degradation.jpeg_quality", "[10,10]"]
    assert main([*command, *taking, "--out", str(tmp_path / "degraded.json")]) == 0
    assert "queries degraded: scale 0.1 to 0.2, jpeg_quality 10" in capsys.readouterr().out
    plain, degraded = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("plain", "degraded"))
    assert degraded["degradation"]["scale"] == [0.1, 0.2]

    model, config = load_run(camera)
    keyframes = Keyframes(load_sessions([drives / "test"]), preprocess_of(config))
    originals, taken = (
        split_by_session(keyframes, describe(model, keyframes, preprocess_of(config), degradation=degradation))
        for degradation in (None, Degradation(scale=(0.1, 0.2), jpeg_quality=(10, 10)))
    )
    assert plain["ar1"] == evaluate(keyframes.sessions, originals, Protocol(7.0)).ar_at_1
    assert (
        degraded["recalls"]["5"]
        == evaluate(keyframes.sessions, originals, Protocol(7.0), taken).summary()["recalls"][5]
    )
    assert main([*command, "--degradation.scale", "[2,3]"]) != 0
    assert "scale wants" in capsys.readouterr().err


def test_there_is_nothing_to_degrade_for_a_lidar_model(
    drives: Path, sessions: Sessions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teach(replace(TEACHER, steps=1, validate_every=1), *sessions, tmp_path / "lidar")
    command = ["evaluate", "--model", str(tmp_path / "lidar"), "--sessions", f"{drives}/test"]
    assert main([*command, "--degradation.blur_px", "[2,2]"]) == 1
    assert "reads no images" in capsys.readouterr().err
