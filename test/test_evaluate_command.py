"""The command that evaluates, beside traverses of one network: databases joined, and databases of another network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from support.training_runs import STUDENT, write_drives
from training.__main__ import main
from training.data.dataset import Keyframes
from training.engine.descriptors import describe, preprocess_of
from training.engine.runs import Run, load_run
from training.models import build_model
from training.sessions import load_sessions


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
