"""One belief of several cameras, against the dense filter of plain loops and against exact Bayes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from support.dense_belief import SECOND, Dense, Floats, image, make, pointing, total
from vpr_kd_ros.belief import Belief, BeliefConfig
from vpr_kd_ros.errors import ConfigError
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.motion import Motion

STREET = [(4.0 * i, 0.0, 0.0) for i in range(30)]
NOTHING = np.zeros(30)


def turning(correlation: float) -> Belief:
    """Of a robot that turns on the spot, on a map that it cannot leave or be carried away from: every turn is a step
    that counts in full, and moves probability to neighbours only.
    """
    fixed = {"restart": 1e-12, "crossing": 1e-12, "on_map": 1.0, "min_mass": 0.0}
    turns = {"step_rad": 0.01, "decorrelation_rad": 1e-3, "yaw_sigma_rad": 1e3, "odometry_noise": 0.0}
    return make(STREET, 4.0, camera_correlation=correlation, **fixed, **turns)


def show(belief: Belief, step: int, cameras: tuple[str, ...], ratios: Floats = NOTHING) -> Floats:
    """Let cameras see all places alike, or with these log ratios (30,); the probabilities (30,) after it."""
    for camera in cameras:
        seen = image(ratios, list(range(30)), NOTHING)
        posterior = belief.observe(step * SECOND, *seen, Pose.planar(0, 0, 0.02 * step), camera)
    found = np.zeros(30)
    found[posterior.place_ids - 100] = posterior.weights
    return found


def test_it_is_the_dense_filter_whichever_cameras_speak_and_when() -> None:
    """Steps of two to four metres; each camera is heard once at each, if it comes before half of the next."""
    rng = np.random.default_rng(5)
    places = [(float(x), float(y), float(yaw)) for x, y, yaw in rng.uniform((0, 0, -4), (60, 40, 4), (70, 3))]
    config = {"min_mass": 0.0, "max_hypotheses": 10_000, "decorrelation_m": 7.0, "step_m": 2.0}
    config |= {"camera_correlation": 0.3, "step_rad": 3.0}
    belief = make(places, 1.5, **config)
    dense = Dense(places, 1.5, BeliefConfig(**config))  # type: ignore[arg-type]
    steps, heard_before = 0, 0
    x = 0.0
    for step in range(30):
        distance = float(rng.uniform(2.0, 4.0)) if step else 0.0
        x += distance
        share = min(1.0, distance / 7.0) if step else 1.0
        if step:
            dense.predict(Motion(distance, 0.0, 0.0), 1.0, share)
        heard: list[str] = []
        # Where the step's frames are taken, along it: the first begins it. A camera may be missing or be heard twice,
        # and one is too late when it comes after half of a step.
        cameras = rng.permutation(["front", "left", "rear"])[: int(rng.integers(1, 4))].tolist()
        frames = [(camera, 0.2 * i) for i, camera in enumerate(cameras)] + [(cameras[0], 0.7)]
        if len(cameras) < 3:
            frames.append((next(c for c in ("front", "left", "rear") if c not in cameras), 1.4))
        for camera, beyond in frames:
            ratios, background = rng.normal(0, 2, 70), rng.normal(-1, 1, 20)
            retrieved = rng.choice(70, 6, replace=False).tolist()
            stamp = step * SECOND + int(beyond * 0.1 * SECOND)
            told = Pose.planar(x + beyond, 0.0, 0.0)
            posterior = belief.observe(stamp, *image(ratios, retrieved, background), told, camera)
            if beyond < 0.7:
                heard.append(camera)
                together = max(len(heard), heard_before)
                dense.update(retrieved, ratios, background, share / (1 + 0.3 * (together - 1)))
                steps += 1
            found = np.zeros(70)
            found[posterior.place_ids - 100] = posterior.weights
            np.testing.assert_allclose(found, np.array(dense.b), rtol=1e-7, atol=1e-12)
            assert posterior.unknown == pytest.approx(dense.lost + dense.off, abs=1e-9)
            assert total(posterior) == pytest.approx(1.0, abs=1e-12)
            assert posterior.moved is not None
            assert posterior.moved.forward == pytest.approx(beyond, abs=1e-9)
        heard_before = len(heard)
    assert steps > 45


@pytest.mark.parametrize("correlation", [0.0, 0.4, 1.0])
def test_cameras_together_are_worth_what_exact_bayes_says(correlation: float) -> None:
    """Two similarities, jointly normal: two more at the place than elsewhere, and correlated."""
    rng = np.random.default_rng(7)
    rho = min(correlation, 0.9999999)
    spread = [[1.0, rho], [rho, 1.0]]
    seen = rng.multivariate_normal([0.0, 0.0], spread, 30)
    if correlation == 1.0:
        seen[:, 1] = seen[:, 0]
    seen[12] += 2.0
    exact = multivariate_normal([2.0, 2.0], spread).logpdf(seen) - multivariate_normal([0.0, 0.0], spread).logpdf(seen)
    belief = turning(correlation)
    show(belief, 0, ("front", "rear"))
    for number, camera in enumerate(("front", "rear")):
        # The log ratio of one normal similarity.
        found = show(belief, 1, (camera,), 2.0 * seen[:, number] - 2.0)
    # Moving on the spot spreads probability alike along the street, but at its ends.
    expected = np.exp(exact - exact.max())
    middle = slice(2, 28)
    np.testing.assert_allclose(
        found[middle] / found[middle].sum(), expected[middle] / expected[middle].sum(), rtol=0.02, atol=1e-6
    )


def test_a_camera_that_fails_costs_no_more_than_one_step() -> None:
    """The first step without it still expects two words, and takes half of the other's; then that counts in full."""
    word = np.eye(30)[15] * 2.0
    for steps_alone, worth in ((0, 0.5), (1, 1.0), (2, 1.0)):
        belief = turning(1.0)
        for step in range(3):
            show(belief, step, ("front", "rear"))
        for step in range(3, 3 + steps_alone):
            show(belief, step, ("front",))
        found = show(belief, 3 + steps_alone, ("front",), word)
        assert math.log(found[15] / found[10]) == pytest.approx(2.0 * worth, rel=0.01)
    # And when it is back, they share again.
    show(belief, 6, ("front", "rear"))
    before = show(belief, 7, ("front", "rear"))
    after = show(belief, 8, ("rear",), word)
    assert math.log(after[15] / after[10]) - math.log(before[15] / before[10]) < 1.1


