"""The belief against a dense filter of plain loops, and in small worlds whose truth is known."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vpr_kd_ros.belief import GATE, MAX_PROBABILITY, Belief, BeliefConfig, Motion, Posterior
from vpr_kd_ros.errors import ConfigError, DataError
from vpr_kd_ros.geometry import Pose

Floats = NDArray[np.float64]
RADIUS_M = 10.0
SECOND = 1_000_000_000
NONE = (np.empty(0, dtype=np.int64), np.empty(0))


def angle(a: float, b: float) -> float:
    return abs(math.remainder(a - b, 2 * math.pi))


class Dense:
    """The same equations with an entry for every place, in loops. Knows no pruning."""

    def __init__(self, places: list[tuple[float, float, float]], spacing: float, config: BeliefConfig) -> None:
        self.places, self.spacing, self.config = places, spacing, config
        self.b = [0.0] * len(places)
        self.lost, self.off = config.on_map, 1 - config.on_map

    def predict(self, motion: Motion | None, seconds: float) -> None:
        c = self.config
        new = [0.0] * len(self.places)
        for i, (x, y, yaw) in enumerate(self.places):
            reach, sigma, goal = c.max_speed_mps * seconds, self.spacing / 3, (x, y)
            if motion is not None:
                reach = 0.0
                sigma = math.sqrt(sigma**2 + (c.odometry_noise * motion.distance) ** 2)
                goal = (
                    x + math.cos(yaw) * motion.forward - math.sin(yaw) * motion.left,
                    y + math.sin(yaw) * motion.forward + math.cos(yaw) * motion.left,
                )
            kernel = []
            for other in self.places:
                far = math.dist(goal, other[:2])
                value = math.exp(-(max(0.0, far - reach) ** 2) / (2 * sigma**2))
                if motion is not None:
                    value *= math.exp(-(angle(other[2], yaw + motion.turn) ** 2) / (2 * c.yaw_sigma_rad**2))
                kernel.append(value if far <= reach + GATE * sigma else 0.0)
            total = sum(kernel) + math.exp(-GATE * GATE / 2)
            for j, value in enumerate(kernel):
                new[j] += (1 - c.restart) * value / total * self.b[i]
        lost = c.restart * sum(self.b) + (1 - c.crossing) * self.lost + c.crossing * self.off
        self.b, self.lost, self.off = new, lost, 1 - lost - sum(new)

    def update(self, candidates: list[int], probabilities: list[float]) -> None:
        c, n = self.config, len(self.places)
        support = [0.0] * n
        touched = [value > 0 for value in self.b]
        sigma = max(c.candidate_sigma_m, self.spacing / 2)
        for k, odds in zip(candidates, self.odds(candidates, probabilities), strict=True):
            density = []
            for place in self.places:
                far, turned = math.dist(place[:2], self.places[k][:2]), angle(place[2], self.places[k][2])
                value = math.exp(-(far**2) / (2 * sigma**2) - turned**2 / (2 * c.yaw_sigma_rad**2))
                density.append(value if far <= GATE * sigma and odds > 0 else 0.0)
            for j, value in enumerate(density):
                support[j] += odds * value / (sum(density) or 1.0)
                touched[j] |= value > 0
        share = self.lost / n
        for j in range(n):
            if touched[j]:
                self.b[j] = (self.b[j] + share) * c.miss * (1 + n * support[j]) ** c.trust
                self.lost -= share
        self.lost *= c.miss
        total = sum(self.b) + self.lost + self.off
        self.b = [value / total for value in self.b]
        self.lost /= total
        self.off /= total

    def odds(self, candidates: list[int], probabilities: list[float]) -> list[float]:
        own = {i: min(p, MAX_PROBABILITY) / (1 - min(p, MAX_PROBABILITY)) for i, p in enumerate(probabilities) if p > 0}
        result = [0.0] * len(candidates)
        while own:
            best = max(own, key=lambda i: own[i])
            here = self.places[candidates[best]][:2]
            cluster = [i for i in own if math.dist(self.places[candidates[i]][:2], here) <= RADIUS_M]
            total = sum(own[i] for i in cluster)
            top = own[best]
            for i in cluster:
                result[i] = top * own.pop(i) / total
        return result


def make(places: list[tuple[float, float, float]], spacing: float, **config: Any) -> Belief:
    rows = np.array(places, dtype=np.float64).reshape(-1, 3)
    return Belief(
        np.arange(len(rows)) + 100, rows[:, :2], rows[:, 2], spacing, RADIUS_M, BeliefConfig(**{"trust": 1.0, **config})
    )


def total(posterior: Posterior) -> float:
    return float(posterior.weights.sum()) + posterior.unknown


def near(posterior: Posterior, x: float, places: list[tuple[float, float, float]]) -> float:
    """Probability of the places within the cluster radius of x, on a street along x."""
    return sum(
        float(w)
        for i, w in zip(posterior.place_ids, posterior.weights, strict=True)
        if abs(places[i - 100][0] - x) <= RADIUS_M
    )


@pytest.mark.parametrize("with_odometry", [True, False, None])
def test_it_is_the_dense_filter(with_odometry: bool | None) -> None:
    rng = np.random.default_rng(3)
    places = [(float(x), float(y), float(yaw)) for x, y, yaw in rng.uniform((0, 0, -4), (60, 40, 4), (70, 3))]
    config = {"max_speed_mps": 6.0, "min_mass": 0.0, "max_hypotheses": 10_000, "trust": 0.7}
    belief, dense = make(places, 4.0, **config), Dense(places, 4.0, BeliefConfig(**config))  # type: ignore[arg-type]
    pose = Pose.planar(5.0, -3.0, 1.0)
    before: Pose | None = None
    for frame in range(25):
        motion = Motion(float(rng.uniform(2, 5)), float(rng.normal(0, 0.3)), float(rng.normal(0, 0.3)))
        xy, yaws = motion.apply(pose.position[None, :2], np.array([pose.yaw]))
        pose = Pose.planar(float(xy[0, 0]), float(xy[0, 1]), float(yaws[0]))
        given = bool(rng.random() < 0.7) if with_odometry is None else with_odometry
        odometry = pose if given else None
        candidates = rng.choice(70, 6, replace=False)
        # Some surely wrong, some surely right, some without a value.
        probabilities = rng.choice([0.0, 0.02, 0.3, 0.6, 0.95, 1.0], 6)
        if frame:
            both = odometry is not None and before is not None
            dense.predict(motion if both else None, 1.0)
        dense.update(candidates.tolist(), probabilities.tolist())
        told = np.where(probabilities == 0, np.nan, probabilities) if frame % 2 else probabilities
        posterior = belief.observe(frame * SECOND, candidates + 100, told, odometry)
        before = odometry
        assert total(posterior) == pytest.approx(1.0, abs=1e-12)
        wanted = np.array(dense.b)
        found = np.zeros(70)
        found[posterior.place_ids - 100] = posterior.weights
        np.testing.assert_allclose(found, wanted, rtol=1e-7, atol=1e-12)
        assert posterior.unknown == pytest.approx(dense.lost + dense.off, abs=1e-9)
        assert (np.diff(posterior.weights) <= 0).all()


def test_few_hypotheses_say_what_many_say() -> None:
    rng = np.random.default_rng(0)
    street = Street(rng)
    truth = street.drive(60)
    whole, few = street.belief(min_mass=0.0, max_hypotheses=10_000), street.belief(max_hypotheses=40)
    for frame, x in enumerate(truth):
        answer = street.retrieve(x)
        a = whole.observe(frame * SECOND, *answer, Pose.planar(x, 0, 0))
        b = few.observe(frame * SECOND, *answer, Pose.planar(x, 0, 0))
        assert len(b.weights) <= 40
        assert total(a) == pytest.approx(1.0, abs=1e-12)
        assert total(b) == pytest.approx(1.0, abs=1e-12)
        assert near(a, x, street.places) == pytest.approx(near(b, x, street.places), abs=0.03)


def test_one_frame_from_any_place_alike_leaves_the_odds_of_the_calibration() -> None:
    places = [(20.0 * i, 0.0, 0.0) for i in range(30)]
    belief = make(places, 4.0, miss=0.3, on_map=1.0)
    posterior = belief.observe(0, np.array([104]), np.array([0.8]))
    assert posterior.place_ids[0] == 104
    # Where the answer is wrong, the robot may still be there by chance.
    assert posterior.weights[0] == pytest.approx(0.8 + 0.2 / 30, abs=1e-12)
    assert posterior.unknown == pytest.approx(0.2 * 29 / 30, abs=1e-12)


class Street:
    """400 m of places 4 m apart, and a retrieval that is right in 60 of 100 frames and says how sure it is."""

    def __init__(self, rng: np.random.Generator, right: float = 0.6) -> None:
        self.places = [(4.0 * i, 0.0, 0.0) for i in range(101)]
        self.rng, self.right = rng, right

    def belief(self, **config: Any) -> Belief:
        return make(self.places, 4.0, **{"miss": 1 - self.right, "max_speed_mps": 5.0, **config})

    def drive(self, frames: int, start: float = 50.0, step: float = 4.3) -> list[float]:
        return [start + step * i for i in range(frames)]

    def retrieve(self, x: float | None) -> tuple[NDArray[np.int64], Floats]:
        """The best place and its probability, calibrated: with P(right) = r, the score follows densities 2 p and
        2 (1 - p) for right and wrong, so that P(right | score) is Bayes' rule. x None is off the map.
        """
        right = x is not None and self.rng.random() < self.right
        if right:
            place = int(np.clip(round((x + self.rng.normal(0, 2)) / 4), 0, 100))  # type: ignore[operator]
            score = math.sqrt(self.rng.random())
        else:
            place = int(self.rng.integers(101))
            score = 1 - math.sqrt(self.rng.random())
        p = self.right * score / (self.right * score + (1 - self.right) * (1 - score))
        return np.array([100 + place]), np.array([p])


def recall_at(precision: float, scores: list[float], right: list[bool]) -> float:
    """The largest share of all frames that are right and accepted, by a threshold with at least this precision."""
    order = np.argsort(scores)[::-1]
    hits = np.cumsum(np.array(right)[order])
    good = hits / np.arange(1, len(hits) + 1) >= precision
    return float(hits[good].max() / len(hits)) if good.any() else 0.0


@pytest.mark.parametrize("with_odometry", [True, False])
def test_it_finds_more_at_the_same_precision_than_single_frames(with_odometry: bool) -> None:
    single: tuple[list[float], list[bool]] = ([], [])
    filtered: tuple[list[float], list[bool]] = ([], [])
    for seed in range(6):
        street = Street(np.random.default_rng(seed))
        belief = street.belief()
        for frame, x in enumerate(street.drive(70)):
            ids, p = street.retrieve(x)
            posterior = belief.observe(frame * SECOND, ids, p, Pose.planar(x, 0, 0) if with_odometry else None)
            single[0].append(float(p[0]))
            single[1].append(abs(4.0 * (ids[0] - 100) - x) <= RADIUS_M)
            best = 4.0 * (posterior.place_ids[0] - 100)
            filtered[0].append(near(posterior, best, street.places))
            filtered[1].append(abs(best - x) <= RADIUS_M)
    ahead = recall_at(0.99, *filtered) - recall_at(0.99, *single)
    assert ahead > (0.5 if with_odometry else 0.2)
    accepted = [ok for score, ok in zip(*filtered, strict=True) if score >= 0.9]
    assert np.mean(accepted) > 0.9
    assert len(accepted) > (300 if with_odometry else 150)


@pytest.mark.parametrize("with_odometry", [True, False])
def test_it_recovers_when_the_robot_is_carried_away(with_odometry: bool) -> None:
    for seed in range(10):
        street = Street(np.random.default_rng(seed), right=0.8)
        belief = street.belief()
        drive = street.drive(20) + street.drive(20, start=300.0)
        after = []
        for frame, x in enumerate(drive):
            # The wheels were in the air: odometry goes on as if nothing had happened.
            odometry = Pose.planar(4.3 * frame, 7.0, 0.0) if with_odometry else None
            posterior = belief.observe(frame * SECOND, *street.retrieve(x), odometry)
            assert total(posterior) == pytest.approx(1.0, abs=1e-12)
            after.append(near(posterior, x, street.places))
        assert max(after[15:20]) > 0.9
        assert after[20] < 0.9
        assert max(after[21:32]) > 0.9


@pytest.mark.parametrize("with_odometry", [True, False])
def test_off_the_map_it_does_not_know(with_odometry: bool) -> None:
    known: list[bool] = []
    for seed in range(10):
        street = Street(np.random.default_rng(seed))
        belief = street.belief()
        unknown: list[bool] = []
        for frame, x in enumerate(street.drive(70, start=250.0)):
            odometry = Pose.planar(x, 0, 0) if with_odometry else None
            posterior = belief.observe(frame * SECOND, *street.retrieve(x if x < 400 else None), odometry)
            best = 4.0 * (posterior.place_ids[0] - 100)
            (known if x < 400 else unknown).append(near(posterior, best, street.places) >= 0.9)
        # Some frames to notice; then next to never.
        assert sum(unknown[12:]) <= 1
        assert posterior.unknown > 0.3
    assert np.mean(known) > (0.6 if with_odometry else 0.3)


def test_turns_are_followed_on_a_grid_of_two_streets() -> None:
    # Two streets that look alike part at the origin; only the odometry tells which one was taken.
    east = [(4.0 * i, 0.0, 0.0) for i in range(30)]
    north = [(0.0, 4.0 * i, math.pi / 2) for i in range(1, 30)]
    places = east + north
    belief = make(places, 4.0)
    belief.observe(0, np.array([100]), np.array([0.95]), Pose.planar(7, 7, 0.3))
    for i in range(1, 10):
        # Turned left on the spot, then drove straight on, in a frame of its own.
        heading = 0.3 + math.pi / 2
        pose = Pose.planar(7 + 4.0 * i * math.cos(heading), 7 + 4.0 * i * math.sin(heading), heading)
        twins = np.array([100 + i, 100 + 29 + i])
        posterior = belief.observe(i * SECOND, twins, np.array([0.5, 0.5]), pose)
    assert posterior.place_ids[0] == 100 + 29 + 9
    northern = posterior.place_ids >= 130
    assert posterior.weights[northern].sum() > 0.9


def test_frames_from_one_spot_count_once() -> None:
    places = [(4.0 * i, 0.0, 0.0) for i in range(50)]
    belief = make(places, 4.0)
    answer = np.array([110]), np.array([0.6])
    first = belief.observe(0, *answer, Pose.planar(0, 0, 0))
    for i in range(1, 200):
        posterior = belief.observe(i * SECOND // 10, *answer, Pose.planar(0.009 * i, 0, 0))
        np.testing.assert_array_equal(posterior.weights, first.weights)
    assert posterior.moved is not None
    assert posterior.moved.forward == pytest.approx(0.009 * 199)
    surer = belief.observe(21 * SECOND, np.array([111]), np.array([0.6]), Pose.planar(4.0, 0, 0))
    assert surer.weights.max() > first.weights.max()
    assert surer.moved == Motion(0.0, 0.0, 0.0)
    # Without odometry, time decides.
    belief = make(places, 4.0, step_s=0.5)
    first = belief.observe(0, *answer)
    np.testing.assert_array_equal(belief.observe(SECOND // 4, *answer).weights, first.weights)
    assert belief.observe(SECOND // 2, *answer).weights.max() > first.weights.max()


def test_time_that_jumps_back_and_reset_forget() -> None:
    places = [(4.0 * i, 0.0, 0.0) for i in range(50)]
    answer = np.array([110]), np.array([0.9])
    fresh = make(places, 4.0).observe(0, *answer)
    belief = make(places, 4.0)
    for i in range(5):
        belief.observe((100 + i) * SECOND, *answer)
    again = belief.observe(3 * SECOND, *answer)
    assert belief.resets == 1
    np.testing.assert_array_equal(again.weights, fresh.weights)
    # Also where the frame before did not count.
    belief.observe(4 * SECOND, *answer)
    belief.observe(4 * SECOND + 100, *answer)
    assert belief.observe(4 * SECOND + 50, *answer).weights.tolist() == fresh.weights.tolist()
    belief.reset()
    assert belief.resets == 3
    nothing = belief.observe(5 * SECOND, *NONE)
    assert (nothing.unknown, len(nothing.weights)) == (1.0, 0)


def test_a_long_silence_and_odometry_that_jumps() -> None:
    places = [(4.0 * i, 0.0, 0.0) for i in range(50)]
    answer = np.array([110]), np.array([0.99])
    belief = make(places, 4.0, lost_after_s=10.0)
    for i in range(4):
        belief.observe(i * SECOND, *answer)
    assert belief.observe(60 * SECOND, *NONE).unknown == 1.0
    # An odometry that starts over says nothing: the motion prior takes its place, and the place is kept.
    for jump in (Pose.planar(1e6, 0, 0), Pose.planar(math.nan, 0, 0), Pose.planar(0, 0, math.nan)):
        belief = make(places, 4.0, max_speed_mps=5.0)
        for i in range(4):
            belief.observe(i * SECOND, np.array([110 + i]), np.array([0.95]), Pose.planar(4.0 * i, 0, 0))
        posterior = belief.observe(4 * SECOND, np.array([114]), np.array([0.9]), jump)
        assert near(posterior, 56.0, places) > 0.9
        assert np.isfinite(posterior.weights).all()


def test_what_is_not_in_the_map_is_left_out_and_an_empty_map_is_unknown() -> None:
    places = [(4.0 * i, 0.0, 0.0) for i in range(50)]
    belief = make(places, 4.0)
    alone = belief.observe(0, np.array([110]), np.array([0.7]))
    belief.reset()
    more = belief.observe(0, np.array([7, 110, -1]), np.array([0.99, 0.7, 0.9]))
    np.testing.assert_array_equal(alone.weights, more.weights)
    empty = make([], 0.0)
    for i in range(3):
        posterior = empty.observe(i * SECOND, *NONE, Pose.planar(4.0 * i, 0, 0))
        assert (posterior.unknown, len(posterior.place_ids)) == (1.0, 0)
    with pytest.raises(DataError, match="2 positions"):
        Belief(np.arange(3), np.zeros((2, 2)), np.zeros(3), 1.0, 1.0, BeliefConfig())
    with pytest.raises(DataError, match="twice"):
        Belief(np.array([1, 1]), np.zeros((2, 2)), np.zeros(2), 1.0, 1.0, BeliefConfig())


def test_motion_is_seen_from_the_robot() -> None:
    rng = np.random.default_rng(5)
    for (x, y, yaw), (x2, y2, yaw2) in itertools.pairwise(rng.uniform(-3, 3, (50, 3))):
        motion = Motion.between(Pose.planar(x, y, yaw), Pose.planar(x2, y2, yaw2))
        xy, heading = motion.apply(np.array([[x, y]]), np.array([yaw]))
        np.testing.assert_allclose(xy[0], [x2, y2], atol=1e-12)
        assert angle(float(heading[0]), yaw2) < 1e-9
        assert abs(motion.turn) <= math.pi


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_speed_mps", 0.0),
        ("step_s", math.inf),
        ("restart", 0.0),
        ("crossing", 1.0),
        ("on_map", 0.0),
        ("trust", 0.0),
        ("miss", math.nan),
        ("odometry_noise", -0.1),
        ("min_mass", 1.0),
        ("max_hypotheses", 0),
    ],
)
def test_bad_settings_are_named(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=key):
        BeliefConfig(**{key: value})  # type: ignore[arg-type]
