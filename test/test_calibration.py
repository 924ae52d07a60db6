"""The logistic fit against its optimality conditions, margins against loops, and degenerate data."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from vpr_kd_ros.calibration import (
    MAX_LOG_RATIO,
    PRIOR_DEVIATION,
    Calibration,
    Evidence,
    Filtered,
    Spread,
    margins,
    scores,
)
from vpr_kd_ros.errors import DataError

Floats = NDArray[np.float64]


def sample(seed: int, count: int, weights: tuple[float, float, float]) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    s, m = rng.uniform(0.2, 1.0, count), rng.uniform(0.0, 0.5, count)
    probability = 1.0 / (1.0 + np.exp(-(weights[0] + weights[1] * s + weights[2] * m)))
    return s, m, rng.uniform(size=count) < probability


def objective(parameters: Floats, s: Floats, m: Floats, right: NDArray[np.bool_]) -> float:
    """The penalised likelihood as its definition has it, in the raw features."""
    above, below = right.sum(), (~right).sum()
    targets = np.where(right, (above + 1) / (above + 2), 1 / (below + 2))
    p = 1.0 / (1.0 + np.exp(-(parameters[0] + parameters[1] * s + parameters[2] * m)))
    prior = ((parameters[1] * s.std()) ** 2 + (parameters[2] * m.std()) ** 2) / (2 * PRIOR_DEVIATION**2)
    return float(prior - (targets * np.log(p) + (1 - targets) * np.log(1 - p)).sum())


@pytest.mark.parametrize("weights", [(-6.0, 8.0, 6.0), (-4.0, 5.0, -7.0), (3.0, -6.0, 4.0)])
def test_the_fit_is_the_optimum_within_its_bounds(weights: tuple[float, float, float]) -> None:
    s, m, right = sample(0, 400, weights)
    fit = Calibration.fit(s, m, right)
    found = np.array([fit.intercept, fit.similarity_weight, fit.margin_weight])
    step = 1e-5
    for i in range(3):
        shift = np.zeros(3)
        shift[i] = step
        slope = (objective(found + shift, s, m, right) - objective(found - shift, s, m, right)) / (2 * step)
        at_bound = i > 0 and found[i] < 1e-9
        # At a bound the objective may only rise inwards.
        assert slope > 0 if at_bound else abs(slope) < 1e-3
    assert (found[1:] >= 0).all()
    assert (found[1] > 1e-9, found[2] > 1e-9) == (weights[1] > 0, weights[2] > 0)


def test_the_fit_recovers_what_the_data_were_drawn_from() -> None:
    s, m, right = sample(1, 50_000, (-6.0, 8.0, 6.0))
    fit = Calibration.fit(s, m, right, cluster_radius_m=7.0)
    np.testing.assert_allclose([fit.intercept, fit.similarity_weight, fit.margin_weight], [-6, 8, 6], rtol=0.05)
    assert (fit.right, fit.wrong, fit.cluster_radius_m) == (right.sum(), (~right).sum(), 7.0)


def test_more_similarity_or_margin_is_never_less_probable() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        count = int(rng.integers(1, 12))
        fit = Calibration.fit(rng.uniform(-1, 1, count), rng.uniform(0, 1, count), rng.uniform(size=count) < 0.5)
        grid = np.linspace(-1, 1, 50)
        for other in (0.0, 0.3):
            assert (np.diff([fit.probability(s, other) for s in grid]) >= 0).all()
            assert (np.diff([fit.probability(other, m) for m in grid]) >= 0).all()


def test_degenerate_data_have_a_defined_fit() -> None:
    rng = np.random.default_rng(3)
    s, m = rng.uniform(size=10), rng.uniform(size=10)
    everything, nothing = Calibration.fit(s, m, np.ones(10)), Calibration.fit(s, m, np.zeros(10))
    for x in (-1.0, 0.0, 1.0):
        assert everything.probability(x, x) == pytest.approx(11 / 12, abs=1e-6)
        assert nothing.probability(x, x) == pytest.approx(1 / 12, abs=1e-6)
    assert Calibration.fit([0.5], [0.1], [True]).probability(0.9, 0.0) == pytest.approx(2 / 3, abs=1e-6)
    constant = Calibration.fit(np.full(10, 0.7), m, m > 0.5)
    assert constant.similarity_weight == 0.0
    assert constant.margin_weight > 0.0
    separable = Calibration.fit([0.1, 0.2, 0.8, 0.9], [0.0] * 4, [False, False, True, True])
    assert 0.5 < separable.probability(0.9, 0.0) < 1.0


def test_every_argument_gives_a_probability() -> None:
    fit = Calibration(-5.0, 400.0, 300.0, 10.0, 3, 3)
    for s, m in itertools.product((-np.inf, -1e30, -1.0, 0.5, 1e30, np.inf, np.nan), repeat=2):
        probability = fit.probability(s, m)
        assert 0.0 <= probability <= 1.0
        if not (np.isfinite(s) and np.isfinite(m)):
            assert probability == 0.0


def test_the_threshold_is_the_least_similarity_that_is_enough() -> None:
    s, m, right = sample(4, 300, (-6.0, 8.0, 6.0))
    fit = Calibration.fit(s, m, right)
    for probability in (0.3, 0.5, 0.8):
        threshold = fit.threshold(probability, 0.1)
        assert threshold is not None
        assert fit.probability(threshold, 0.1) >= probability
        assert fit.probability(threshold - 1e-9, 0.1) < probability
    assert fit.threshold(1.0, 0.0) is None
    assert fit.threshold(0.0, 0.0) == -1.0


def test_margins_against_loops() -> None:
    rng = np.random.default_rng(5)
    for _ in range(30):
        k = int(rng.integers(1, 8))
        s = np.sort(rng.uniform(-1, 1, k))[::-1].astype(np.float32)
        positions = rng.uniform(0, 20, (k, 3))
        wanted = []
        for i in range(k):
            others = [float(s[j]) for j in range(k) if np.linalg.norm(positions[i] - positions[j]) > 8.0]
            wanted.append(float(s[i]) - (max(others) if others else float(s[-1])))
        found = margins(s, positions, 8.0)
        np.testing.assert_allclose(found, wanted, atol=1e-12)
        assert found[0] >= 0.0
    assert margins(np.zeros(0), np.zeros((0, 3)), 8.0).shape == (0,)


def test_round_trip_and_bad_values() -> None:
    fit = Calibration.fit(*sample(6, 50, (-6.0, 8.0, 6.0)))
    values = fit.to_dict()
    assert Calibration.from_dict(values) == fit
    for broken in (
        {**values, "margin_weight": -1.0},
        {**values, "intercept": float("nan")},
        {**values, "intercept": "1"},
        {**values, "colour": 1},
        {key: value for key, value in values.items() if key != "right"},
    ):
        with pytest.raises(DataError, match="calibration"):
            Calibration.from_dict(broken)
    with pytest.raises(DataError, match="calibration"):
        Calibration.fit([], [], [])
    with pytest.raises(DataError, match="finite"):
        Calibration.fit([np.nan], [0.0], [True])
    with pytest.raises(DataError, match="calibration"):
        Calibration.fit([0.1, 0.2], [0.0, 0.0], [True])


def test_evidence_is_the_log_of_the_ratio_of_the_densities() -> None:
    """Similarities of two normal densities of one deviation: the log ratio is linear in them, with a known slope."""
    rng = np.random.default_rng(7)
    there = np.concatenate([np.ones(4000, dtype=bool), np.zeros(40_000, dtype=bool)])
    s = np.where(there, rng.normal(0.6, 0.1, len(there)), rng.normal(0.4, 0.1, len(there)))
    fit = Evidence.fit(s, np.zeros(len(s)), there)
    for x in (0.35, 0.5, 0.65):
        exact = ((x - 0.4) ** 2 - (x - 0.6) ** 2) / (2 * 0.1**2)
        assert fit.log_ratios([x], [])[0] == pytest.approx(exact, abs=0.25)
    assert fit.score_weight == 0.0
    assert np.abs(fit.log_ratios([-50.0, 50.0], [])).tolist() == [MAX_LOG_RATIO, MAX_LOG_RATIO]
    with pytest.raises(DataError, match="pairs"):
        Evidence.fit([0.1, 0.2], [0.0, 0.0], [True, True])


def test_scores_do_not_change_when_all_similarities_move_alike() -> None:
    rng = np.random.default_rng(8)
    background, s = rng.normal(0.3, 0.1, 100), rng.normal(0.5, 0.1, 5)
    wanted = [(x - background.mean()) / background.std() for x in s]
    np.testing.assert_allclose(scores(s, background), wanted)
    np.testing.assert_allclose(scores(0.5 * s + 0.2, 0.5 * background + 0.2), wanted)
    assert scores(s, []).tolist() == [0.0] * 5
    assert np.isfinite(scores(s, np.full(10, 0.3))).all()


@pytest.mark.parametrize("tails", [0.0, 0.15])
def test_the_spread_makes_the_ellipses_true(tails: float) -> None:
    """On other residuals than those it was fitted on, also where some are much larger than the rest."""
    rng = np.random.default_rng(9)

    def residuals(count: int) -> tuple[Floats, Floats]:
        own = np.array([np.diag(d) for d in rng.uniform(0.5, 3.0, (count, 2))])
        wide = np.where(rng.uniform(size=count) < tails, 3.0, 1.0)[:, None]
        return rng.normal(0, 1, (count, 2)) * wide * np.sqrt(np.diagonal(own, axis1=1, axis2=2) + [2.0, 0.5]), own

    spread = Spread.fit(*residuals(2000))
    found, own = residuals(2000)
    whole = own + np.diag([spread.along_m**2, spread.across_m**2])
    inside = [float(r @ np.linalg.solve(c, r)) <= 5.991 for r, c in zip(found, whole, strict=True)]
    assert 0.92 < np.mean(inside) < 0.98
    assert spread.along_m > spread.across_m
    if not tails:
        assert (spread.along_m, spread.across_m) == pytest.approx((2.0**0.5, 0.5**0.5), rel=0.2)
    with pytest.raises(DataError, match="no answer was right"):
        Spread.fit(np.empty((0, 2)), np.empty((0, 2, 2)))


def test_what_a_filter_that_is_too_sure_is_worth() -> None:
    rng = np.random.default_rng(10)
    p = rng.uniform(0.001, 0.999, 20_000)
    # The truth is half as sure, in log odds.
    right = rng.uniform(size=len(p)) < 1 / (1 + np.exp(-0.5 * np.log(p / (1 - p))))
    fit = Filtered.fit(p, right, Spread(1.0, 1.0))
    assert (fit.intercept, fit.slope) == pytest.approx((0.0, 0.5), abs=0.05)
    assert fit.probability(0.99) == pytest.approx(1 / (1 + np.exp(-0.5 * np.log(99))), abs=0.02)
    assert 0.0 <= fit.probability(0.0) < fit.probability(1.0) <= 1.0


def test_older_artefacts_have_a_calibration_of_single_images() -> None:
    old = {
        "intercept": -6.0,
        "similarity_weight": 8.0,
        "margin_weight": 6.0,
        "cluster_radius_m": 10.0,
        "right": 5,
        "wrong": 5,
    }
    read = Calibration.from_dict(old)
    assert (read.spread, read.evidence, read.with_odometry, read.without_odometry) == (None, None, None, None)
    filtered = Filtered(-1.0, 0.5, Spread(0.5, 1.0), right=3, wrong=4)
    whole = replace(
        read,
        spread=Spread(0.5, 1.0),
        evidence=Evidence(-2.0, 1.5, 2.0),
        with_odometry=filtered,
        without_odometry=filtered,
    )
    assert Calibration.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole
    for path, value in (
        (("evidence", "score_weight"), -1.0),
        (("evidence", "score_weight"), "2"),
        (("with_odometry", "slope"), float("nan")),
        (("with_odometry", "spread"), None),
        (("spread", "along_m"), -0.5),
        (("spread", "colour"), 1.0),
    ):
        broken = json.loads(json.dumps(whole.to_dict()))
        broken[path[0]][path[1]] = value
        with pytest.raises(DataError):
            Calibration.from_dict(broken)
