"""Precision, recall and errors of the best matches, against scikit-learn and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve

from support.sessions import loop_session
from training.evaluation.precision import precision_recall
from training.evaluation.protocol import Traverse, evaluate, evaluate_queries
from training.evaluation.results import Protocol
from vpr_kd_ros.errors import ConfigError, DataError


@pytest.mark.parametrize("distinct", [5, 1000])
def test_the_curve_is_scikit_learns_where_every_query_has_an_answer(distinct: int) -> None:
    rng = np.random.default_rng(3)
    similarity = rng.integers(0, distinct, 200) / distinct  # with few distinct values most are ties
    right = rng.random(200) < similarity
    curve = precision_recall(similarity, right, np.ones(200, dtype=bool))
    precision, recall, thresholds = precision_recall_curve(right, similarity)
    np.testing.assert_allclose(curve.thresholds, thresholds[::-1])
    np.testing.assert_allclose(curve.precision, precision[:-1][::-1])
    np.testing.assert_allclose(curve.recall, recall[:-1][::-1] * right.mean())
    assert curve.auc == pytest.approx(average_precision_score(right, similarity) * right.mean())


def test_recall_at_a_precision_by_hand() -> None:
    right = np.array([True, True, False, True, False])
    answerable = np.array([True, True, True, True, False])
    curve = precision_recall(np.array([0.9, 0.8, 0.7, 0.6, 0.5]), right, answerable)
    assert curve.recall_at(1.0) == 0.5
    assert curve.threshold_at(1.0) == 0.8
    assert curve.recall_at(0.75) == 0.75
    assert curve.threshold_at(0.75) == 0.6
    assert curve.recall_at(0.99) == 0.5
    assert precision_recall(np.array([0.9]), np.array([False]), np.array([True])).recall_at(0.99) == 0.0


def test_a_tie_between_right_and_wrong_is_not_won_by_order() -> None:
    curve = precision_recall(np.array([0.9, 0.9]), np.array([True, False]), np.array([True, True]))
    assert curve.recall_at(1.0) == 0.0
    assert curve.auc == pytest.approx(0.25)


def test_frames_count_instead_of_metres_and_need_no_poses(tmp_path: Path) -> None:
    drives = [loop_session(tmp_path / n, n, "r", 12, seed=i, labelled=False) for i, n in enumerate("ab")]
    exact = np.eye(12, dtype=np.float32)
    shifted = np.roll(exact, 2, axis=0)  # the picture of frame i looks like frame i - 2 of the other
    for frames, expected in ((1, 0.0), (2, 10 / 12)):
        assert evaluate(drives, [exact, shifted], Protocol(frames=frames)).ar_at_1 == pytest.approx(expected)
    with pytest.raises(DataError, match="has no poses"):
        evaluate(drives, [exact, shifted], Protocol())


def test_queries_are_searched_in_all_databases_of_their_region(tmp_path: Path) -> None:
    """Half of the loop is in one database drive, half in another: only together they answer every query."""
    whole = loop_session(tmp_path / "whole", "whole", "r", 20, seed=0)
    other = loop_session(tmp_path / "other", "other", "elsewhere", 20, seed=0)
    rows = np.eye(20, dtype=np.float32)
    first, second = rows.copy(), rows.copy()
    first[10:], second[:10] = -1.0, -1.0
    protocol = Protocol(radius_m=3.0)
    joined = evaluate_queries([whole, whole, other], [whole], [first, second, rows], [rows], protocol)
    alone = evaluate_queries([whole], [whole], [first], [rows], protocol)
    assert joined.ar_at_1 == 1.0
    assert joined.pairs[0].database_size == 40
    assert alone.ar_at_1 == 0.5
    assert joined.error_m(0.99) == 0.0
    assert len(Traverse.joined([whole, other])) == 40
    with pytest.raises(DataError, match="'elsewhere' has queries and no database"):
        evaluate_queries([whole], [other], [rows], [rows], protocol)
    with pytest.raises(ConfigError, match="frames"):
        evaluate_queries([whole], [whole], [rows], [rows], Protocol(frames=1))


def test_errors_are_of_what_the_threshold_accepts(tmp_path: Path) -> None:
    drives = [loop_session(tmp_path / n, n, "r", 20, seed=i) for i, n in enumerate("ab")]
    rows = np.eye(20, dtype=np.float32)
    unsure = rows.copy()
    unsure[0] = 0.6 * rows[10] + 0.1  # frame 0 looks a little like the far side of the loop
    result = evaluate(drives, [rows, unsure], Protocol(radius_m=5.0))
    assert result.error_m(1.0) == 0.0
    assert result.precision_recall.recall_at(1.0) == pytest.approx(38 / 40)
    assert max(pair.answers.error_m.max() for pair in result.pairs) == pytest.approx(80.0)
    summary = result.summary()
    assert summary["recall_at_precision"]["1.0"] == pytest.approx(38 / 40)
    assert summary["by_region"] == {"r": pytest.approx(summary["ar1"])}
