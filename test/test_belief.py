"""The belief against a dense filter of plain loops, and in small worlds whose truth is known."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from support.dense_belief import SECOND, Dense, Image, angle, image, make, pointing, total
from vpr_kd_ros.belief import Belief, BeliefConfig, Posterior
from vpr_kd_ros.errors import ConfigError, DataError
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.motion import Motion, Transitions

RADIUS_M = 10.0


def near(posterior: Posterior, x: float, places: list[tuple[float, float, float]]) -> float:
    """Probability of the places within a radius of x, on a street along x."""
    return sum(
        float(w)
        for i, w in zip(posterior.place_ids, posterior.weights, strict=True)
        if abs(places[i - 100][0] - x) <= RADIUS_M
    )


@pytest.mark.parametrize("with_odometry", [True, False, None])
def test_it_is_the_dense_filter(with_odometry: bool | None) -> None:
    rng = np.random.default_rng(3)
    places = [(float(x), float(y), float(yaw)) for x, y, yaw in rng.uniform((0, 0, -4), (60, 40, 4), (70, 3))]
    config = {"max_speed_mps": 6.0, "min_mass": 0.0, "max_hypotheses": 10_000, "decorrelation_m": 7.0, "step_m": 0.1}
    belief = make(places, 1.5, **config)
    dense = Dense(places, 1.5, BeliefConfig(**config))  # type: ignore[arg-type]
    pose = Pose.planar(5.0, -3.0, 1.0)
    before: Pose | None = None
    for frame in range(25):
        motion = Motion(float(rng.uniform(2, 5)), float(rng.normal(0, 0.3)), float(rng.normal(0, 0.3)))
        xy, yaws = motion.apply(pose.position[None, :2], np.array([pose.yaw]))
        pose = Pose.planar(float(xy[0, 0]), float(xy[0, 1]), float(yaws[0]))
        given = bool(rng.random() < 0.7) if with_odometry is None else with_odometry
        odometry = pose if given else None
        retrieved = rng.choice(70, 6, replace=False).tolist()
        ratios, background = rng.normal(0, 2, 70), rng.normal(-1, 1, 20)
        share = 1.0
        if frame:
            moved = motion if odometry is not None and before is not None else None
            turned = abs(motion.turn) / math.radians(60)
            share = min(1.0, (motion.distance / 7 + turned) if moved else 0.5 * 6.0 * 1.0 / 7)
            dense.predict(moved, 1.0, share)
        dense.update(retrieved, ratios, background, share)
        posterior = belief.observe(frame * SECOND, *image(ratios, retrieved, background), odometry)
        before = odometry
        assert total(posterior) == pytest.approx(1.0, abs=1e-12)
        found = np.zeros(70)
        found[posterior.place_ids - 100] = posterior.weights
        np.testing.assert_allclose(found, np.array(dense.b), rtol=1e-7, atol=1e-12)
        assert posterior.unknown == pytest.approx(dense.lost + dense.off, abs=1e-9)
        assert (np.diff(posterior.weights) <= 0).all()


class Street:
    """400 m of places 4 m apart. The similarity of an image is normal, of deviation 1: around ``clear`` for the place
    it was taken at and its neighbours, around 0 for others.
    """

    def __init__(self, rng: np.random.Generator, clear: float = 2.0) -> None:
        self.places = [(4.0 * i, 0.0, 0.0) for i in range(101)]
        self.rng, self.clear = rng, clear

    def belief(self, **config: Any) -> Belief:
        return make(self.places, 4.0, **{"max_speed_mps": 5.0, **config})

    def drive(self, frames: int, start: float = 50.0, step: float = 4.3) -> list[float]:
        return [start + step * i for i in range(frames)]

    def see(self, x: float) -> Image:
        """Seen from x metres along the street; the log ratio is that of the two normal densities."""
        similarity = self.rng.normal(0, 1, 101)
        similarity[[i for i in range(101) if abs(4.0 * i - x) <= 3.0]] += self.clear
        return image(self.clear * similarity - self.clear**2 / 2)


def test_few_hypotheses_say_what_many_say() -> None:
    street = Street(np.random.default_rng(0))
    whole, few = street.belief(min_mass=0.0, max_hypotheses=10_000), street.belief(max_hypotheses=40)
    for frame, x in enumerate(street.drive(60)):
        seen = street.see(x)
        a = whole.observe(frame * SECOND, *seen, Pose.planar(x, 0, 0))
        b = few.observe(frame * SECOND, *seen, Pose.planar(x, 0, 0))
        assert len(b.weights) <= 40
        assert total(a) == pytest.approx(1.0, abs=1e-12)
        assert total(b) == pytest.approx(1.0, abs=1e-12)
        if frame > 15:
            assert near(a, x, street.places) == pytest.approx(near(b, x, street.places), abs=0.03)


def test_one_frame_from_any_place_alike_is_bayes_rule() -> None:
    places = [(20.0 * i, 0.0, 0.0) for i in range(30)]
    posterior = make(places, 4.0, on_map=1.0).observe(0, *pointing(30, 4, math.log(70.0)))
    assert posterior.place_ids.tolist() == [104]
    # 1 place of likelihood 70, 29 of likelihood 1.
    assert posterior.weights[0] == pytest.approx(70 / 99, abs=1e-12)
    half = make(places, 4.0, on_map=0.5).observe(0, *pointing(30, 4, math.log(70.0)))
    assert half.weights[0] == pytest.approx(70 / (99 + 30), abs=1e-12)


def test_a_hypothesis_is_judged_also_where_it_was_not_retrieved() -> None:
    places = [(4.0 * i, 0.0, 0.0) for i in range(50)]
    for ratio in (-2.0, 2.0):
        belief = make(places, 4.0)
        before = belief.observe(0, *pointing(50, 10, 4.0), Pose.planar(0, 0, 0))
        ratios = np.zeros(50)
        ratios[9:14] = ratio
        after = belief.observe(SECOND, *image(ratios, [], np.zeros(50)), Pose.planar(4.0, 0, 0))
        assert (near(after, 44.0, places) > near(before, 40.0, places)) == (ratio > 0)


@pytest.mark.parametrize("with_odometry", [True, False])
def test_it_finds_more_at_the_same_precision_than_single_frames(with_odometry: bool) -> None:
    accepted: list[bool] = []
    single: list[bool] = []
    for seed in range(6):
        street = Street(np.random.default_rng(seed))
        belief = street.belief()
        for frame, x in enumerate(street.drive(70)):
            seen = street.see(x)
            posterior = belief.observe(frame * SECOND, *seen, Pose.planar(x, 0, 0) if with_odometry else None)
            best = 4.0 * (posterior.place_ids[0] - 100)
            if near(posterior, best, street.places) >= 0.95:
                accepted.append(abs(best - x) <= RADIUS_M)
            single.append(abs(4.0 * (seen[0][0] - 100) - x) <= RADIUS_M)
    assert np.mean(single) < 0.8
    assert np.mean(accepted) > 0.95
    assert sum(accepted) > (350 if with_odometry else 200)


@pytest.mark.parametrize("with_odometry", [True, False])
def test_it_recovers_when_the_robot_is_carried_away(with_odometry: bool) -> None:
    for seed in range(10):
        street = Street(np.random.default_rng(seed), clear=3.0)
        belief = street.belief()
        drive = street.drive(20) + street.drive(20, start=300.0)
        after = []
        for frame, x in enumerate(drive):
            # The wheels were in the air: odometry goes on as if nothing had happened.
            odometry = Pose.planar(4.3 * frame, 7.0, 0.0) if with_odometry else None
            posterior = belief.observe(frame * SECOND, *street.see(x), odometry)
            assert total(posterior) == pytest.approx(1.0, abs=1e-12)
            after.append(near(posterior, x, street.places))
        assert max(after[15:20]) > 0.9
        assert max(after[21:32]) > 0.9


@pytest.mark.parametrize("with_odometry", [True, False])
def test_off_the_map_it_does_not_know(with_odometry: bool) -> None:
    for seed in range(10):
        street = Street(np.random.default_rng(seed), clear=3.0)
        belief = street.belief()
        known: list[bool] = []
        unknown: list[bool] = []
        for frame, x in enumerate(street.drive(70, start=250.0)):
            odometry = Pose.planar(x, 0, 0) if with_odometry else None
            posterior = belief.observe(frame * SECOND, *street.see(x), odometry)
            best = 4.0 * (posterior.place_ids[0] - 100)
            (known if x < 400 else unknown).append(near(posterior, best, street.places) >= 0.9)
        # Some frames to find itself, and some to notice; then next to never.
        assert np.mean(known[10:]) > 0.8
        assert sum(unknown[12:]) <= 1
        assert posterior.unknown > 0.3


def test_turns_are_followed_on_a_grid_of_two_streets() -> None:
    # Two streets that look alike part at the origin; only the odometry tells which one was taken.
    east = [(4.0 * i, 0.0, 0.0) for i in range(30)]
    north = [(0.0, 4.0 * i, math.pi / 2) for i in range(1, 30)]
    places = east + north
    belief = make(places, 4.0)
    belief.observe(0, *pointing(59, 0, 6.0), Pose.planar(7, 7, 0.3))
    for i in range(1, 10):
        # Turned left on the spot, then drove straight on, in a frame of its own.
        heading = 0.3 + math.pi / 2
        pose = Pose.planar(7 + 4.0 * i * math.cos(heading), 7 + 4.0 * i * math.sin(heading), heading)
        ratios = np.zeros(59)
        ratios[[i, 29 + i]] = 2.0
        posterior = belief.observe(i * SECOND, *image(ratios, [i, 29 + i]), pose)
    assert posterior.place_ids[0] == 100 + 29 + 9
    northern = posterior.place_ids >= 130
    assert posterior.weights[northern].sum() > 0.9


def test_frames_from_one_spot_count_once_and_near_ones_for_less() -> None:
    places = [(4.0 * i, 0.0, 0.0) for i in range(50)]
    belief = make(places, 4.0)
    first = belief.observe(0, *pointing(50, 10, 3.0), Pose.planar(0, 0, 0))
    for i in range(1, 200):
        posterior = belief.observe(i * SECOND // 10, *pointing(50, 10, 3.0), Pose.planar(0.009 * i, 0, 0))
        np.testing.assert_array_equal(posterior.weights, first.weights)
    assert posterior.moved is not None
    assert posterior.moved.forward == pytest.approx(0.009 * 199)
    surer = belief.observe(21 * SECOND, *pointing(50, 11, 3.0), Pose.planar(4.0, 0, 0))
    assert surer.weights.max() > first.weights.max()
    assert surer.moved == Motion(0.0, 0.0, 0.0)
    slow = make(places, 4.0, decorrelation_m=16.0)
    slow.observe(0, *pointing(50, 10, 3.0), Pose.planar(0, 0, 0))
    assert slow.observe(21 * SECOND, *pointing(50, 11, 3.0), Pose.planar(4.0, 0, 0)).weights.max() < surer.weights.max()
    # Without odometry, time decides.
    belief = make(places, 4.0, step_s=0.5)
    first = belief.observe(0, *pointing(50, 10, 3.0))
    again = pointing(50, 10, 3.0)
    np.testing.assert_array_equal(belief.observe(SECOND // 4, *again).weights, first.weights)
    assert belief.observe(SECOND // 2, *again).weights.max() > first.weights.max()


def test_time_that_jumps_back_and_reset_forget() -> None:
    places = [(4.0 * i, 0.0, 0.0) for i in range(50)]
    seen = pointing(50, 10, 5.0)
    fresh = make(places, 4.0).observe(0, *seen)
    belief = make(places, 4.0)
    for i in range(5):
        belief.observe((100 + i) * SECOND, *seen)
    again = belief.observe(3 * SECOND, *seen)
    assert belief.resets == 1
    np.testing.assert_array_equal(again.weights, fresh.weights)
    # Also where the frame before did not count.
    belief.observe(4 * SECOND, *seen)
    belief.observe(4 * SECOND + SECOND // 5, *seen)
    assert belief.observe(4 * SECOND + SECOND // 20, *seen).weights.tolist() == fresh.weights.tolist()
    belief.reset()
    assert belief.resets == 3
    nothing = belief.observe(5 * SECOND, *image(np.zeros(50), []))
    assert (nothing.unknown, len(nothing.weights)) == (1.0, 0)


@pytest.mark.parametrize("early_ns", [1, SECOND // 20])
@pytest.mark.parametrize("with_odometry", [True, False])
def test_a_frame_that_is_a_little_early_is_left_out(early_ns: int, with_odometry: bool) -> None:
    places = [(4.0 * i, 0.0, 0.0) for i in range(50)]
    belief, smooth = make(places, 4.0), make(places, 4.0)

    def show(belief: Belief, stamp_ns: int, place: int) -> Posterior:
        pose = Pose.planar(4.0 * stamp_ns / SECOND, 0.0, 0.0) if with_odometry else None
        return belief.observe(stamp_ns, *pointing(50, place, 3.0), pose)

    for i in range(5):
        show(smooth, i * SECOND, 10 + i)
        known = show(belief, i * SECOND, 10 + i)
        early = show(belief, i * SECOND - early_ns, 40)
        np.testing.assert_array_equal(early.weights, known.weights)
        # And none after it is early because of it.
        show(belief, i * SECOND - early_ns // 2, 40)
    assert belief.resets == 0
    ours, theirs = show(belief, 5 * SECOND, 15), show(smooth, 5 * SECOND, 15)
    np.testing.assert_array_equal(ours.place_ids, theirs.place_ids)
    np.testing.assert_array_equal(ours.weights, theirs.weights)


@pytest.mark.parametrize("speed", [0.0, 0.05])
def test_one_image_without_odometry_does_not_make_a_slow_robot_forget(speed: float) -> None:
    """It stands, or creeps, for a minute: the last step, and the last frame that counted, are that long ago."""
    places = [(4.0 * i, 0.0, 0.0) for i in range(50)]
    belief = make(places, 4.0, lost_after_s=10.0)
    for i in range(4):
        belief.observe(i * SECOND, *pointing(50, 10 + i, 5.0), Pose.planar(4.0 * i, 0, 0))

    def creep(tenths: int, with_odometry: bool) -> Posterior:
        pose = Pose.planar(12.0 + speed * tenths / 10, 0, 0)
        stamp = 3 * SECOND + tenths * SECOND // 10
        return belief.observe(stamp, *image(np.zeros(50), []), pose if with_odometry else None)

    for tenths in range(1, 600):
        before = creep(tenths, True)
    blind, after = creep(600, False), creep(601, True)
    assert blind.moved is None
    for posterior in (blind, after):
        np.testing.assert_array_equal(posterior.weights, before.weights)
        assert posterior.unknown == before.unknown
    assert after.moved is not None
    assert after.moved.forward == pytest.approx(speed * 60.1)
    # Half a second without: it may have gone on for that time at its greatest speed, from where it was last.
    for tenths in range(602, 607):
        blind = creep(tenths, False)
    reached = 4.0 * (blind.place_ids[blind.weights > 1e-3] - 100)
    x = 52.0 + speed * 60.1
    assert min(reached) >= x - 4.0
    assert max(reached) <= x + 0.5 * 10.0 + 4.0
    # And 10 s without any frame: lost.
    assert belief.observe(3 * SECOND + 71 * SECOND, *image(np.zeros(50), [])).unknown == 1.0


def test_odometry_that_starts_over_while_the_robot_stands_is_not_believed() -> None:
    """In the minute since the last step it could have gone that far; since the last image it could not."""
    places = [(4.0 * i, 0.0, 0.0) for i in range(50)]
    belief = make(places, 4.0, max_speed_mps=5.0)
    for i in range(4):
        belief.observe(i * SECOND, *pointing(50, 10 + i, 5.0), Pose.planar(100.0 + 4.0 * i, 0, 0))
    for i in range(4, 60):
        before = belief.observe(i * SECOND, *image(np.zeros(50), []), Pose.planar(112.0, 0, 0))
    # It starts over with the driver, which takes no time here.
    for tenths in range(1, 8):
        stamp = 59 * SECOND + tenths * SECOND // 10
        after = belief.observe(stamp, *image(np.zeros(50), []), Pose.planar(0, 0, 0))
    assert near(after, 52.0, places) > 0.9 * near(before, 52.0, places)
    assert after.moved == Motion()


def test_where_odometry_ends_the_robot_goes_on_from_where_it_was_last() -> None:
    rng = np.random.default_rng(11)
    xy, yaws = rng.uniform(0, 30, (80, 2)), rng.uniform(-4, 4, 80)
    motion = Motion(3.0, 0.5, 0.4)
    moved_xy, moved_yaws = motion.apply(xy[:1], yaws[:1])
    # The place that the motion leads to is in the map too: from there, without any motion, it must be the same.
    transitions = Transitions(np.vstack([xy, moved_xy]), np.append(yaws, moved_yaws), 2.0, 0.0, 0.5)
    _, targets, shares = transitions.shares(np.array([0]), motion, 5.0)
    _, targets_from_there, shares_from_there = transitions.shares(np.array([80]), Motion(), 5.0)
    assert len(targets) > 5
    np.testing.assert_array_equal(targets, targets_from_there)
    np.testing.assert_allclose(shares, shares_from_there, rtol=1e-9)


def test_a_long_silence_and_odometry_that_jumps() -> None:
    places = [(4.0 * i, 0.0, 0.0) for i in range(50)]
    belief = make(places, 4.0, lost_after_s=10.0)
    for i in range(4):
        belief.observe(i * SECOND, *pointing(50, 10 + i, 5.0))
    assert belief.observe(60 * SECOND, *image(np.zeros(50), [])).unknown == 1.0
    # An odometry that starts over says nothing: the motion prior takes its place, and the place is kept.
    for jump in (Pose.planar(1e6, 0, 0), Pose.planar(math.nan, 0, 0), Pose.planar(0, 0, math.nan)):
        belief = make(places, 4.0, max_speed_mps=5.0)
        for i in range(4):
            belief.observe(i * SECOND, *pointing(50, 10 + i, 5.0), Pose.planar(4.0 * i, 0, 0))
        posterior = belief.observe(4 * SECOND, *pointing(50, 14, 5.0), jump)
        assert near(posterior, 56.0, places) > 0.9
        assert np.isfinite(posterior.weights).all()


def test_what_is_not_in_the_map_is_left_out_and_an_empty_map_is_unknown() -> None:
    places = [(4.0 * i, 0.0, 0.0) for i in range(50)]
    _, ratios, background = pointing(50, 10, 3.0)
    alone = make(places, 4.0).observe(0, np.array([110]), ratios, background)
    more = make(places, 4.0).observe(0, np.array([7, 110, -1]), ratios, background)
    np.testing.assert_array_equal(alone.weights, more.weights)
    empty = make([], 0.0)
    for i in range(3):
        nothing = np.empty(0, dtype=np.int64)
        posterior = empty.observe(
            i * SECOND, nothing, lambda ids: np.zeros(len(ids)), np.empty(0), Pose.planar(4.0 * i, 0, 0)
        )
        assert (posterior.unknown, len(posterior.place_ids)) == (1.0, 0)
    with pytest.raises(DataError, match="2 positions"):
        Belief(np.arange(3), np.zeros((2, 2)), np.zeros(3), 1.0, BeliefConfig())
    with pytest.raises(DataError, match="twice"):
        Belief(np.array([1, 1]), np.zeros((2, 2)), np.zeros(2), 1.0, BeliefConfig())


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
        ("decorrelation_m", 0.0),
        ("decorrelation_rad", math.nan),
        ("odometry_noise", -0.1),
        ("min_mass", 1.0),
        ("max_hypotheses", 0),
    ],
)
def test_bad_settings_are_named(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=key):
        BeliefConfig(**{key: value})  # type: ignore[arg-type]
