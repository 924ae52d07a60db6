"""Placing drives without poses by what a teacher recognises."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from training.data.dataset import Keyframes
from training.data.pairing import Pairing
from training.data.placing import PlacingConfig, matches_in_step, place
from training.sessions import Session, SessionInfo, SessionWriter
from vpr_kd_ros.errors import ConfigError, DataError
from vpr_kd_ros.geometry import Pose

SURVEYED, RECORDED, LENGTH, SPACING_M = 3, 2, 40, 8.0
PAIRING = Pairing(positive_m=10.0, negative_m=25.0)


def naive_matches(drive: NDArray[np.float32], other: NDArray[np.float32], support: int) -> list[int]:
    """What ``matches_in_step`` promises, pair by pair."""
    distance = [[float(np.linalg.norm(a - b)) for b in other] for a in drive]
    nearest = [min(range(len(other)), key=row.__getitem__) for row in distance]
    back = [min(range(len(drive)), key=lambda i, j=j: distance[i][j]) for j in range(len(other))]  # type: ignore[misc]
    mutual = [back[j] == i for i, j in enumerate(nearest)]
    found = []
    for i, j in enumerate(nearest):
        votes = 0
        for step in (-2, -1, 1, 2):
            k = i + step
            if 0 <= k < len(drive) and mutual[k] and abs(nearest[k] - j - step) <= 1:
                votes += 1
        found.append(j if mutual[i] and votes >= support else -1)
    return found


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("support", [0, 1, 2, 3, 4])
@pytest.mark.parametrize(("length", "others"), [(1, 1), (2, 5), (3, 2), (30, 24)])
def test_matches_are_those_of_the_definition(support: int, length: int, others: int) -> None:
    rng = np.random.default_rng(length)
    street = rng.standard_normal((40, 6))
    drive = unit(street[3 : 3 + length] + 0.6 * rng.standard_normal((length, 6)))
    other = unit(street[:others] + 0.6 * rng.standard_normal((others, 6)))
    matches, distances = matches_in_step(drive, other, support)
    assert matches.tolist() == naive_matches(drive, other, support)
    for i, j in enumerate(matches.tolist()):
        if j >= 0:
            assert distances[i] == pytest.approx(float(np.linalg.norm(drive[i] - other[j])), abs=1e-3)


class Town:
    """Drives along the same streets in two regions: some surveyed, some simply recorded, in step give or take half a
    keyframe; descriptors as of a good teacher. The truth of the recorded ones is known here alone.
    """

    def __init__(self, folder: Path, surveyed: int = SURVEYED, noise: float = 0.4) -> None:
        rng = np.random.default_rng(5)
        sessions, descriptors, truth = [], [], []
        for region in ("north", "south"):
            street = rng.standard_normal((LENGTH * 10, 24))
            street = gaussian_filter1d(street, sigma=8.0, axis=0)  # it changes over some ten metres
            for number in range(surveyed + RECORDED):
                name = f"{region}-{number}"
                labelled = number < surveyed
                info = SessionInfo(name, region, "sun", frame_id="map" if labelled else "")
                along = np.arange(LENGTH) * 10 * 0.9 + rng.uniform(0, 8)
                with SessionWriter(folder / name, info) as writer:
                    for i, x in enumerate(along * SPACING_M / 10):
                        pose = Pose.planar(x, rng.normal(0, 0.5), 0.1)
                        writer.add(i + 1, np.zeros((8, 8, 3), np.uint8), pose=pose if labelled else None)
                        truth.append(pose.position)
                rows = street[along.astype(int)]
                descriptors.append(rows + noise * rows.std() * rng.standard_normal(rows.shape))
                sessions.append(Session(folder / name))
        self.keyframes = Keyframes(sessions, None)
        self.descriptors = np.concatenate(descriptors).astype(np.float32)
        self.truth = np.array(truth)


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Town:
    return Town(tmp_path_factory.mktemp("town"))


def test_recorded_drives_are_placed_where_they_were(town: Town) -> None:
    keyframes = town.keyframes
    placing = place(town.descriptors, keyframes, PlacingConfig(precision=0.98), PAIRING)
    assert not (placing.placed & keyframes.labelled).any()
    assert placing.placed.sum() > 0.7 * (~keyframes.labelled).sum()
    error = np.linalg.norm(placing.positions[:, :2] - town.truth[:, :2], axis=1)
    assert (error[placing.placed] <= PAIRING.positive_m).mean() >= 0.98
    np.testing.assert_allclose(placing.yaws[placing.placed], 0.1, atol=1e-6)
    surveyed = keyframes.labelled
    np.testing.assert_array_equal(placing.positions[surveyed], keyframes.positions[surveyed])
    assert np.isnan(placing.positions[~surveyed & ~placing.placed]).all()
    assert placing.precision >= 0.98
    assert f"placed {placing.placed.sum()} keyframes" in str(placing)


def test_what_is_asked_for_decides_how_near_a_match_must_be(tmp_path: Path) -> None:
    town = Town(tmp_path, noise=1.0)
    strict, lax = (
        place(town.descriptors, town.keyframes, PlacingConfig(precision=p, support=0), PAIRING) for p in (0.95, 0.5)
    )
    assert strict.limit < lax.limit
    assert strict.placed.sum() < lax.placed.sum()
    assert strict.precision >= 0.95


def test_a_place_that_looks_like_another_is_not_taken_for_it(town: Town) -> None:
    """Every fifth keyframe of the recorded drives has the looks of a far place; nothing before and after agrees."""
    keyframes, descriptors = town.keyframes, town.descriptors.copy()
    deceived = np.flatnonzero(~keyframes.labelled & (keyframes.frame_of % 5 == 2))
    for row in deceived:
        survey = np.flatnonzero(keyframes.labelled & (keyframes.region_of == keyframes.region_of[row]))
        far = survey[np.linalg.norm(keyframes.positions[survey] - town.truth[row], axis=1) > 100.0]
        descriptors[row] = descriptors[far[row % len(far)]]
    placing = place(descriptors, keyframes, PlacingConfig(precision=0.98), PAIRING)
    error = np.linalg.norm(placing.positions[:, :2] - town.truth[:, :2], axis=1)
    assert placing.placed[deceived].sum() == 0
    assert (error[placing.placed] <= PAIRING.positive_m).mean() >= 0.98
    alone = place(descriptors, keyframes, PlacingConfig(precision=0.98, support=0), PAIRING)
    assert alone.placed[deceived].sum() > 0, "the deception would have worked"


def test_surveyed_drives_that_contradict_one_another_place_nothing(tmp_path: Path) -> None:
    town = Town(tmp_path)
    keyframes = town.keyframes
    # The survey of one drive is off by a street: what it says of a place is not what the others say.
    positions = keyframes.positions.copy()
    positions[keyframes.session_of == 0] += [0.0, 60.0, 0.0]
    placing = place(
        town.descriptors, keyframes.with_poses(positions, keyframes.yaws), PlacingConfig(precision=0.3), PAIRING
    )
    both = placing.placed & (keyframes.region_of == keyframes.region_of[0])
    on_the_way = np.abs(placing.positions[both, 1]) < 5.0
    off = np.abs(placing.positions[both, 1] - 60.0) < 5.0
    assert (on_the_way | off).all(), "no mean of the two"


def test_one_survey_or_a_teacher_who_knows_nothing_is_an_error(tmp_path: Path, town: Town) -> None:
    single = Town(tmp_path, surveyed=1)
    with pytest.raises(DataError, match="two surveyed drives of one region"):
        place(single.descriptors, single.keyframes, PlacingConfig(precision=0.9), PAIRING)
    noise = np.random.default_rng(0).standard_normal(town.descriptors.shape).astype(np.float32)
    with pytest.raises(DataError, match=r"too few are right.*placing\.precision"):
        place(noise, town.keyframes, PlacingConfig(precision=0.98), PAIRING)


@pytest.mark.parametrize("values", [{"precision": -0.1}, {"precision": 1.5}, {"support": 5}, {"support": -1}])
def test_impossible_values_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        replace(PlacingConfig(), **values)  # type: ignore[arg-type]


def test_keyframes_with_other_poses_know_which_are_surveyed(town: Town) -> None:
    keyframes = town.keyframes
    placing = place(town.descriptors, keyframes, PlacingConfig(precision=0.98), PAIRING)
    placed = keyframes.with_poses(placing.positions, placing.yaws)
    np.testing.assert_array_equal(placed.surveyed, keyframes.labelled)
    np.testing.assert_array_equal(placed.labelled, keyframes.labelled | placing.placed)
    assert np.isnan(keyframes.positions[placing.placed]).all(), "the originals stay as they were"
