"""The localizer on descriptors that the test chooses, against loops, and on pictures with a real student."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from support.tiny import picture
from vpr_kd_ros.calibration import Calibration
from vpr_kd_ros.errors import ConfigError, DataError
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.localizer import Localizer, LocalizerConfig
from vpr_kd_ros.mapper import Mapper, MapperConfig
from vpr_kd_ros.match import Match
from vpr_kd_ros.place_map import PlaceMap
from vpr_kd_ros.pose_estimate import ANGLE_DEVIATION_RAD
from vpr_kd_ros.preprocess import Preprocess
from vpr_kd_ros.student import Student, StudentMetadata
from vpr_kd_ros.verification import VerificationConfig

DIM = 24
IMAGE = np.zeros((8, 8, 3), dtype=np.uint8)
CALIBRATION = Calibration(-6.0, 8.0, 6.0, cluster_radius_m=10.0, right=50, wrong=50)
Floats = NDArray[np.float64]


class Preset:
    """A backend that describes every image by the vector it was last told."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.answer: Floats = np.ones(DIM)

    def describe(self, batch: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.answer).to(torch.float32).expand(len(batch), -1)


def preset_student(calibration: Calibration | None = CALIBRATION) -> tuple[Student, Preset]:
    backend = Preset()
    metadata = StudentMetadata("preset", "none", DIM, Preprocess(8, 8), {}, calibration, "ab" * 32)
    return Student(metadata, backend), backend


