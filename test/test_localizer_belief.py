"""The localizer in mode belief: on descriptors that the test chooses, with odometry and without."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from support.tiny import PRESET
from vpr_kd_ros.belief import BeliefConfig
from vpr_kd_ros.calibration import Calibration
from vpr_kd_ros.errors import ConfigError
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.localizer import Localizer, LocalizerConfig
from vpr_kd_ros.place_map import PlaceMap
from vpr_kd_ros.preprocess import Preprocess
from vpr_kd_ros.student import Student, StudentMetadata

PLACES = 40
SECOND = 1_000_000_000
IMAGE = np.zeros((8, 8, 3), dtype=np.uint8)
# Every frame counts in full.
COUNTS = BeliefConfig(decorrelation_m=1e-3)
Floats = NDArray[np.float64]


class Preset:
    """A backend that describes every image by the vector it was last told."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.answer: Floats = np.ones(PLACES + 1)

    def describe(self, batch: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.answer).to(torch.float32).expand(len(batch), -1)


class Bench:
    """A street of places 4 m apart that share nothing, and a localizer that is shown mixtures of them."""

    def __init__(self, calibration: Calibration | None = PRESET, **config: object) -> None:
        self.backend = Preset()
        metadata = StudentMetadata("preset", "none", PLACES + 1, Preprocess(8, 8), {}, calibration, "ab" * 32)
        place_map = PlaceMap(PLACES + 1, "ab" * 32, "map")
        for i in range(PLACES):
            place_map.add(np.eye(PLACES + 1, dtype=np.float32)[i], Pose.planar(4.0 * i, 0.0, 0.0, z=1.5), i, "s")
        options = {"mode": "belief", "candidates": 5, "belief": COUNTS, **config}
        self.localizer = Localizer(Student(metadata, self.backend), place_map, LocalizerConfig(**options))  # type: ignore[arg-type]

    def show(self, similarities: dict[int, float]) -> None:
        """The next image is this similar to these places."""
        self.backend.answer = np.zeros(PLACES + 1)
        for place, similarity in similarities.items():
            self.backend.answer[place] = similarity
        self.backend.answer[PLACES] = math.sqrt(1.0 - float(self.backend.answer @ self.backend.answer))


def test_weak_answers_that_agree_with_the_odometry_are_accepted() -> None:
    bench, alone = Bench(), Bench(mode="single")
    accepted = []
    for i in range(8):
        pose = Pose.planar(0.0, 4.0 * i, math.pi / 2)
        for each in (bench, alone):
            each.show({5 + i: 0.3, (17 * i + 29) % PLACES: 0.2})
        match = bench.localizer.localise(IMAGE, i * SECOND, pose)
        assert not alone.localizer.localise(IMAGE, i * SECOND).accepted
        accepted.append(match.accepted)
        assert match.accepted == (match.reason == "") == (match.probability >= 0.9)
        assert match.accepted or "below 0.9" in match.reason
    assert not accepted[0]
    assert all(accepted[4:])
    assert match.place_id == 12
    assert match.similarity == pytest.approx(0.3, abs=1e-3)
    assert match.pose is not None
    assert match.covariance is not None
    np.testing.assert_allclose(match.pose.position, [48.0, 0.0, 1.5], atol=2.0)
    assert np.linalg.eigvalsh(match.covariance).min() > 1e-3
    # Between two frames that count, the pose goes on with the odometry, and nothing is learnt.
    bench.show({30: 0.9})
    between = bench.localizer.localise(IMAGE, 7 * SECOND + 1, Pose.planar(-0.1, 4.0 * 7 + 1.5, math.pi / 2 + 0.1))
    assert between.pose is not None
    assert between.probability == match.probability
    np.testing.assert_allclose(between.pose.position - match.pose.position, [1.5, 0.1, 0.0], atol=1e-9)
    assert between.pose.yaw - match.pose.yaw == pytest.approx(0.1, abs=1e-9)


