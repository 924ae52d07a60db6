"""The localizer in mode belief: on descriptors that the test chooses, with odometry and without."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

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
# Of one candidate with nothing near it in similarity: 0.3 gives p = 0.5, 0.5 gives 0.88.
CALIBRATION = Calibration(-3.0, 10.0, 0.0, cluster_radius_m=10.0, right=60, wrong=40)
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

    def __init__(self, calibration: Calibration | None = CALIBRATION, **config: object) -> None:
        self.backend = Preset()
        metadata = StudentMetadata("preset", "none", PLACES + 1, Preprocess(8, 8), {}, calibration, "ab" * 32)
        place_map = PlaceMap(PLACES + 1, "ab" * 32, "map")
        for i in range(PLACES):
            place_map.add(np.eye(PLACES + 1, dtype=np.float32)[i], Pose.planar(4.0 * i, 0.0, 0.0, z=1.5), i, "s")
        options = {"mode": "belief", "candidates": 5, "belief": BeliefConfig(trust=1.0), **config}
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


def test_the_spread_of_the_posterior_is_in_the_covariance() -> None:
    sharp, wide = (
        Bench(min_probability=0.1),
        Bench(min_probability=0.1, belief=BeliefConfig(candidate_sigma_m=8.0, trust=1.0)),
    )
    spread = []
    for bench in (sharp, wide):
        bench.show({10: 0.6})
        match = bench.localizer.localise(IMAGE, 0)
        assert match.covariance is not None
        spread.append(match.covariance[0, 0])
        posterior = match.covariance[0, 0] - 4.0**2 / 12
        # Variance of a normal density, cut off at the cluster's radius.
        assert 0 < posterior < 10.0**2 / 3
    assert spread[1] > 1.5 * spread[0]


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
    bench = Bench(min_similarity=0.25)
    bench.show({10: 0.2})
    nothing = bench.localizer.localise(IMAGE, 0)
    assert (nothing.accepted, nothing.place_id) == (False, None)
    assert nothing.reason == "nothing that was seen so far tells where"
    assert math.isnan(nothing.probability)
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
