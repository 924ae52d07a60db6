"""Suites of comparisons: what they plan, what they count, and one run for real."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy import stats
from torch import Tensor, nn

from support.pages import without_pictures
from support.sessions import loop_session
from support.shallow import shallow_dinov2
from training.benchmark import tables
from training.benchmark.cells import RESULT, Workplace, find_cell, prepare_data, run_cell, start_cell
from training.benchmark.costs import cost_of, measure
from training.benchmark.report import write_tables
from training.benchmark.statistics import Difference, Estimate, gap_closed
from training.benchmark.suite import ALONE, FOLDER, TEACHER, Suite, load_suite, merged
from training.data.dataset import Keyframes
from training.distillation import build_method
from training.engine.config import to_dict
from training.engine.runs import Run, load_run
from training.evaluation.protocol import evaluate
from training.models import MODELS, build_model
from training.sessions import load_sessions
from vpr_kd_ros.errors import ConfigError, DataError
from vpr_kd_ros.preprocess import Preprocess

REPOSITORY = Path(__file__).resolve().parents[1]
SUITES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
OWN_AUGMENTATION = ("distilvpr", "distilvpr-ablation", "placing")
"""Suites whose students by themselves see two conditions and the taught ones six: each has the augmentation that is
best for it. In all others it is one for all."""


# --- plans --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUITES)
def test_shipped_suites_name_what_exists_and_change_one_thing_at_a_time(name: str) -> None:
    suite = load_suite(name)
    cells = {cell.name: cell for cell in suite.cells()}
    order = list(cells)
    for cell in cells.values():
        assert cell.config.model.name in MODELS
        for needed in filter(None, (cell.teacher, cell.start)):
            assert order.index(needed) < order.index(cell.name), "teachers come before their students"
        if cell.teacher and cell.config.method.name != "none":
            build_method(cell.config.method.name, cell.config.method.options, teacher_dim=64, student_dim=64)
    for table in suite.tables.values():
        for column in table.columns:
            for seed in suite.seeds:
                plain = to_dict(suite.cell(table, column, ALONE, seed).config)
                rows = [
                    to_dict(cell.config) for row in table.rows if (cell := suite.cell(table, column, row, seed)).teacher
                ]
                for taught in rows:
                    same = ["model", "precision", "pairing", "height", "width", "steps", "seed", "degradation"]
                    if name not in OWN_AUGMENTATION:
                        same.append("image_augmentation")
                    assert {key: taught[key] for key in same} == {key: plain[key] for key in same}
                    assert taught["image_augmentation"] == rows[0]["image_augmentation"]


SMALL: dict[str, Any] = {
    "title": "Small",
    "about": "For tests.",
    "seeds": [3, 4],
    "protocol": {"radius_m": 12.0},
    "training": {
        "batch": {"windows": 2, "places": 2, "views": 2},
        "pairing": {"positive_m": 12.0, "negative_m": 25.0},
        "height": 24,
        "width": 32,
        "steps": 2,
        "validate_every": 2,
    },
    "networks": {
        "Big": {"model": {"name": "small-resnet-gem", "options": {"descriptor_dim": 8, "widths": [8, 8]}}},
        "Small": {"model": {"name": "small-resnet-gem", "options": {"descriptor_dim": 8, "widths": [4, 4]}}},
    },
    "distillation": {"batch": {"anchors": 2, "neighbours": 1, "among": 2}},
    "methods": {"MSE": {"method": {"name": "mse"}}, "RKD": {"method": {"name": "rkd"}, "start": "student"}},
    "tables": {
        "one": {
            "title": "One",
            "columns": [{"teacher": "Big", "student": "Small", "paper": {"MSE": [80.5, 60.25]}}],
            "rows": ["MSE", "RKD"],
        },
        "two": {"title": "Two", "columns": [{"teacher": "Big", "student": "Small"}], "rows": ["MSE"]},
    },
}


def small(tmp_path: Path, **changes: Any) -> Suite:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return load_suite(str(path))


def test_trainings_that_tables_share_are_planned_once(tmp_path: Path) -> None:
    suite = small(tmp_path)
    names = [cell.name for cell in suite.cells()]
    assert len(names) == len(set(names)) == 1 + 2 * 3, "one teacher; of each seed the plain student and two rows"
    assert {cell.teacher for cell in suite.cells() if cell.teacher} == {"alone/big/seed-3"}
    rkd = find_cell(suite.cells(), "distilled/big--small--rkd/seed-4")
    assert rkd.start == "alone/small/seed-4"
    assert rkd.config.batch.anchors == 2
    assert rkd.config.batch.windows == 2
    other = suite.with_seeds([9])
    assert {cell.teacher for cell in other.cells() if cell.teacher} == {"alone/big/seed-3"}, "the same teacher"
    assert all(cell.name.endswith("seed-9") for cell in other.cells(["two"]) if cell.teacher)


def test_rows_of_the_same_training_share_its_cell(tmp_path: Path) -> None:
    table = {**SMALL["tables"]["two"], "rows": ["RKD", "relations"]}
    methods = {**SMALL["methods"], "relations": SMALL["methods"]["RKD"]}
    suite = small(tmp_path, methods=methods, tables={"two": table})
    own, again = (suite.cell(suite.tables["two"], suite.tables["two"].columns[0], row, 3) for row in table["rows"])
    assert own == again
    assert [cell.name for cell in suite.cells() if cell.teacher and cell.name.endswith("3")] == [own.name]


def test_rows_without_a_teacher_learn_by_themselves(tmp_path: Path) -> None:
    methods = {
        **SMALL["methods"],
        "again": {"method": {"name": "none"}, "start": "student", "steps": 1},
        "other": {"method": {"name": "none"}, "model": {"name": "structvpr"}},
    }
    table = {**SMALL["tables"]["two"], "rows": ["MSE", "again", "other"]}
    cells = {cell.name: cell for cell in small(tmp_path, methods=methods, tables={"two": table}).cells()}
    again, other = cells["alone/small--again/seed-4"], cells["alone/small--other/seed-4"]
    assert (again.teacher, again.start, again.config.steps) == ("", "alone/small/seed-4", 1)
    assert (other.teacher, other.start, other.config.model.options) == ("", "", {})
    assert again.config.batch.anchors == 2, "a row has the distillation's batches, with a teacher or without"
    assert list(cells).index("alone/small/seed-4") < list(cells).index(again.name)
    assert sum(bool(cell.teacher) for cell in cells.values()) == 2


def test_a_suite_extends_another(tmp_path: Path) -> None:
    small(tmp_path)
    child = {"extends": "small", "title": "Child", "training": {"steps": 7}, "tables": {"two": SMALL["tables"]["two"]}}
    (tmp_path / "child.yaml").write_text(yaml.safe_dump(child))
    suite = load_suite(str(tmp_path / "child.yaml"))
    assert (suite.name, suite.title, list(suite.tables)) == ("child", "Child", ["two"])
    assert {cell.config.steps for cell in suite.cells()} == {7}
    assert {cell.config.height for cell in suite.cells()} == {24}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tabels": {}}, "unknown key 'tabels'.*'tables'"),
        ({"seeds": []}, "seeds"),
        ({"methods": {"MSE": {"method": {"name": "mse"}, "stepps": 3}}}, "RKD"),
        ({"training": {"stepps": 3}}, "stepps"),
        ({"networks": {"Big": SMALL["networks"]["Big"]}}, "network 'Small' is not defined"),
        ({"costs": {"title": "", "height": 8, "width": 8, "networks": {"A": {"modle": {}}}}}, "A: unknown key modle"),
        (
            {"costs": {"title": "", "height": 8, "width": 8, "networks": {"A": {"model": {}, "paper": {"sec": 1}}}}},
            "A: unknown key sec",
        ),
    ],
)
def test_mistakes_in_a_suite_are_named_before_anything_is_trained(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        small(tmp_path, **changes)


def test_an_unknown_suite_suggests_the_near_one() -> None:
    with pytest.raises(ConfigError, match="distilvpr"):
        load_suite("destilvpr")


def test_merging_keeps_what_is_not_named_and_drops_the_options_of_another_model() -> None:
    base = {"model": {"name": "a", "options": {"x": 1, "y": 2}}, "steps": 5}
    changed = merged(base, {"model": {"options": {"x": 3}}})
    assert changed == {"model": {"name": "a", "options": {"x": 3, "y": 2}}, "steps": 5}
    assert merged(base, {"model": {"name": "b", "options": {"z": 1}}})["model"] == {"name": "b", "options": {"z": 1}}
    assert base["model"] == {"name": "a", "options": {"x": 1, "y": 2}}


# --- numbers ------------------------------------------------------------------------------------------------------


def test_estimates_are_students_t() -> None:
    values = [60.1, 63.4, 58.8, 61.0]
    found = Estimate.of(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert found.mean == pytest.approx(np.mean(values))
    assert found.deviation == pytest.approx(np.std(values, ddof=1))
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high))
    assert math.isnan(Estimate.of([1.0]).deviation)
    assert Estimate.of([]).seeds == 0


def test_rows_are_compared_seed_by_seed() -> None:
    row, base = {0: 40.0, 1: 30.0, 2: 50.0, 7: 99.0}, {0: 35.0, 1: 26.0, 2: 43.0, 8: 0.0}
    found = Difference.of(row, base)
    assert found.estimate.mean == pytest.approx((5 + 4 + 7) / 3)
    assert found.p == pytest.approx(stats.ttest_rel([40, 30, 50], [35, 26, 43]).pvalue)
    assert math.isnan(Difference.of({0: 1.0}, {0: 0.0}).p)
    assert gap_closed(row, base, teacher=85.0).mean == pytest.approx(np.mean([5 / 50, 4 / 59, 7 / 42]))
    assert gap_closed(row, base, teacher=43.0).seeds == 0, "one of the seeds has no gap"


def test_a_table_from_made_up_results(tmp_path: Path) -> None:
    place = Workplace(small(tmp_path), tmp_path / "out", tmp_path / "data")
    made_up = {"alone/big": (95.0,), "alone/small": (40.0, 44.0), "mse": (50.0, 58.0), "rkd": (41.0,)}
    for cell in place.suite.cells():
        key = next(key for key in made_up if key in cell.name)
        number = [3, 4].index(cell.config.seed)
        if number < len(made_up[key]):
            place.folder(cell.name).mkdir(parents=True)
            value = made_up[key][number] / 100
            # How a training was computed is told, and is no reason to refuse it.
            computed = {"precision": "bf16-mixed", "compile": True} if key == "rkd" else {}
            result = {
                "ar1": value,
                "ar1_percent": value + 0.01,
                "by_query_condition": {"night": value - 0.1},
                "ordered_pairs": 6,
                "queries": 60,
                "excluded": 0,
                "seconds": 360.0,
                "commit": "abc",
                "config": {**to_dict(cell.config), "start": "", **computed},
            }
            (place.folder(cell.name) / RESULT).write_text(json.dumps(result))
    filled = tables.fill(place, place.suite.tables["one"])
    assert filled.missing == 1
    assert filled.best(0, "ar1") == ["MSE", ALONE, "RKD"]
    mse = filled.entries["MSE"][0]
    assert mse.gain is not None
    assert mse.gain.estimate.mean == pytest.approx(12.0)
    assert mse.closed is not None
    assert mse.closed.mean == pytest.approx(100 * np.mean([10 / 55, 14 / 51]))
    text = tables.markdown(filled)
    assert "| MSE | **55.0 ± 5.7** | **54.0 ± 5.7** | +12.0 (0.11) |" in text
    assert "80.5 / 60.2" in text
    assert "1 trainings of this table are not done" in text
    rows = list(csv.DictReader(tables.comma_separated(filled).splitlines()))
    assert [row["method"] for row in rows] == [TEACHER, ALONE, "MSE", "RKD"]
    assert float(rows[2]["ar1_mean"]) == pytest.approx(54.0)
    assert rows[3]["seeds"] == "1"
    tables_of_suite = write_tables(place, {})
    assert list(tables_of_suite) == ["one", "two"]
    page = (place.out / "summary.md").read_text()
    # night is 10 points below the mean, and MSE is 50 and 58 with two seeds where the plain student is 40 and 44
    assert "| Student w/o distil. | 32.0 |" in page
    assert "MSE against the others, points of AR@1 (p): Student w/o distil. +12.0 (0.11); RKD +9.0." in page
    assert "6 of 7 trainings (5 in 32-true, 1 in bf16-mixed, compiled), 0.6 hours of training" in page


def test_costs_are_those_of_the_paper_where_its_networks_are_ours() -> None:
    table = load_suite("lsdnet").costs
    assert table is not None
    table = replace(table, networks={name: row for name, row in table.networks.items() if "VGG" not in name})
    found = measure(table)
    for name, (_, paper) in table.networks.items():
        # Table III leaves the 64 weights of LSDNet's clusters out, and counts a little that is no matrix.
        assert found[name].trainable - paper.trainable == (64 if name == "LSDNet" else 0)
        assert found[name].parameters - paper.parameters == (64 if name == "LSDNet" else 0)
        assert found[name].multiply_adds == pytest.approx(paper.multiply_adds, rel=0.05)
        assert found[name].milliseconds > 1
    text = tables.costs_markdown(table, found)
    assert "| MobileNetVLAD |" in text
    assert text.count("494,400") == 2
    rows = list(csv.DictReader(tables.costs_comma_separated(table, found).splitlines()))
    assert float(rows[0]["paper_multiply_adds"]) == 8.64


def test_multiply_adds_are_those_of_every_convolution_and_matrix() -> None:
    model = build_model("structvpr-seg", {})
    counted = []

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        counted.append(output.numel() * module.weight[0].numel())

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d)]
    model.eval()(None, None, torch.zeros(1, 64, 96, dtype=torch.uint8))
    for hook in hooks:
        hook.remove()
    assert cost_of(model, 64, 96).multiply_adds * 1e9 == pytest.approx(sum(counted))
    with pytest.raises(ConfigError, match="reads clouds"):
        cost_of(build_model("minkloc++3d", {}), 64, 96)


# --- for real -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for part in ("train", "validation", "test"):
        for seed, name in enumerate(("sun", "overcast", "night")):
            labelled = part != "train" or name != "night"
            loop_session(root / part / name, f"{part}-{name}", part, 12, seed, labelled=labelled, condition=name)
    return root


def test_a_cell_needs_its_teacher_and_is_not_mixed_with_another_configuration(tmp_path: Path, data: Path) -> None:
    suite = small(tmp_path)
    place = Workplace(suite, tmp_path / "out", data)
    cells = suite.cells()
    with pytest.raises(DataError, match="its teacher alone/big/seed-3 is not trained yet"):
        run_cell(place, find_cell(cells, "distilled/big--small--mse/seed-3"))
    teacher = find_cell(cells, "alone/big/seed-3")
    run_cell(place, teacher)
    result = place.result(teacher)
    assert result is not None
    assert result["config"]["seed"] == 3
    with pytest.raises(ConfigError, match="other values of steps"):
        place.result(replace(teacher, config=replace(teacher.config, steps=9)))


def test_results_of_other_sessions_or_another_protocol_are_refused(tmp_path: Path, data: Path) -> None:
    place = Workplace(small(tmp_path), tmp_path / "out", data)
    cell = find_cell(place.suite.cells(), "alone/small/seed-3")
    run_cell(place, cell)
    assert place.result(cell) is not None
    wider = replace(place.suite, protocol=replace(place.suite.protocol, radius_m=100.0))
    with pytest.raises(ConfigError, match=r"alone/small/seed-3: was measured with other protocol"):
        Workplace(wider, place.out, data).result(cell)
    other = tmp_path / "other"
    shutil.copytree(data, other)
    loop_session(other / "test" / "rain", "test-rain", "test", 12, 5, condition="rain")
    with pytest.raises(ConfigError, match="was measured with other sessions"):
        Workplace(place.suite, place.out, other).result(cell)
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    assert Workplace(place.suite, place.out, moved).result(cell) is not None, "the same sessions elsewhere"


def test_a_test_in_a_region_that_is_trained_in_is_refused(tmp_path: Path, data: Path) -> None:
    other = tmp_path / "data"
    shutil.copytree(data, other)
    loop_session(other / "test" / "more", "more", "train", 12, 5)
    with pytest.raises(DataError, match="train and test must be of different regions; both have train"):
        prepare_data(Workplace(small(tmp_path), tmp_path / "out", other), 1)


def test_a_cell_that_was_killed_before_its_first_state_begins_anew(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Workplace(small(tmp_path), tmp_path / "out", data)
    cell = find_cell(place.suite.cells(), "alone/small/seed-3")

    def killed(self: Run, state: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_last", killed)
        with pytest.raises(KeyboardInterrupt):
            run_cell(place, cell)
    assert (place.folder(cell.name) / "best.pt").exists()
    run_cell(place, cell)
    assert place.result(cell) is not None


def test_trainings_share_the_gpus_that_the_users_mask_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    command = [sys.executable, "-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"]
    for mask, expected in (("2,3", ["2", "3", "2"]), ("", ["0", "1", "0"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
        seen = []
        for slot in range(3):
            assert start_cell(command, tmp_path / "log", slot, 3).wait() == 0
            seen.append((tmp_path / "log").read_text().strip())
        assert seen == expected


def test_a_row_may_start_as_the_plain_student_without_a_teacher(tmp_path: Path, data: Path) -> None:
    methods = {"again": {"method": {"name": "none"}, "start": "student", "learning_rate": 0.0}}
    table = {**SMALL["tables"]["two"], "rows": ["again"]}
    suite = small(tmp_path, methods=methods, tables={"two": table}, seeds=[3])
    place = Workplace(suite, tmp_path / "out", data)
    cells = suite.cells()
    again = find_cell(cells, "alone/small--again/seed-3")
    with pytest.raises(DataError, match="its start alone/small/seed-3 is not trained yet"):
        run_cell(place, again)
    for name in ("alone/small/seed-3", again.name):
        run_cell(place, find_cell(cells, name))
    plain, started = (load_run(place.folder(name))[0] for name in ("alone/small/seed-3", again.name))
    theirs = dict(started.named_parameters())
    assert all(torch.equal(value, theirs[name]) for name, value in plain.named_parameters())


def test_a_suite_tells_which_descriptors_depend_on_what_is_described_with_them(tmp_path: Path, data: Path) -> None:
    options = {
        "backbone": "vit_small_patch14_dinov2",
        "height": 42,
        "width": 42,
        "width_out": 16,
        "layers": 1,
        "mixers": 1,
    }
    suite = small(
        tmp_path,
        training={**SMALL["training"], "height": 42, "width": 42, "steps": 1},
        networks={
            "Big": {"model": {"name": "super-cricavpr", "options": options}},
            "Small": {"model": {"name": "scicevpr", "options": options}},
        },
        methods={"distilled": {"method": {"name": "scicevpr"}}},
        tables={"two": {**SMALL["tables"]["two"], "rows": ["distilled"]}},
        distillation={},
        seeds=[3],
        query_batches=[1, 5],
    )
    place = Workplace(suite, tmp_path / "out", data)
    with shallow_dinov2():
        for cell in suite.cells():
            run_cell(place, cell)
        found = {cell.name: place.result(cell) for cell in suite.cells()}
        model, _ = load_run(place.folder("alone/big/seed-3"))
    # The teacher's, by a loop over the batches.
    sessions = load_sessions([data / "test"])
    keyframes = Keyframes(sessions, Preprocess(height=42, width=42))
    images = Preprocess(height=42, width=42).normalise(keyframes.images)
    with torch.inference_mode():
        database = torch.cat([model(images[i : i + 16]) for i in range(0, len(images), 16)]).numpy()
        for name, order in {"1": None, "5": range(36), "5 shuffled": np.random.default_rng(0).permutation(36)}.items():
            queries = np.zeros_like(database)
            size = 1 if order is None else 5
            numbers = list(range(36) if order is None else order)
            for start in range(0, 36, size):
                queries[numbers[start : start + size]] = model(images[numbers[start : start + size]]).numpy()
            parts = (np.split(rows, 3) for rows in (database, queries))
            expected = evaluate(sessions, next(parts), suite.protocol, next(parts)).ar_at_1
            result = found["alone/big/seed-3"]
            assert result is not None
            assert result["by_query_batch"][name] == pytest.approx(expected)
    for name in ("alone/small/seed-3", "distilled/big--small--distilled/seed-3"):
        result = found[name]
        assert result is not None
        assert set(result["by_query_batch"]) == {"1", "5", "5 shuffled"}
        assert len({round(value, 6) for value in (result["ar1"], *result["by_query_batch"].values())}) == 1
    filled = write_tables(place, {})
    page = (place.out / "summary.md").read_text()
    assert list(filled) == ["two"]
    assert "AR@1 by how many queries are described at once" in page
    assert "| method | 1 | 5 | 5 shuffled |" in page


def test_a_suite_runs_goes_on_and_reports(tmp_path: Path, data: Path) -> None:
    small(tmp_path)

    def benchmark(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "training", "benchmark", "--suite", str(tmp_path / "small.yaml")]
        where = ["--out", str(tmp_path / "out"), "--data", str(data), *options]
        return subprocess.run([*command, *where], cwd=REPOSITORY, capture_output=True, text=True, timeout=600)

    listed = benchmark("--list", "--seeds", "3").stdout.splitlines()
    assert listed[0].split()[-1] == "alone/big/seed-3"
    assert len(listed) == 4
    first = benchmark("--seeds", "3")
    assert first.returncode == 0, first.stderr[-2000:]
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").rglob(RESULT)}
    assert len(made) == 4
    # One training is lost: the same command makes it again and leaves the others alone.
    lost = tmp_path / "out" / "cells" / "distilled" / "big--small--rkd" / "seed-3" / RESULT
    lost.unlink()
    again = benchmark("--seeds", "3")
    assert again.returncode == 0, again.stderr[-2000:]
    assert {p for p, t in made.items() if p.stat().st_mtime_ns != t} == {lost}
    assert "| RKD |" in again.stdout
    page = (tmp_path / "out" / "report.html").read_text()
    assert "MSE" in page
    assert page.count("data:image/png") >= 14
    assert "http" not in without_pictures(page).replace("http-equiv", "")
    lost.unlink()
    partly = benchmark("--seeds", "3", "--report")
    assert partly.returncode == 0, partly.stderr[-2000:]
    assert "1 trainings of this table are not done." in partly.stdout
    assert not lost.exists()
    for name in ("one.md", "one.csv", "two.md"):
        assert (tmp_path / "out" / "tables" / name).exists()
    # Of results from elsewhere the tables are made; what a student learns from or starts with is trained again.
    for path in (tmp_path / "out" / "cells").rglob("*"):
        if path.is_file() and path.name != RESULT:
            path.unlink()
    kept = benchmark("--seeds", "3", "--report")
    assert kept.returncode == 0, kept.stderr[-2000:]
    assert kept.stdout.split("report:")[0] == partly.stdout.split("report:")[0]
    to_do = [line.split()[-1] for line in benchmark("--seeds", "3", "--list").stdout.splitlines()]
    assert to_do == ["alone/big/seed-3", "alone/small/seed-3", "distilled/big--small--rkd/seed-3"]
    others = {path: path.stat().st_mtime_ns for path in made if "mse" in str(path)}
    whole = benchmark("--seeds", "3")
    assert whole.returncode == 0, whole.stderr[-2000:]
    assert [line for line in whole.stdout.splitlines() if line[:1] == "|"] == [
        line for line in again.stdout.splitlines() if line[:1] == "|"
    ]
    assert others == {path: path.stat().st_mtime_ns for path in others}
