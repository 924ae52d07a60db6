"""The command that evaluates, beside traverses of one network: databases joined, and databases of another network."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from support.sessions import loop_session
from support.training_runs import STUDENT, write_drives
from training.__main__ import main
from training.data.dataset import Keyframes
from training.engine.descriptors import describe, preprocess_of
from training.engine.jobs import teach
from training.engine.runs import Run, load_run
from training.export import export_student
from training.models import build_model
from training.sessions import load_sessions
from vpr_kd_ros.errors import DataError


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drives(tmp_path_factory.mktemp("drives"))


def test_queries_are_searched_in_the_databases_of_their_region_together(
    drives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        config = replace(STUDENT, seed=seed)
        torch.manual_seed(seed)
        Run(tmp_path / f"{seed}", config).save_best(build_model(config.model.name, config.model.options), step=1)
    where = ["--databases", f"{drives}/train/sun", f"{drives}/train/overcast", "--queries", f"{drives}/train/sun"]
    models = ["--model", str(tmp_path / "0"), "--database_model", str(tmp_path / "1")]
    assert main(["evaluate", *models, *where, "--radius_m", "7", "--out", str(tmp_path / "out.json")]) == 0
    # By a loop: the second network's rows of both drives, the first network's queries.
    queries = load_sessions([drives / "train/sun"])
    databases = load_sessions([drives / "train/sun", drives / "train/overcast"])
    rows = []
    for run, asked in (("0", queries), ("1", databases)):
        model, config = load_run(tmp_path / run)
        preprocess = preprocess_of(config)
        found = describe(model, Keyframes(asked, preprocess), preprocess)
        rows.append(found / np.linalg.norm(found, axis=1, keepdims=True))
    positions = np.concatenate([database.positions for database in databases])[:, :2]
    best = (rows[0] @ rows[1].T).argmax(axis=1)
    right = np.linalg.norm(positions[best] - queries[0].positions[:, :2], axis=1) <= 7
    assert json.loads((tmp_path / "out.json").read_text())["ar1"] == pytest.approx(right.mean())
    assert main(["evaluate", "--model", str(tmp_path / "0"), *where[:3]]) == 1
    assert "wants --sessions, or --databases and --queries together" in capsys.readouterr().err


def test_what_was_trained_on_is_told(drives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, validation = load_sessions([drives / "train"]), load_sessions([drives / "validation"])
    teach(replace(STUDENT, steps=1), train, validation, tmp_path / "run")
    for names, told in ((("train/sun", "train/overcast"), True), (("test/a", "test/b"), False)):
        sessions = [f"{drives}/{name}" for name in names]
        assert main(["evaluate", "--model", str(tmp_path / "run"), "--sessions", *sessions]) == 0
        out = capsys.readouterr().out
        assert ("NOTICE: " in out) == told
        assert ("trained on train-overcast, train-sun" in out) == told
    with pytest.raises(DataError, match=r"--sessions: train-overcast: .*run was trained on them"):
        export_student(tmp_path / "run", tmp_path / "student.pt2", load_sessions([drives / "train/overcast"]))


def test_a_validation_that_measures_nothing_is_refused_before_the_first_step(drives: Path, tmp_path: Path) -> None:
    train, validation = load_sessions([drives / "train"]), load_sessions([drives / "validation"])
    elsewhere = loop_session(tmp_path / "elsewhere", "elsewhere", "elsewhere", 24, 0)
    for given in (validation[:1], [validation[0], elsewhere]):
        with pytest.raises(DataError, match=r"none of the sessions validation-.* has a right answer .*45 degrees"):
            teach(STUDENT, train, given, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_drives_that_count_from_different_origins_are_refused(drives: Path, tmp_path: Path) -> None:
    for number, session in enumerate(load_sessions([drives / "train"])):
        path = tmp_path / session.name
        shutil.copytree(session.path, path)
        info = json.loads((path / "session.json").read_text())
        info["calibration"]["nav_origin"] = [47.0 + number, 8.0, 400.0]
        (path / "session.json").write_text(json.dumps(info))
    moved = load_sessions([tmp_path])
    with pytest.raises(DataError, match=r"overcast.*sun.* of region 'train'.* different origins, .*--nav_origin"):
        Keyframes(moved, None)
    assert len(Keyframes([s for s in moved if s.name != "train-sun"], None)) == 48, "the third has no poses"


def test_a_database_of_other_descriptors_is_refused(
    drives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size in (("small", 8), ("large", 16)):
        config = replace(
            STUDENT, model=replace(STUDENT.model, options={**STUDENT.model.options, "descriptor_dim": size})
        )
        Run(tmp_path / name, config).save_best(build_model(config.model.name, config.model.options), step=1)
    models = ["--model", str(tmp_path / "small"), "--database_model", str(tmp_path / "large")]
    assert main(["evaluate", *models, "--sessions", f"{drives}/test"]) == 1
    assert "16 numbers" in capsys.readouterr().err
