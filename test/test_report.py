"""The demo's report: what it says, and that it says it whatever happened."""

from __future__ import annotations

import html
import importlib
import json
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from support.demo_folder import CONDITIONS, PLACES, make_demo
from support.pages import pictures, without_pictures
from training.demo.live import Live
from training.demo.report import choose, condition_groups, gap_sentence, next_commands, write_report
from training.evaluation import plots
from training.evaluation.training_log import read_curve
from training.sessions import load_sessions
from vpr_kd_ros.errors import DataError


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A demo's folder and its page."""
    out = tmp_path_factory.mktemp("demo") / "out"
    path = write_report(out, make_demo(out))
    assert path == out / "report.html"
    return out, path.read_text()


def decoded(content: bytes) -> NDArray[np.uint8]:
    image = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return np.asarray(image)


def text_of(page: str) -> str:
    """What a reader sees, spaces collapsed."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def test_the_page_holds_the_numbers(demo: tuple[Path, str]) -> None:
    out, page = demo
    text, live = text_of(page), json.loads((out / "summary.json").read_text())["live"]
    for model, ar1, one_percent in (
        ("teacher LiDAR", "81.2", "91.2"),
        ("plain student camera", "43.8", "53.8"),
        ("distilled student camera", "56.2", "66.2"),
    ):
        assert f"{model} {ar1} % {one_percent} %" in text
    # 12.5 of 37.5 points.
    assert "Distillation closed 33 % of the gap" in text
    assert "Right is within 17 m" in text
    assert "56 ordered pairs" in text
    assert "5432 queries, 19 more left out" in text
    assert "One seed (7)" in text
    assert 0 < live["right"] < live["accepted"] < live["frames"]
    assert f"{100 * live['precision']:.1f} % precision" in text
    assert f"{100 * live['recall']:.1f} % recall" in text
    assert f"{live['accepted']} of {live['frames']} frames accepted" in text
    assert f"p99 {live['latency_ms']['p99']:.0f} ms" in text
    assert "321 s" in text
    assert "876 MB" in text
    assert "1.23 kB" in text
    assert "1,234,567" in text


def test_values_are_escaped(demo: tuple[Path, str]) -> None:
    _, page = demo
    assert "A &amp; B" in page
    assert "probability &lt;0.5" in page


def test_the_page_needs_no_network(demo: tuple[Path, str]) -> None:
    _, page = demo
    bare = without_pictures(page)
    assert "http" not in bare
    assert "//" not in bare
    assert "<script" not in bare
    assert "@import" not in bare
    assert "url(" not in bare
    assert not re.findall(r'(?:src|href)="[^"]+"', bare)


def test_every_picture_decodes(demo: tuple[Path, str]) -> None:
    out, page = demo
    kinds = []
    for kind, content in pictures(page):
        kinds.append(kind)
        assert decoded(content).std() > 0
    assert kinds.count("png") == 5
    assert kinds.count("jpeg") > len(CONDITIONS)
    for name in ("route.png", "recall.png", "gallery.png"):
        assert min(decoded((out / name).read_bytes()).shape[:2]) > 200


def test_the_town_is_shown_in_each_condition_with_what_training_had_of_it(demo: tuple[Path, str]) -> None:
    _, page = demo
    text = text_of(page)
    assert "sun with poses night without poses dusk never seen in training" in text


def test_no_claim_of_this_machine(demo: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    out, _ = demo
    monkeypatch.chdir(out.parent)
    page = write_report(out, json.loads((out / "summary.json").read_text())).read_text()
    assert "student:=out/student.pt2" in page
    assert str(out) not in page


@pytest.mark.filterwarnings("error")
def test_nothing_accepted_and_no_validation(tmp_path: Path) -> None:
    summary = make_demo(tmp_path, accept=False, validation=False)
    assert summary["live"]["precision"] is None
    text = text_of(write_report(tmp_path, summary).read_text())
    assert "Nothing was accepted" in text
    assert "– precision" in text
    assert "0 of 24 frames accepted" in text
    assert "Accepted and right: 0 of 0 None." in text
    assert "Refused: it does not know: 6 of 24" in text
    assert "no candidate" in text
    assert "teacher – – 33" in text


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    summary = make_demo(tmp_path)
    (tmp_path / "evaluation" / "student.json").unlink()
    with pytest.raises(DataError, match=r"student\.json"):
        write_report(tmp_path, summary)


def test_damaged_metrics_are_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "loss": 0.5}\n{"step": 20, "lo')
    with pytest.raises(DataError, match=r"metrics\.jsonl"):
        read_curve(path, "a run")


@pytest.mark.parametrize(
    ("teacher", "plain", "distilled", "words"),
    [
        (0.8, 0.4, 0.5, "closed 25 % of the gap between plain student and teacher: 10.0 of 40.0 points"),
        (0.8, 0.4, 0.9, "closed 125 % of the gap"),
        (0.8, 0.4, 0.35, "did not close the gap of 40.0 points .* at -5.0 points"),
        (0.4, 0.5, 0.6, "not better than the plain student .* no gap to close; .* at \\+10.0 points"),
    ],
)
def test_the_gap_is_told_as_it_is(teacher: float, plain: float, distilled: float, words: str) -> None:
    assert re.search(words, gap_sentence(teacher, plain, distilled))


def test_conditions_are_grouped_by_what_training_had(demo: tuple[Path, str]) -> None:
    sessions = load_sessions([demo[0] / "sessions" / "train"])
    groups = condition_groups(sessions, dict.fromkeys(["snow", "night", "dusk", "sun"], 0.5))
    assert list(groups.values()) == [["sun"], ["night"], ["dusk", "snow"]]


def test_examples_spread_over_the_drive_and_show_every_frame_of_a_rare_outcome(demo: tuple[Path, str]) -> None:
    live = Live.from_watch(json.loads((demo[0] / "live" / "live.json").read_text()))
    right = np.flatnonzero(live.accepted & live.right(12.0))
    chosen = choose(live, "right", 12.0, 3)
    assert chosen.tolist() == [right[0], right[(len(right) - 1) // 2], right[-1]]
    wrong = np.flatnonzero(live.accepted & ~live.right(12.0))
    assert choose(live, "wrong", 12.0, 50).tolist() == wrong.tolist()


def test_the_commands_it_recommends_exist() -> None:
    for _, commands in next_commands("out"):
        for command in commands.replace("config/", f"{Path(__file__).parents[1]}/config/").splitlines():
            words = shlex.split(command)
            if words[:3] == ["python", "-m", "training"]:
                module = importlib.import_module(f"training.commands.{words[3]}")
                module.parser().parse_args(words[4:])


def test_bars_have_the_heights_of_the_recalls_and_leave_out_what_is_missing() -> None:
    recalls = {"a": {"sun": 0.25, "fog": float("nan")}, "b": {"sun": 0.5, "fog": 1.0}}
    figure = plots.recall_by_condition(recalls, {"seen": ["fog", "sun"], "never": []})
    heights = [[bar.get_height() for bar in bars] for bars in figure.axes[0].containers]
    np.testing.assert_allclose(heights, [[np.nan, 25.0], [100.0, 50.0]])
    assert {text.get_text() for text in figure.axes[0].texts} >= {"25", "50", "100", "seen", ""}
    assert "never" not in {text.get_text() for text in figure.axes[0].texts}


def test_heat_maps_have_queries_in_rows() -> None:
    tables = {"a": {"sun": {"fog": 0.25}, "fog": {"sun": 0.75, "fog": float("nan")}}}
    figure = plots.recall_between_conditions(tables, ["sun", "fog"])
    shown = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(shown.filled(-1), [[-1, 25.0], [75.0, -1]])


def test_the_route_draws_each_outcome_once() -> None:
    truth = np.array([[0.0, 0.0], [10.0, 0.0], [20.0, 0.0], [30.0, 0.0]])
    estimates = np.array([[1.0, 0.0], [np.nan, np.nan], [90.0, 0.0], [30.0, 1.0]])
    accepted = np.array([True, False, True, True])
    right = np.array([True, False, False, True])
    axes = plots.route(truth, estimates, accepted, right, np.zeros((PLACES, 2))).axes[0]
    drawn = [np.asarray(points.get_offsets()).tolist() for points in axes.collections]
    assert [len(points) for points in drawn] == [PLACES, 1, 2, 1]
    assert drawn[3] == [[20.0, 0.0]]
    # A line from truth to estimate for each of the three published positions, none for the refused one.
    ends = sorted(line.get_xdata()[1] for line in axes.lines)
    assert ends == [1.0, 30.0, 90.0]
