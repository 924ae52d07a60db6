"""Every distillation method trains a student, on sessions with and without poses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from support.sessions import loop_session
from training.data.pairing import Pairing
from training.data.samplers import BatchConfig
from training.distillation import METHODS, build_method
from training.engine.config import MethodConfig, ModelConfig, TrainConfig
from training.engine.jobs import distill, teach
from training.engine.runs import load_run
from training.sessions import Session, load_sessions

BATCH = BatchConfig(windows=2, places=2, views=2, anchors=3, neighbours=2, among=4)
PAIRING = Pairing(positive_m=12.0, negative_m=25.0)
COMMON = {"batch": BATCH, "pairing": PAIRING, "height": 24, "width": 32, "steps": 4, "validate_every": 4}
TEACHER = TrainConfig(
    model=ModelConfig(
        "minkloc++3d",
        {"descriptor_dim": 12, "voxel_size": 3.0, "planes": [8], "layers": [1], "sparse_backend": "torch"},
    ),
    **COMMON,
)
CAMERA_TEACHER = TrainConfig(
    model=ModelConfig("small-resnet-gem", {"descriptor_dim": 12, "widths": [6, 8, 8]}), **COMMON
)
STUDENT = ModelConfig("small-resnet-gem", {"descriptor_dim": 8, "widths": [4, 8]})
ADAPTED = {"adaptor": "teacher"}
OPTIONS: dict[str, dict[str, Any]] = {"scicevpr": {**ADAPTED, "hand_over": False}, "afd": {}, "ickd": {}}
"""Of the methods that want others than an adaptor."""


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Session], list[Session]]:
    root = tmp_path_factory.mktemp("drives")
    for seed, name in enumerate(("sun", "overcast", "night")):
        loop_session(root / "train" / name, f"t-{name}", "train", 16, seed, labelled=name != "night", condition=name)
    for seed, name in enumerate(("sun", "night")):
        loop_session(root / "validation" / name, f"v-{name}", "validation", 16, seed, condition=name)
    return load_sessions([root / "train"]), load_sessions([root / "validation"])


@pytest.fixture(scope="module")
def teachers(
    sessions: tuple[list[Session], list[Session]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    runs = tmp_path_factory.mktemp("runs")
    for name, config in (("lidar", TEACHER), ("camera", CAMERA_TEACHER)):
        teach(config, *sessions, runs / name)
    return {name: runs / name for name in ("lidar", "camera")}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_moves_the_student_and_keeps_it_finite(
    name: str, sessions: tuple[list[Session], list[Session]], teachers: dict[str, Path], tmp_path: Path
) -> None:
    options = OPTIONS.get(name, ADAPTED)
    config = TrainConfig(model=STUDENT, method=MethodConfig(name, options), **COMMON)
    needs_maps = build_method(name, {key: value for key, value in options.items() if key != "adaptor"}).needs_maps
    distill(config, *sessions, tmp_path / "run", teachers["camera" if needs_maps else "lidar"])
    weights = load_run(tmp_path / "run")[0].state_dict()
    assert all(torch.isfinite(value).all() for value in weights.values())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    terms = {key: value for key, value in lines[0].items() if key.startswith("loss/") and key != "loss/task"}
    assert terms, "the distillation has terms of its own"
    assert all(value > 0 for value in terms.values())