def test_the_covariance_is_the_spread_of_the_posterior_and_of_right_answers() -> None:
    bench = Bench(min_probability=0.1)
    bench.show({10: 0.5, 11: 0.48})
    match = bench.localizer.localise(IMAGE, 0, Pose.planar(0, 0, 0))
    assert match.pose is not None
    assert match.covariance is not None
    # Bayes' rule by hand, over the candidates within the radius of the best: all had the same probability before.
    near = [i for i in match.candidates.place_ids.tolist() if abs(4.0 * i - 40.0) <= 10.0]
    weights = np.array([math.exp(max(-6, min(6, -1 + 13.333 * {10: 0.5, 11: 0.48}.get(i, 0.0)))) for i in near])
    weights /= weights.sum()
    along = np.array([4.0 * i for i in near])
    mean = float(weights @ along)
    assert match.pose.position[0] == pytest.approx(mean, abs=0.02)
    assert match.covariance[0, 0] == pytest.approx(4.0**2 / 12 + 0.5**2 + weights @ (along - mean) ** 2, abs=0.05)
    assert match.covariance[1, 1] == pytest.approx(1.0**2)
    np.testing.assert_array_equal(match.covariance, match.covariance.T)
    # Surer of one of them, the ellipse is smaller; never below what right answers are off by.
    bench.localizer.reset()
    bench.show({10: 0.6})
    sure = bench.localizer.localise(IMAGE, 0, Pose.planar(0, 0, 0)).covariance
    assert sure is not None
    assert 4.0**2 / 12 + 0.5**2 <= sure[0, 0] < match.covariance[0, 0]


def test_without_odometry_a_sure_image_answers_by_itself() -> None:
    bench, alone = Bench(), Bench(mode="single")
    for each in (bench, alone):
        each.show({10: 0.6})
    ours, single = bench.localizer.localise(IMAGE, 0), alone.localizer.localise(IMAGE, 0)
    assert ours.accepted
    assert ours.probability == pytest.approx(max(single.probability, ours.probability))
    # Images that are not sure are still filtered: the same place is seen again and again.
    bench.localizer.reset()
    accepted = []
    for i in range(8):
        bench.show({10: 0.3})
        accepted.append(bench.localizer.localise(IMAGE, i * SECOND).accepted)
    assert not accepted[0]
    assert accepted[-1]


def test_the_spread_turns_with_the_robot() -> None:
    bench = Bench(min_probability=0.1)
    bench.show({10: 0.6})
    bench.localizer.localise(IMAGE, 0, Pose.planar(0, 0, 0))
    turned = bench.localizer.localise(IMAGE, SECOND // 10, Pose.planar(0, 0, 0.3)).covariance
    assert turned is not None
    values, vectors = np.linalg.eigh(turned[:2, :2])
    assert values[1] > values[0]
    assert math.atan(vectors[1, 1] / vectors[0, 1]) == pytest.approx(0.3, abs=0.01)


def test_an_image_like_no_place_speaks_for_off_the_map() -> None:
    bench = Bench()
    for i in range(3):
        bench.show({5 + i: 0.45})
        known = bench.localizer.localise(IMAGE, i * SECOND, Pose.planar(4.0 * i, 0, 0))
    for i in range(3, 12):
        bench.show({})
        unknown = bench.localizer.localise(IMAGE, i * SECOND, Pose.planar(4.0 * i, 0, 0))
    assert known.accepted
    assert not unknown.accepted
    belief = bench.localizer.belief
    assert belief is not None
    assert belief.unknown > 0.9


def test_reset_and_time_that_jumps_back_forget() -> None:
    bench = Bench()
    bench.show({10: 0.4})
    first = bench.localizer.localise(IMAGE, 0).probability
    for i in range(1, 5):
        last = bench.localizer.localise(IMAGE, i * SECOND).probability
    assert last > first + 0.05
    assert bench.localizer.localise(IMAGE, SECOND).probability == pytest.approx(first)
    bench.localizer.localise(IMAGE, 2 * SECOND)
    bench.localizer.reset()
    assert bench.localizer.localise(IMAGE, 3 * SECOND).probability == pytest.approx(first)


def test_what_tells_nothing_is_refused_and_forgets_nothing() -> None:
    bench = Bench(min_similarity=0.25, min_probability=0.01)
    bench.show({10: 0.2})
    assert bench.localizer.localise(IMAGE, 0).reason == "similarity 0.200 below 0.25"
    bench.show({10: 0.6})
    known = bench.localizer.localise(IMAGE, SECOND)
    bench.backend.answer = np.zeros(PLACES + 1)
    empty = bench.localizer.localise(IMAGE, 2 * SECOND)
    assert "no usable descriptor" in empty.reason
    bench.show({10: 0.6})
    assert bench.localizer.localise(IMAGE, 2 * SECOND).probability > known.probability


def test_the_mode_is_checked() -> None:
    with pytest.raises(ConfigError, match="did you mean 'belief'"):
        LocalizerConfig(mode="beliefs")
    with pytest.raises(ConfigError, match="carries no calibration"):
        Bench(None, min_similarity=0.5)
    with pytest.raises(ConfigError, match="export it again"):
        Bench(Calibration(-3.0, 10.0, 0.0, cluster_radius_m=10.0, right=60, wrong=40))
