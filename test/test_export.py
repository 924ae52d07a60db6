"""Exporting students: every architecture runs in ONNX Runtime, and what differs from its checkpoint is not written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from support.sessions import loop_session
from support.training_runs import STUDENT, write_drives
from training import parity
from training.__main__ import main
from training.engine.jobs import teach
from training.export import camera_program
from training.models import build_model, with_pca
from training.onnx_model import OPSET, to_onnx
from training.parity import Reference, require_parity
from training.sessions import load_sessions
from vpr_kd_ros.backends.half import to_half
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.preprocess import Preprocess
from vpr_kd_ros.program import check_signature
from vpr_kd_ros.student import Student
from vpr_kd_ros.student_file import StudentFile
from vpr_kd_ros.student_metadata import Parity, StudentMetadata

SMALL = {"descriptor_dim": 16, "widths": [8, 16]}
NETVLAD = {"backbone": "resnet18", "clusters": 4}
STUDENTS: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "small-resnet-gem": ("small-resnet-gem", {**SMALL, "output_norm": "batchnorm"}, (24, 32)),
    "resnet18-gem": ("resnet18-gem", {"descriptor_dim": 16}, (40, 48)),
    "mobilenetv2-gem": ("mobilenetv2-gem", {"descriptor_dim": 16}, (40, 48)),
    "minkloc++2d": ("minkloc++2d", {"descriptor_dim": 16}, (40, 48)),
    "netvlad": ("netvlad", NETVLAD, (40, 48)),
    "netvlad, untied, with PCA": ("netvlad", {**NETVLAD, "assignment": "untied", "pca_dim": 8}, (40, 48)),
    "lsdnet (SAVLAD)": ("lsdnet", {**NETVLAD, "attention_dim": 12}, (40, 48)),
    "lsdnet (SAVLAD), attention of residuals": (
        "lsdnet",
        {**NETVLAD, "attention_dim": 12, "attention_input": "residuals"},
        (40, 48),
    ),
    "structvpr": ("structvpr", {}, (40, 48)),
    "scicevpr": (
        "scicevpr",
        {"backbone": "vit_small_patch14_dinov2", "height": 42, "width": 56, "width_out": 16},
        (42, 56),
    ),
}


def cosines(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_runs_in_onnxruntime_in_any_batch(name: str) -> None:
    model_name, options, (height, width) = STUDENTS[name]
    torch.manual_seed(0)
    pca_dim = options.get("pca_dim", 0)
    model = build_model(model_name, {key: value for key, value in options.items() if key != "pca_dim"}).eval()
    images = torch.randn(5, 3, height, width)
    if pca_dim:
        with torch.no_grad():
            rows = model(torch.randn(40, 3, height, width), None)
        plain = {key: value for key, value in options.items() if key != "pca_dim"}
        model = with_pca(model_name, plain, model, pca_dim, rows).eval()
    preprocess = Preprocess(height, width)
    program = camera_program(model, preprocess)
    check_signature(Path("s.pt2"), program, StudentMetadata("s", "none", model.descriptor_dim, preprocess))
    exported = to_onnx(program)
    assert [entry.version for entry in onnx.load_model_from_string(exported).opset_import] == [OPSET]
    session = onnxruntime.InferenceSession(exported)
    with torch.no_grad():
        wanted = model(images, None).numpy()
    for batch in (1, 2, 5):
        (found,) = session.run(None, {"images": images[:batch].numpy()})
        np.testing.assert_allclose(found, wanted[:batch], atol=2e-5 * np.abs(wanted).max())
        assert cosines(found, wanted[:batch]).min() >= 0.9999
    half = onnxruntime.InferenceSession(to_half(exported))
    assert cosines(half.run(None, {"images": images.numpy()})[0], wanted).min() >= 0.999


# --- parity ----------------------------------------------------------------------------------------------------------


def test_recall_is_that_of_a_plain_loop(tmp_path: Path) -> None:
    sessions = [loop_session(tmp_path / str(i), str(i), "ab"[i // 2], 20 + i, i, clouds=False) for i in range(4)]
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal((len(s), 6)).astype(np.float32) for s in sessions]
    reference = Reference.of(sessions, rows, radius_m=30.0, images=50)
    assert 45 <= reference.images() <= 50
    answers = [rng.standard_normal((len(asked), 6)).astype(np.float32) for asked in reference.asked]
    right = queries = 0
    for q, query in enumerate(sessions):
        for d, database in enumerate(sessions):
            if q == d or query.region != database.region:
                continue
            for answer, frame in zip(answers[q], reference.asked[q], strict=True):
                gaps = [np.linalg.norm(query.positions[frame, :2] - place[:2]) for place in database.positions]
                if min(gaps) > 30.0:
                    continue
                queries += 1
                unit = [row / np.linalg.norm(row) for row in rows[d]]
                right += gaps[int(np.argmax([answer @ row for row in unit]))] <= 30.0
    recall, counted = reference.recall_at_1(answers)
    assert counted == queries
    assert recall == pytest.approx(right / queries)
    assert 0 < right < queries


GOOD = Parity("onnxruntime on cpu", "fp32", 0.99999, 0.5, 0.0, 100)


@pytest.mark.parametrize(
    ("changes", "queries"),
    [
        ({"cosine": 0.9998}, 10_000),
        ({"cosine": float("nan")}, 10_000),
        ({"precision": "fp16", "cosine": 0.9989}, 10_000),
        ({"recall_change": -0.0021}, 10_000),
        ({"recall_change": 0.0021}, 10_000),
        ({"recall_change": -0.02}, 100),
    ],
)
def test_what_differs_is_refused(changes: dict[str, Any], queries: int) -> None:
    with pytest.raises(DataError, match="not written"):
        require_parity([GOOD, replace(GOOD, **changes)], queries)


def test_what_is_near_enough_is_not_refused() -> None:
    require_parity([GOOD, replace(GOOD, precision="fp16", cosine=0.9991, recall_change=-0.0019)], 10_000)
    require_parity([replace(GOOD, recall_change=0.01)], 100)  # one query of a hundred


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    drives = write_drives(tmp_path_factory.mktemp("drives"))
    folder = tmp_path_factory.mktemp("runs") / "student"
    teach(
        replace(STUDENT, steps=4, validate_every=4),
        load_sessions([drives / "train"]),
        load_sessions([drives / "validation"]),
        folder,
    )
    return folder, drives / "validation"


def test_export_prints_and_stores_the_parity_of_every_runtime(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["export", "--run", str(run[0]), "--sessions", str(run[1]), "--out", str(tmp_path / "s.pt2")])
    out = capsys.readouterr().out
    stored = StudentFile.open(tmp_path / "s.onnx").metadata
    assert stored == StudentFile.open(tmp_path / "s.pt2").metadata
    assert {(entry.runtime, entry.precision) for entry in stored.parity} >= {
        ("torch on cpu", "fp32"),
        ("onnxruntime on cpu", "fp32"),
        ("float16 graph in onnxruntime on cpu", "fp16"),
    }
    for entry in stored.parity:
        assert f"{entry.runtime}, {entry.precision}: cosine {entry.cosine:.7f}" in out
        assert entry.images == 48
    halves = [entry for entry in stored.parity if entry.precision == "fp16"]
    assert all(0.999 <= entry.cosine < 1 - 1e-7 for entry in halves)
    session = load_sessions([run[1]])[0]
    rows = [Student.load(tmp_path / name, notice=print).describe([session.image(0)]) for name in ("s.pt2", "s.onnx")]
    np.testing.assert_allclose(rows[0], rows[1], atol=2e-6)


def test_a_student_that_differs_is_not_written(
    run: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose ONNX is of other weights, as an exporter with a fault would write it."""
    model = build_model("small-resnet-gem", {**SMALL, "output_norm": "batchnorm"})
    wrong = to_onnx(camera_program(model, Preprocess(24, 32)))
    monkeypatch.setattr("training.export.to_onnx", lambda program: wrong)
    (tmp_path / "s.pt2").write_bytes(b"the one before")
    assert main(["export", "--run", str(run[0]), "--sessions", str(run[1]), "--out", str(tmp_path / "s.pt2")]) == 1
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("s.pt2", b"the one before")]


def test_precisions_that_are_not_wanted_are_not_asked(
    run: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "LEAST_COSINE", {"fp32": 0.9999, "fp16": 1.1})
    arguments = ["export", "--run", str(run[0]), "--sessions", str(run[1]), "--out", str(tmp_path / "s.pt2")]
    assert main(arguments) == 1
    assert main([*arguments, "--precisions", "fp32"]) == 0
    assert {entry.precision for entry in StudentFile.open(tmp_path / "s.pt2").metadata.parity} == {"fp32"}