def like(query: Floats, similarity: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """A unit vector with this inner product with a unit query."""
    other = rng.standard_normal(DIM)
    other -= (other @ query) * query
    other /= np.linalg.norm(other)
    return np.asarray(similarity * query + math.sqrt(1 - similarity**2) * other, dtype=np.float32)


def scene(
    places: list[tuple[float, float, float, float]], calibration: Calibration | None = CALIBRATION, **config: Any
) -> tuple[Localizer, Match]:
    """Localise a query among places (x, y, yaw, similarity)."""
    student, backend = preset_student(calibration)
    rng = np.random.default_rng(0)
    query = rng.standard_normal(DIM)
    query /= np.linalg.norm(query)
    backend.answer = 3.0 * query
    place_map = PlaceMap(DIM, "ab" * 32, "map")
    for i, (x, y, yaw, similarity) in enumerate(places):
        place_map.add(like(query, similarity, rng), Pose.planar(x, y, yaw), i, "s")
    localizer = Localizer(student, place_map, LocalizerConfig(**config))
    return localizer, localizer.localise(IMAGE, 77)


def test_pictures_are_found_where_they_were_taken(tiny_student: Path) -> None:
    student = Student.load(tiny_student)
    place_map = PlaceMap(student.metadata.descriptor_dim, student.metadata.fingerprint, "map")
    mapper = Mapper(student, place_map, MapperConfig(min_distance_m=1.0))
    poses = [Pose.planar(20.0 * i, -3.0 * i, 0.1 * i) for i in range(15)]
    for i, pose in enumerate(poses):
        assert mapper.observe(picture(i), pose, i) == i
    localizer = Localizer(student, place_map, LocalizerConfig(min_similarity=0.95))
    noise = np.random.default_rng(0)
    for i, pose in enumerate(poses):
        seen = np.clip(picture(i, 120, 180).astype(int) + noise.integers(-20, 21, (120, 180, 3)), 0, 255)
        match = localizer.localise(seen.astype(np.uint8), 1000 + i)
        assert match.accepted, match.reason
        assert (match.place_id, match.stamp_ns, match.reason) == (i, 1000 + i, "")
        assert match.pose is not None
        np.testing.assert_allclose(match.pose.position, pose.position, atol=1e-9)
        assert match.pose.yaw == pytest.approx(pose.yaw)
        assert math.isnan(match.probability)
        assert set(match.seconds) == {"describe", "search", "weigh", "decide", "pose"}
        assert min(match.seconds.values()) >= 0
    elsewhere = localizer.localise(picture(99), 5)
    assert not elsewhere.accepted
    assert "similarity" in elsewhere.reason
    assert elsewhere.pose is None
    assert elsewhere.covariance is None
    assert len(elsewhere.candidates) == 10


def test_candidates_carry_calibrated_probabilities() -> None:
    places = [(0, 0, 0, 0.9), (4, 0, 0, 0.8), (50, 0, 0, 0.7), (52, 0, 0.5, 0.6), (100, 0, 0, 0.1)]
    _, match = scene(places, candidates=4)
    found = match.candidates
    assert found.place_ids.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(found.similarities, [0.9, 0.8, 0.7, 0.6], atol=2e-3)
    for i in range(4):
        others = [
            float(found.similarities[j])
            for j in range(4)
            if np.linalg.norm(found.positions[i] - found.positions[j]) > 10.0
        ]
        wanted = CALIBRATION.probability(float(found.similarities[i]), float(found.similarities[i]) - max(others))
        assert found.probabilities[i] == pytest.approx(wanted, abs=1e-9)
    assert match.probability == found.probabilities[0]
    assert match.similarity == found.similarities[0]
    np.testing.assert_allclose(found.positions[:, 0], [0, 4, 50, 52])
    np.testing.assert_allclose(found.yaws, [0, 0, 0, 0.5], atol=1e-12)


def test_two_places_that_look_alike_are_refused() -> None:
    _, sure = scene([(0, 0, 0, 0.8), (100, 0, 0, 0.1)], min_probability=0.9)
    assert sure.accepted
    _, torn = scene([(0, 0, 0, 0.8), (100, 0, 0, 0.79)], min_probability=0.9)
    assert not torn.accepted
    assert torn.reason == f"probability {torn.probability:.3f} below 0.9"
    assert torn.place_id == 0
    _, weak = scene([(0, 0, 0, 0.8), (100, 0, 0, 0.1)], min_probability=0.9, min_similarity=0.85)
    assert weak.reason == f"similarity {weak.similarity:.3f} below 0.85"


def test_an_empty_map_and_an_empty_descriptor() -> None:
    _, match = scene([])
    assert (match.accepted, match.reason, match.place_id) == (False, "the map is empty", None)
    assert len(match.candidates) == 0
    assert match.candidates.positions.shape == (0, 3)
    assert math.isnan(match.similarity)
    assert math.isnan(match.probability)
    student, backend = preset_student()
    place_map = PlaceMap(DIM, "ab" * 32, "map")
    place_map.add(np.eye(DIM, dtype=np.float32)[0], Pose.planar(0, 0, 0), 0, "s")
    localizer = Localizer(student, place_map, LocalizerConfig())
    for answer in (np.zeros(DIM), np.full(DIM, np.nan), np.full(DIM, np.inf)):
        backend.answer = answer
        match = localizer.localise(IMAGE, 0)
        assert not match.accepted
        assert "no usable descriptor" in match.reason


def test_the_pose_is_the_weighted_mean_of_those_that_agree() -> None:
    places = [
        (0.0, 0.0, 3.1, 0.90),
        (4.0, 2.0, -3.1, 0.80),  # heads the same way, across the wrap
        (2.0, 0.0, 0.0, 0.88),  # heads the other way
        (30.0, 0.0, 3.1, 0.60),  # another place
        (0.0, 6.0, 3.0, 0.55),  # near, but below the other place
    ]
    _, match = scene(places, min_probability=0.5)
    assert match.pose is not None
    assert match.covariance is not None
    s = match.candidates.similarities.astype(float)
    order = match.candidates.place_ids.tolist()
    assert order == [0, 2, 1, 3, 4]
    weights = {0: s[0] - s[3], 1: s[2] - s[3]}
    total = sum(weights.values())
    x = sum(w / total * places[i][0] for i, w in weights.items())
    y = sum(w / total * places[i][1] for i, w in weights.items())
    np.testing.assert_allclose(match.pose.position, [x, y, 0], atol=1e-9)
    sine = sum(w * math.sin(places[i][2]) for i, w in weights.items())
    cosine = sum(w * math.cos(places[i][2]) for i, w in weights.items())
    assert match.pose.yaw == pytest.approx(math.atan2(sine, cosine), abs=1e-9)
    assert abs(match.pose.yaw) > 3.0
    # Spread plus floor, term by term. Consecutive places are the map's spacing.
    steps = [math.dist(a[:2], b[:2]) for a, b in itertools.pairwise(places)]
    floor = float(np.median(steps)) ** 2 / 12
    wanted = np.zeros((6, 6))
    for i, w in weights.items():
        offset = np.array([places[i][0] - x, places[i][1] - y, 0.0])
        wanted[:3, :3] += w / total * np.outer(offset, offset)
        difference = math.remainder(places[i][2] - match.pose.yaw, 2 * math.pi)
        wanted[5, 5] += w / total * difference**2
    wanted += np.diag([floor] * 3 + [ANGLE_DEVIATION_RAD**2] * 3)
    np.testing.assert_allclose(match.covariance, wanted, atol=1e-9)


def test_the_covariance_is_never_zero() -> None:
    _, alone = scene([(5, 5, 1, 0.95)], min_probability=0.5)
    _, twins = scene([(5, 5, 1, 0.95), (5, 5, 1, 0.94)], min_probability=0.5)
    _, spread = scene([(5, 5, 1, 0.95), (9, 5, 1, 0.94), (90, 0, 0, 0)], min_probability=0.5)
    for match in (alone, twins, spread):
        assert match.covariance is not None
        np.testing.assert_array_equal(match.covariance, match.covariance.T)
        assert np.linalg.eigvalsh(match.covariance).min() > 1e-3
    assert alone.covariance is not None
    # A single keyframe tells no more than the place.
    assert alone.covariance[0, 0] == pytest.approx(10.0**2 / 12)


@pytest.mark.parametrize("spacing", [0.05, 0.5, 5.0])
def test_a_densely_mapped_street_does_not_change_the_margin(spacing: float) -> None:
    """However many places of the same street are nearer, the best of another place decides."""
    street = [(spacing * i, 0.0, 0.0, 0.9 - 0.001 * i) for i in range(30) if spacing * i <= 9.0]
    _, match = scene([*street, (500.0, 0.0, 0.0, 0.6)], candidates=3)
    assert match.candidates.positions[:, 0].max() == 500.0
    assert match.probability == pytest.approx(CALIBRATION.probability(0.9, 0.3), abs=2e-3)


def test_a_map_of_one_place_is_searched_to_its_end() -> None:
    _, match = scene([(0.1 * i, 0.0, 0.0, 0.8 - 0.01 * i) for i in range(12)], candidates=3)
    assert len(match.candidates) == 12


def test_roll_and_pitch_are_the_best_candidates() -> None:
    student, backend = preset_student()
    place_map = PlaceMap(DIM, "ab" * 32, "map")
    tilted = Rotation.from_euler("ZYX", [0.4, 0.2, -0.1])
    backend.answer = np.eye(DIM)[0]
    place_map.add(np.eye(DIM, dtype=np.float32)[0], Pose(np.array([1.0, 2, 3]), tilted.as_quat()), 0, "s")
    half = np.zeros(DIM, dtype=np.float32)
    half[:2] = 0.8, 0.6
    place_map.add(half, Pose(np.array([1.0, 2, 3]), Rotation.from_euler("ZYX", [0.6, 0, 0]).as_quat()), 0, "s")
    place_map.add(np.eye(DIM, dtype=np.float32)[5], Pose.planar(90, 0, 0), 0, "s")
    match = Localizer(student, place_map, LocalizerConfig(min_probability=0.5)).localise(IMAGE, 0)
    assert match.pose is not None
    yaw, pitch, roll = Rotation.from_quat(match.pose.quaternion).as_euler("ZYX")
    assert (pitch, roll) == pytest.approx((0.2, -0.1), abs=1e-9)
    assert 0.4 < yaw < 0.5
    assert match.pose.position[2] == pytest.approx(3.0)


def test_what_does_not_fit_is_refused_with_the_mend() -> None:
    student, _ = preset_student(None)
    calibrated, _ = preset_student()
    place_map = PlaceMap(DIM, "ab" * 32, "map")
    with pytest.raises(ConfigError, match="set min_similarity"):
        Localizer(student, place_map, LocalizerConfig())
    assert Localizer(student, place_map, LocalizerConfig(min_similarity=0.5)).cluster_radius_m > 0
    with pytest.raises(ConfigError, match=r"cluster_radius_m: 5\.0"):
        Localizer(calibrated, place_map, LocalizerConfig(cluster_radius_m=5.0))
    assert Localizer(calibrated, place_map, LocalizerConfig(cluster_radius_m=10.0)).cluster_radius_m == 10.0
    foreign = PlaceMap(DIM, "cd" * 32, "map")
    for make in (
        lambda: Localizer(calibrated, foreign, LocalizerConfig()),
        lambda: Mapper(student, foreign, MapperConfig()),
    ):
        with pytest.raises(DataError, match="rebuild the map"):
            make()
    for key, value in (
        ("candidates", 0),
        ("min_probability", 0.0),
        ("min_probability", math.nan),
        ("min_similarity", 2.0),
        ("cluster_radius_m", 0.0),
        ("cluster_radius_m", math.nan),
        ("yaw_window_rad", -1.0),
    ):
        with pytest.raises(ConfigError, match=key):
            LocalizerConfig(**{key: value})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="RGB"):
        Localizer(calibrated, place_map, LocalizerConfig()).localise(np.zeros((4, 4), dtype=np.uint8), 0)


