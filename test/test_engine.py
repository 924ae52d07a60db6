"""Teaching, distilling, exporting: the whole way on tiny drives."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from support.training_runs import STUDENT, TEACHER, metrics, write_drives
from training.__main__ import main
from training.data.dataset import Keyframes
from training.data.placing import PlacingConfig
from training.distillation import METHODS
from training.engine.config import MethodConfig, ModelConfig, TrainConfig, from_dict, to_dict
from training.engine.descriptors import describe, preprocess_of, split_by_session
from training.engine.jobs import distill, teach
from training.engine.optimisation import parameter_groups
from training.engine.runs import load_run
from training.evaluation.protocol import evaluate, normalised
from training.evaluation.results import Protocol
from training.export import export_student
from training.models import MODELS, build_model
from training.sessions import Session, load_sessions
from vpr_kd_ros.errors import ConfigError, DataError
from vpr_kd_ros.student import Student


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drives(tmp_path_factory.mktemp("drives"))


@pytest.fixture(scope="module")
def teacher(drives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "teacher"
    teach(TEACHER, load_sessions([drives / "train"]), load_sessions([drives / "validation"]), run)
    return run


def ar_at_1(run: Path, sessions: list[Session]) -> float:
    model, config = load_run(run)
    preprocess = preprocess_of(config)
    keyframes = Keyframes(sessions, preprocess)
    rows = describe(model, keyframes, preprocess)
    return evaluate(sessions, split_by_session(keyframes, rows), Protocol(config.radius_m)).ar_at_1


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_run(run)[0].state_dict()


def test_a_run_keeps_what_it_needs_to_be_understood(teacher: Path) -> None:
    assert yaml.safe_load((teacher / "config.yaml").read_text())["model"]["name"] == "minkloc++3d"
    record = json.loads((teacher / "run.json").read_text())
    assert record["keyframes"] == {"labelled": 48, "placed": 0, "all": 48}, (
        "a session without poses cannot teach a teacher"
    )
    assert 0 <= record["validation_ar1"] <= 1
    lines = [json.loads(line) for line in (teacher / "metrics.jsonl").read_text().splitlines()]
    assert record["validation_ar1"] == max(line.get("validation_ar1", 0) for line in lines)


def test_distillation_uses_every_session_and_repeats_itself(drives: Path, teacher: Path, tmp_path: Path) -> None:
    config = replace(STUDENT, method=MethodConfig("rkd", {}))
    train, validation = load_sessions([drives / "train"]), load_sessions([drives / "validation"])
    for name in ("once", "again"):
        distill(config, train, validation, tmp_path / name, teacher)
    distill(replace(config, seed=1), train, validation, tmp_path / "other", teacher)
    once, again, other = (weights(tmp_path / name) for name in ("once", "again", "other"))
    assert all(torch.equal(once[key], again[key]) for key in once)
    assert any(not torch.equal(once[key], other[key]) for key in once)
    record = json.loads((tmp_path / "once" / "run.json").read_text())
    assert record["keyframes"] == {"labelled": 48, "placed": 0, "all": 72}
    first = json.loads((tmp_path / "once" / "metrics.jsonl").read_text().splitlines()[0])
    assert {"loss", "loss/task"} < set(first)
    assert first["loss"] == pytest.approx(sum(v for k, v in first.items() if k.startswith("loss/")), rel=1e-5)


@pytest.mark.parametrize("method", ["none", "rkd"])
def test_a_student_learns_the_task_where_its_teacher_placed_a_drive(
    method: str, drives: Path, teacher: Path, tmp_path: Path
) -> None:
    config = replace(STUDENT, method=MethodConfig(method, {}), placing=PlacingConfig(precision=0.5, support=0))
    train, validation = load_sessions([drives / "train"]), load_sessions([drives / "validation"])
    distill(config, train, validation, tmp_path / "placed", teacher)
    record = json.loads((tmp_path / "placed" / "run.json").read_text())
    counts = record["keyframes"]
    assert 0 < counts["placed"] <= 24
    assert counts == {"labelled": 48 + counts["placed"], "placed": counts["placed"], "all": 72}
    first = json.loads((tmp_path / "placed" / "metrics.jsonl").read_text().splitlines()[0])
    assert ("loss/distance" in first) == (method == "rkd")
    with pytest.raises(ConfigError, match="placing needs a teacher"):
        teach(replace(config, method=MethodConfig()), train, validation, tmp_path / "alone")


def test_a_student_learns_places_it_was_never_shown(drives: Path, tmp_path: Path) -> None:
    config = replace(STUDENT, steps=60)
    teach(config, load_sessions([drives / "train"]), load_sessions([drives / "validation"]), tmp_path / "run")
    test = load_sessions([drives / "test"])
    chance = 3 / 24
    assert ar_at_1(tmp_path / "run", test) > 3 * chance


def test_an_exported_student_is_its_checkpoint(drives: Path, tmp_path: Path) -> None:
    teach(STUDENT, load_sessions([drives / "train"]), load_sessions([drives / "validation"]), tmp_path / "run")
    sessions = load_sessions([drives / "validation"])
    done = export_student(tmp_path / "run", tmp_path / "student.pt2", sessions)
    assert done.metadata.parity
    assert min(parity.cosine for parity in done.metadata.parity if parity.precision == "fp32") >= 0.9999
    student = Student.load(tmp_path / "student.pt2")
    assert student.metadata.calibration is not None
    assert student.metadata.training_run["config"] == to_dict(STUDENT)
    model, config = load_run(tmp_path / "run")
    preprocess = preprocess_of(config)
    expected = normalised(describe(model, Keyframes(sessions, preprocess), preprocess))
    images = [session.image(i) for session in sessions for i in range(len(session))]
    np.testing.assert_allclose(student.describe(images), expected, atol=2e-6)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["student.onnx", "student.pt2"]


def test_a_model_that_reads_clouds_is_not_exported(drives: Path, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only a camera"):
        export_student(teacher, tmp_path / "student.pt2", load_sessions([drives / "validation"]))
    assert not list(tmp_path.iterdir())


def unlabelled_validation(drives: Path, run: Path) -> None:
    teach(STUDENT, load_sessions([drives / "validation"]), load_sessions([drives / "train" / "night"]), run)


def same_region(drives: Path, run: Path) -> None:
    teach(STUDENT, load_sessions([drives / "train"]), load_sessions([drives / "train" / "sun"]), run)


def no_run(drives: Path, run: Path) -> None:
    config = replace(STUDENT, method=MethodConfig("rkd", {}))
    distill(config, load_sessions([drives / "train"]), load_sessions([drives / "test"]), run, drives)


def no_method(drives: Path, run: Path) -> None:
    distill(STUDENT, load_sessions([drives / "train"]), load_sessions([drives / "test"]), run, drives)


def method_without_teacher(drives: Path, run: Path) -> None:
    config = replace(STUDENT, method=MethodConfig("rkd", {}))
    teach(config, load_sessions([drives / "train"]), load_sessions([drives / "test"]), run)


@pytest.mark.parametrize(
    ("attempt", "kind", "message"),
    [
        (unlabelled_validation, DataError, "validation sessions need poses"),
        (same_region, DataError, "other regions"),
        (no_run, DataError, "not a finished run"),
        (no_method, ConfigError, "no distillation method"),
        (method_without_teacher, ConfigError, "needs a teacher"),
    ],
)
def test_wrong_combinations_say_what_to_do(
    drives: Path, tmp_path: Path, attempt: Callable[[Path, Path], None], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        attempt(drives, tmp_path / "run")


def test_a_finished_run_is_not_overwritten(drives: Path, teacher: Path) -> None:
    before = (teacher / "best.pt").read_bytes()
    with pytest.raises(DataError, match="holds a trained run already"):
        teach(TEACHER, load_sessions([drives / "train"]), load_sessions([drives / "validation"]), teacher)
    assert (teacher / "best.pt").read_bytes() == before


def test_a_damaged_checkpoint_is_named(teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes((teacher / "best.pt").read_bytes()[:2000])
    with pytest.raises(DataError, match=r"best\.pt: not a checkpoint"):
        load_run(tmp_path)


def test_configurations_survive_the_round_trip_and_refuse_strangers() -> None:
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(STUDENT)))) == STUDENT
    with pytest.raises(ConfigError, match="stepz"):
        from_dict(TrainConfig, {**to_dict(STUDENT), "stepz": 3})


def test_a_part_that_the_descriptor_has_not_is_named(drives: Path, tmp_path: Path) -> None:
    train, validation = load_sessions([drives / "train"]), load_sessions([drives / "validation"])
    config = replace(TEACHER, task=replace(TEACHER.task, parts={"image": 0.5}))
    with pytest.raises(ConfigError, match=r"descriptor of minkloc\+\+3d has no part 'image'; it has none"):
        teach(config, train, validation, tmp_path / "cloud")
    model = ModelConfig(
        "minkloc++", {"cloud_dim": 8, "image_dim": 8, "voxel_size": 2.0, "planes": [8, 16], "layers": [1, 1],
                      "image_network": "small-resnet", "sparse_backend": "torch"}
    )  # fmt: skip
    config = replace(TEACHER, model=model, steps=1, task=replace(TEACHER.task, parts={"cloud": 0.5}))
    teach(config, train, validation, tmp_path / "fusion")
    (line,) = [line for line in metrics(tmp_path / "fusion") if "loss" in line]
    assert line["loss"] == pytest.approx(line["loss/task"] + line["loss/task/cloud"])
    assert line["loss/task/cloud"] > 0


def test_clouds_and_images_learn_at_their_own_rate() -> None:
    fusion = build_model("minkloc++", {"voxel_size": 1.0, "sparse_backend": "torch"})
    groups = parameter_groups(fusion, replace(STUDENT, learning_rate=1e-4, cloud_learning_rate=1e-3))
    sizes = {group["lr"]: sum(p.numel() for p in group["params"]) for group in groups}  # type: ignore[attr-defined]
    cloud = build_model("minkloc++3d", {"sparse_backend": "torch"})
    assert sizes[1e-3] == sum(p.numel() for p in cloud.parameters())
    assert sizes[1e-4] + sizes[1e-3] == sum(p.numel() for p in fusion.parameters())
    # AdaFusion's branches are no models of their own; what weighs them reads both.
    fusion = build_model("adafusion", {})
    groups = parameter_groups(fusion, replace(STUDENT, learning_rate=1e-4, cloud_learning_rate=1e-3))
    fast = {id(p) for group in groups if group["lr"] == 1e-3 for p in group["params"]}  # type: ignore[attr-defined]
    named = {name for name, p in fusion.named_parameters() if id(p) in fast}
    assert named == {name for name, _ in fusion.named_parameters() if name.startswith(("cloud.", "cloud_attention."))}
    assert sum(p.numel() for p in fusion.cloud.parameters()) == 1_079_968


def test_the_command_line_teaches_and_evaluates(
    drives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "student.yaml"
    config.write_text(yaml.safe_dump(json.loads(json.dumps(to_dict(replace(STUDENT, steps=5, validate_every=5))))))
    common = ["--train", f"{drives}/train", "--validation", f"{drives}/validation"]
    assert main(["teach", "--config", str(config), *common, "--out", str(tmp_path / "run"), "--seed", "3"]) == 0
    assert load_run(tmp_path / "run")[1].seed == 3
    out = tmp_path / "evaluation.json"
    test = ["--sessions", f"{drives}/test", "--radius_m", "7"]
    assert main(["evaluate", "--model", str(tmp_path / "run"), *test, "--out", str(out)]) == 0
    assert "right within 7 m" in capsys.readouterr().out
    assert json.loads(out.read_text())["ordered_pairs"] == 2
    assert main(["evaluate", "--model", str(tmp_path / "nowhere"), *test]) == 1
    assert "not a finished run" in capsys.readouterr().err


def test_an_unknown_command_suggests_the_near_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evalute"]) == 2
    assert "did you mean 'evaluate'" in capsys.readouterr().err


def test_methods_are_listed_with_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    methods, teachers, students = capsys.readouterr().out.split("\n\n")
    more = [
        name
        for name, kind in MODELS.items()
        if kind.uses_clouds or kind.uses_labels or name == "super-cricavpr"  # which compares images of its batch
    ]
    for block, names in (
        (methods, METHODS),
        (teachers, more),
        (students, [name for name in MODELS if name not in more]),
    ):
        rows = [line.split(maxsplit=1) for line in block.splitlines() if line.startswith("  ")]
        assert [name for name, _ in rows] == list(names)
        assert all(len(what) > 10 for _, what in rows)
    assert "minkloc++3d" in teachers
    assert "small-resnet-gem" in students
