"""PCA after training: a run becomes one of shorter descriptors, which evaluates and exports like any other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from support.shallow import shallow_dinov2
from support.training_runs import STUDENT, write_drives
from training.__main__ import main
from training.data.dataset import Keyframes
from training.engine.config import ModelConfig, TaskConfig
from training.engine.descriptors import describe, preprocess_of
from training.engine.jobs import teach
from training.engine.runs import load_run
from training.models import MODELS, pca
from training.sessions import load_sessions
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.student import Student

NETVLAD = {"backbone": "resnet18", "clusters": 2}
DINO = {"backbone": "vit_small_patch14_dinov2", "height": 42, "width": 42, "width_out": 16, "layers": 2, "mixers": 1}
DIM = 6


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drives(tmp_path_factory.mktemp("drives"))


def train(drives: Path, out: Path, model: ModelConfig, side: int) -> Path:
    config = replace(STUDENT, model=model, height=side, width=side, steps=1, task=TaskConfig(normalise=True))
    teach(config, load_sessions([drives / "train"]), load_sessions([drives / "validation"]), out)
    return out


@pytest.fixture(scope="module")
def netvlad(drives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(drives, tmp_path_factory.mktemp("runs") / "netvlad", ModelConfig("netvlad", NETVLAD), 64)


def rows_of(run: Path, drives: Path) -> np.ndarray:
    model, config = load_run(run)
    preprocess = preprocess_of(config)
    return describe(model, Keyframes(load_sessions([drives / "train"]), preprocess), preprocess)


def test_a_reduced_run_is_scikit_learns_pca_of_the_run(
    netvlad: Path, drives: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reduce", "--run", str(netvlad), "--sessions", f"{drives}/train", "--dim", str(DIM)]) == 0
    out = netvlad.with_name(f"netvlad-pca{DIM}")
    before, after = rows_of(netvlad, drives), rows_of(out, drives)
    assert (before.shape[1], after.shape[1]) == (512, DIM)
    reference = PCA(DIM, whiten=True).fit(before.astype(np.float64))
    expected = reference.transform(before.astype(np.float64))
    signs = np.sign((expected * after).sum(axis=0))
    np.testing.assert_allclose(after * signs, expected, atol=5e-3)
    kept = reference.explained_variance_ratio_.sum()
    record = json.loads((out / "run.json").read_text())
    assert record["reduced_from"] == str(netvlad)
    assert record["variance_kept"] == pytest.approx(kept, rel=1e-4)
    assert f"{100 * kept:.1f} % of the variance of {len(before)} keyframes" in capsys.readouterr().out


def test_a_reduced_run_evaluates_and_exports(drives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with shallow_dinov2():
        run = train(drives, tmp_path / "scicevpr", ModelConfig("scicevpr", DINO), 42)
        _reduces_and_exports(run, drives, tmp_path)
    assert "AR@1" in capsys.readouterr().out


def _reduces_and_exports(run: Path, drives: Path, folder: Path) -> None:
    out, artefact = folder / "short", folder / "student.pt2"
    arguments = ["--sessions", f"{drives}/train", "--dim", str(DIM)]
    assert main(["reduce", "--run", str(run), *arguments, "--out", str(out)]) == 0
    assert main(["evaluate", "--model", str(out), "--sessions", f"{drives}/test"]) == 0
    assert main(["export", "--run", str(out), "--sessions", f"{drives}/validation", "--out", str(artefact)]) == 0
    student = Student.load(artefact)
    assert student.metadata.descriptor_dim == DIM
    session = load_sessions([drives / "test"])[0]
    found = student.describe([session.image(i) for i in range(4)])
    model, config = load_run(out)
    images = Keyframes([session], preprocess_of(config)).frames(range(4), images=True).images
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model(preprocess_of(config).normalise(images)), dim=1)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_what_cannot_be_reduced_says_why(
    netvlad: Path, drives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, short = tmp_path / "plain", tmp_path / "short"
    train(drives, plain, STUDENT.model, 24)
    common = ["--sessions", f"{drives}/train", "--dim"]
    assert main(["reduce", "--run", str(netvlad), *common, "5", "--out", str(short)]) == 0
    out = ["--out", str(tmp_path / "out")]
    able = ", ".join(name for name in MODELS if name in ("netvlad", "lsdnet", "super-cricavpr", "scicevpr"))
    for arguments, message in (
        ([str(plain), *common, "5", *out], f"has no PCA; these have: {able}"),
        ([str(short), *common, "3", *out], "were reduced to 5 already"),
        ([str(netvlad), *common, "72", *out], "more than 72 keyframes, and the sessions hold 72"),
        ([str(netvlad), *common, "513", *out], "--dim must be 1 to 512"),
        ([str(netvlad), *common, "0", *out], "--dim must be 1 to 512"),
        ([str(netvlad), *common, "5", "--out", str(short)], "holds a trained run already"),
        ([str(drives), *common, "5", *out], "not a finished run"),
    ):
        assert main(["reduce", "--run", *arguments]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_descriptors_that_differ_by_rounding_only_are_refused() -> None:
    rows = torch.rand(1, 8).repeat(30, 1)
    with pytest.raises(DataError, match="all alike: was the model trained"):
        pca.PCA(8, 3, whiten=True).fit(rows * (1 + 1e-7 * torch.randn(30, 8)))