def test_verification_refuses_what_the_pictures_do_not_show() -> None:
    student, backend = preset_student()
    rng = np.random.default_rng(0)
    street, other = (rng.integers(0, 256, (120, 160, 3), dtype=np.uint8) for _ in range(2))
    # Blocks have corners that noise alone has not.
    street, other = (np.kron(image[::10, ::10], np.ones((10, 10, 1), dtype=np.uint8)) for image in (street, other))
    backend.answer = np.eye(DIM)[0]
    place_map = PlaceMap(DIM, "ab" * 32, "map")
    place_map.add(np.eye(DIM, dtype=np.float32)[0], Pose.planar(1, 2, 0), 0, "s", street)
    place_map.add(np.eye(DIM, dtype=np.float32)[5], Pose.planar(90, 0, 0), 1, "s", other)
    plain = Localizer(student, place_map, LocalizerConfig(min_probability=0.5))
    strict = Localizer(
        student, place_map, LocalizerConfig(min_probability=0.5, verification=VerificationConfig(places=2))
    )
    shifted = np.roll(street, 4, axis=1)
    assert plain.localise(other, 0).accepted
    refused = strict.localise(other, 0)
    assert not refused.accepted
    assert "local features agree" in refused.reason
    assert (refused.pose, refused.covariance) == (None, None)
    found = strict.localise(shifted, 0)
    assert found.accepted, found.reason
    assert set(found.seconds) == {"describe", "search", "weigh", "decide", "pose", "verify"}
    bare = PlaceMap(DIM, "ab" * 32, "map")
    bare.add(np.eye(DIM, dtype=np.float32)[0], Pose.planar(1, 2, 0), 0, "s")
    bare.add(np.eye(DIM, dtype=np.float32)[5], Pose.planar(90, 0, 0), 1, "s")
    assert not Localizer(student, bare, strict.config).localise(shifted, 0).accepted
