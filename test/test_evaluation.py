"""Recall against hand-computed cases and a naive evaluation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from support.sessions import RADIUS_M, loop_session
from training.evaluation.metrics import first_right_rank, one_percent, recall_at
from training.evaluation.protocol import evaluate
from training.evaluation.results import Protocol
from training.sessions import Session
from vpr_kd_ros.errors import DataError


@pytest.mark.parametrize(("size", "expected"), [(1, 1), (40, 1), (149, 1), (150, 2), (151, 2), (250, 2), (1000, 10)])
def test_one_percent_is_rounded_as_in_the_papers(size: int, expected: int) -> None:
    assert one_percent(size) == expected


def test_ranks_by_hand() -> None:
    right = np.array([[False, True, False], [True, False, False], [False, False, False]])
    ranked = np.array([[0, 1, 2], [0, 2, 1], [2, 1, -1]])
    ranks = first_right_rank(ranked, right)
    assert ranks.tolist() == [1, 0, 3]
    assert recall_at(ranks, 1) == pytest.approx(1 / 3)
    assert recall_at(ranks, 2) == pytest.approx(2 / 3)
    assert math.isnan(recall_at(ranks[:0], 1))


def test_missing_results_are_never_right() -> None:
    assert first_right_rank(np.array([[-1, -1]]), np.array([[True, True]])).tolist() == [2]


@pytest.fixture
def drives(tmp_path: Path) -> list[Session]:
    """Three drives around one loop, one around another, each in its own light."""
    return [
        loop_session(tmp_path / "a", "a", "north", frames=40, seed=1, condition="sun"),
        loop_session(tmp_path / "b", "b", "north", frames=30, seed=2, condition="night"),
        loop_session(tmp_path / "c", "c", "north", frames=25, seed=3, condition="snow"),
        loop_session(tmp_path / "d", "d", "south", frames=20, seed=4, condition="sun"),
    ]


def test_average_recall_against_a_naive_evaluation(drives: list[Session]) -> None:
    rng = np.random.default_rng(0)
    descriptors = [rng.normal(size=(len(s), 6)).astype(np.float32) for s in drives]
    result = evaluate(drives, descriptors, Protocol(radius_m=9.0))
    at_one, at_percent, names = [], [], []
    for d, database in enumerate(drives[:3]):
        for q, query in enumerate(drives[:3]):
            if q == d:
                continue
            hits_one = hits_percent = asked = 0
            for i in range(len(query)):
                near = [
                    j for j in range(len(database)) if math.dist(query.positions[i], database.positions[j]) <= 9.0
                ]  # fmt: skip
                if not near:
                    continue
                asked += 1
                cosine = [
                    float(descriptors[q][i] @ row / np.linalg.norm(descriptors[q][i]) / np.linalg.norm(row))
                    for row in descriptors[d]
                ]
                order = sorted(range(len(database)), key=lambda j: -cosine[j])
                hits_one += order[0] in near
                hits_percent += bool(set(order[: max(round(len(database) / 100), 1)]) & set(near))
            at_one.append(hits_one / asked)
            at_percent.append(hits_percent / asked)
            names.append((query.name, database.name))
    assert [(p.query, p.database) for p in result.pairs] == names
    assert result.ar_at_1 == pytest.approx(np.mean(at_one))
    assert result.ar_at_1_percent == pytest.approx(np.mean(at_percent))
    assert result.by_query_condition()["night"] == pytest.approx(
        np.mean([a for a, (query, _) in zip(at_one, names, strict=True) if query == "b"])
    )
    assert result.between_conditions()["night"]["snow"] == pytest.approx(at_one[names.index(("b", "c"))])
    assert math.isnan(result.between_conditions()["night"]["night"])
    summary = json.loads(json.dumps(result.summary(), allow_nan=False))
    assert "night" not in summary["between_conditions"]["night"]
    assert summary["between_conditions"]["night"]["snow"] == result.between_conditions()["night"]["snow"]


def test_perfect_and_useless_descriptors(drives: list[Session]) -> None:
    where = [s.positions[:, :2].astype(np.float32) / RADIUS_M for s in drives]
    assert evaluate(drives, where, Protocol(radius_m=10.0)).ar_at_1 == 1.0
    opposite = [-w if i == 0 else w for i, w in enumerate(where)]
    result = evaluate(drives[:2], opposite[:2], Protocol(radius_m=10.0))
    assert result.ar_at_1 == 0.0


def test_a_query_without_an_answer_is_left_out_and_counted(drives: list[Session]) -> None:
    where = [s.positions[:, :2].astype(np.float32) for s in drives]
    result = evaluate(drives[:2], where[:2], Protocol(radius_m=0.5))
    for pair in result.pairs:
        assert pair.queries + pair.excluded == (40 if pair.query == "a" else 30)
        assert pair.excluded > 0
        assert pair.recalls[1] == 1.0


def test_heading_can_be_asked_for(drives: list[Session]) -> None:
    where = [s.positions[:, :2].astype(np.float32) for s in drives]
    drives[1].quaternions[:] = drives[1].quaternions[:, [1, 0, 3, 2]] * np.array([-1, 1, 1, -1])
    turned = np.abs(np.angle(np.exp(1j * (drives[1].yaws[0] - drives[0].yaws[0]))))
    assert turned > 3
    assert evaluate(drives[:2], where[:2], Protocol(radius_m=9.0)).ar_at_1 == 1.0
    assert evaluate(drives[:2], where[:2], Protocol(9.0, heading_deg=40)).pairs[0].queries == 0


def test_sessions_without_poses_or_company_are_refused(tmp_path: Path, drives: list[Session]) -> None:
    unlabelled = loop_session(tmp_path / "u", "u", "north", frames=5, seed=5, labelled=False)
    with pytest.raises(DataError, match="no poses"):
        evaluate([drives[0], unlabelled], [np.ones((40, 2), np.float32), np.ones((5, 2), np.float32)], Protocol())
    with pytest.raises(DataError, match="no region has two sessions"):
        evaluate([drives[0], drives[3]], [np.ones((40, 2), np.float32), np.ones((20, 2), np.float32)], Protocol())