def test_each_camera_has_its_own_time() -> None:
    """Frames of two cameras may arrive out of order; time jumps back only where one camera's own does."""
    belief = make(STREET, 4.0)

    def show(seconds: float, camera: str, place: int = 5) -> float:
        pose = Pose.planar(4.0 * seconds, 0.0, 0.0)
        return float(belief.observe(int(seconds * SECOND), *pointing(30, place, 3.0), pose, camera).weights.max())

    show(1.0, "front")
    before = show(2.0, "front", 6)
    # A frame that was taken before the one that began the step joins it.
    assert show(1.9, "rear", 6) > before
    after = show(2.1, "rear", 20)
    assert show(1.2, "left", 20) == after
    assert belief.resets == 0
    show(1.5, "rear")
    assert belief.resets == 1
    # The other cameras' clocks are forgotten with it, and one far behind the step is another drive's.
    show(1.4, "front")
    assert belief.resets == 1
    show(100.0, "front")
    show(3.0, "left")
    assert belief.resets == 2


def test_a_late_camera_without_odometry_is_blind_since_the_step_only() -> None:
    """Its frames come 0.6 s late, and without; what the other camera's odometry told since then is not before them."""
    there = Pose.planar(0, 0, 0)
    late, alone = make(STREET, 4.0, step_s=0.5), make(STREET, 4.0, step_s=0.5)
    for belief, tenths in ((late, range(12)), (alone, range(1))):
        for tenth in tenths:
            belief.observe(tenth * SECOND // 10, *pointing(30, 5, 3.0), there, "front")
    ours, theirs = (b.observe(SECOND // 2, *pointing(30, 6, 3.0), None, "rear") for b in (late, alone))
    np.testing.assert_array_equal(ours.place_ids, theirs.place_ids)
    np.testing.assert_array_equal(ours.weights, theirs.weights)
    assert 0.0 < ours.unknown == theirs.unknown < 1.0


def test_without_odometry_time_makes_the_step() -> None:
    belief = make(STREET, 4.0, step_s=1.0, decorrelation_m=12.0, max_speed_mps=8.0)

    def unknown(seconds: float, camera: str) -> float:
        return belief.observe(int(seconds * SECOND), *pointing(30, 5, 3.0), None, camera).unknown

    first = unknown(0.0, "front")
    joined = unknown(0.4, "rear")
    assert joined < first
    assert unknown(0.5, "left") == joined
    assert unknown(0.9, "front") == joined
    assert unknown(1.0, "front") < joined


def test_the_correlation_is_checked() -> None:
    for value in (-0.1, 1.1, math.nan):
        with pytest.raises(ConfigError, match="camera_correlation"):
            BeliefConfig(camera_correlation=value)
