"""Positives, negatives, batches and triplets against naive definitions."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.sessions import loop_session
from training.data.dataset import Keyframes
from training.data.pairing import Pairing, place_masks, same_place
from training.data.samplers import BatchConfig, PlaceSampler, RelationSampler, nearest_in_other_sessions
from training.engine.task import TaskConfig, TripletTask, all_triplets, batch_hard_triplets
from training.evaluation.protocol import right_answers
from training.evaluation.results import Protocol
from vpr_kd_ros.errors import ConfigError, DataError


def test_place_masks_follow_the_definition() -> None:
    rng = np.random.default_rng(0)
    positions = rng.uniform(0, 80, (40, 3))
    yaws = rng.uniform(-np.pi, np.pi, 40)
    regions = rng.integers(0, 2, 40)
    positions[::7] = np.nan
    yaws[::7] = np.nan
    pairing = Pairing(positive_m=15, negative_m=40, heading_deg=60)
    positive, negative = place_masks(positions, yaws, regions, pairing)
    for i in range(40):
        for j in range(40):
            posed = i % 7 and j % 7
            d = np.hypot(*(positions[i] - positions[j])[:2])
            turn = abs(np.angle(np.exp(1j * (yaws[i] - yaws[j]))))
            same = regions[i] == regions[j]
            assert positive[i, j] == bool(posed and i != j and same and d <= 15 and turn <= np.deg2rad(60))
            assert negative[i, j] == bool(posed and i != j and (not same or d > 40))


@pytest.mark.parametrize("values", [{"positive_m": 0}, {"positive_m": 60, "negative_m": 50}, {"heading_deg": 200}])
def test_impossible_radii_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="pairing"):
        Pairing(**values)


def test_apart_and_turned_may_count_together() -> None:
    rng = np.random.default_rng(0)
    positions = rng.uniform(0, 60, (40, 3))
    yaws = rng.uniform(-np.pi, np.pi, 40) * 0.4 + np.pi
    positions[::7] = np.nan
    regions = rng.integers(0, 2, 40)
    positive, _ = place_masks(positions, yaws, regions, Pairing(25.0, 50.0, 40.0, together=True))
    found = 0
    for i in range(40):
        for j in range(40):
            apart = np.hypot(*(positions[i] - positions[j])[:2]) / 25
            turned = np.degrees(abs(np.angle(np.exp(1j * (yaws[i] - yaws[j]))))) / 40
            expected = bool(i % 7 and j % 7 and i != j and regions[i] == regions[j] and apart + turned < 1)
            assert positive[i, j] == expected
            found += expected
    assert found > 20


def test_a_street_driven_the_other_way_is_no_positive() -> None:
    positive, negative = place_masks(np.zeros((2, 3)), np.array([0.0, np.pi]), np.zeros(2, dtype=np.int64), Pairing())
    assert not positive.any()
    assert not negative.any()


@pytest.fixture
def keyframes(tmp_path: Path) -> Keyframes:
    """Two labelled drives and one unlabelled one around one loop, and one labelled drive elsewhere."""
    return Keyframes(
        [
            loop_session(tmp_path / "a", "a", region="north", frames=30, seed=1),
            loop_session(tmp_path / "b", "b", region="north", frames=30, seed=2),
            loop_session(tmp_path / "c", "c", region="north", frames=30, seed=3, labelled=False),
            loop_session(tmp_path / "d", "d", region="south", frames=30, seed=4),
        ],
        preprocess=None,
    )


def test_place_batches_are_windows_seen_in_several_drives(keyframes: Keyframes) -> None:
    pairing = Pairing(positive_m=6, negative_m=30)
    batch = BatchConfig(windows=3, places=4, views=2)
    batches = iter(PlaceSampler(keyframes, pairing, batch, np.random.default_rng(0)))
    seen = set()
    for _ in range(50):
        indices = next(batches)
        assert len(set(indices.tolist())) == len(indices) <= 3 * 4 * 2
        assert keyframes.labelled[indices].all()
        positive, _ = place_masks(
            keyframes.positions[indices], keyframes.yaws[indices], keyframes.region_of[indices], pairing
        )
        other_drive = keyframes.session_of[indices][:, None] != keyframes.session_of[indices][None, :]
        assert (positive & other_drive).any()
        seen.update(indices.tolist())
    assert seen == set(range(60)), "every keyframe with a view in another drive is drawn sooner or later, no other"


def test_labelled_drives_that_never_meet_are_an_error(tmp_path: Path) -> None:
    lonely = Keyframes([loop_session(tmp_path / "a", "a", region="north", frames=10, seed=1)], preprocess=None)
    with pytest.raises(DataError, match="record the same streets twice"):
        PlaceSampler(lonely, Pairing(), BatchConfig(), np.random.default_rng(0))


def test_neighbours_are_the_nearest_of_other_drives() -> None:
    rng = np.random.default_rng(3)
    descriptors = rng.normal(size=(50, 8)).astype(np.float32)
    sessions = np.repeat(np.arange(5), 10)
    rows = np.array([0, 13, 49])
    found = nearest_in_other_sessions(descriptors, sessions, rows, k=6)
    for row, near in zip(rows, found, strict=True):
        distance = {j: np.linalg.norm(descriptors[row] - descriptors[j]) for j in range(50)}
        expected = sorted((j for j in range(50) if sessions[j] != sessions[row]), key=distance.__getitem__)[:6]
        assert set(near.tolist()) == set(expected)


def test_one_drive_alone_has_no_neighbours() -> None:
    found = nearest_in_other_sessions(np.eye(4, dtype=np.float32), np.zeros(4, dtype=np.int64), np.arange(4), k=3)
    assert (found == -1).all()


def test_relation_batches_hold_anchors_and_the_teachers_neighbours(keyframes: Keyframes) -> None:
    descriptors = np.random.default_rng(0).normal(size=(len(keyframes), 4)).astype(np.float32)
    pool = np.flatnonzero(~keyframes.labelled)
    batch = BatchConfig(anchors=5, neighbours=2, among=4)
    indices = next(iter(RelationSampler(descriptors, keyframes.session_of, pool, batch, np.random.default_rng(1))))
    assert 5 <= len(indices) <= 15
    anchors = indices[np.isin(indices, pool)]
    allowed = nearest_in_other_sessions(descriptors, keyframes.session_of, anchors, k=4)
    assert set(indices.tolist()) <= set(anchors.tolist()) | set(allowed.ravel().tolist())


def _masks(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.integers(0, 4, n))
    same = labels[:, None] == labels[None, :]
    return same & ~torch.eye(n, dtype=torch.bool), ~same


def test_hard_triplets_against_a_naive_search() -> None:
    descriptors = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    distance = torch.cdist(descriptors, descriptors)
    positive, negative = _masks(20, 1)
    anchors, far, near = batch_hard_triplets(distance, positive, negative)
    assert anchors.tolist() == [i for i in range(20) if positive[i].any() and negative[i].any()]
    for a, p, n in zip(anchors.tolist(), far.tolist(), near.tolist(), strict=True):
        assert distance[a, p] == max(distance[a, j] for j in range(20) if positive[a, j])
        assert distance[a, n] == min(distance[a, j] for j in range(20) if negative[a, j])


def test_all_triplets_against_three_loops() -> None:
    positive, negative = _masks(9, 2)
    expected = {
        (a, p, n) for a in range(9) for p in range(9) for n in range(9) if positive[a, p] and negative[a, n]
    }  # fmt: skip
    found = list(zip(*(column.tolist() for column in all_triplets(positive, negative)), strict=True))
    assert len(found) == len(expected)
    assert set(found) == expected


def test_task_loss_against_the_formula() -> None:
    descriptors = torch.randn(12, 6, generator=torch.Generator().manual_seed(3), requires_grad=True)
    positive, negative = _masks(12, 4)
    loss = TripletTask(TaskConfig(margin=0.7, weight=0.5))(descriptors, positive, negative, progress=0.9)
    rows = descriptors.detach().numpy()
    terms = []
    for a in range(12):
        p = max((j for j in range(12) if positive[a, j]), key=lambda j: np.linalg.norm(rows[a] - rows[j]), default=None)
        n = min((j for j in range(12) if negative[a, j]), key=lambda j: np.linalg.norm(rows[a] - rows[j]), default=None)
        if p is None or n is None:
            continue
        to_negative = min(np.linalg.norm(rows[a] - rows[n]), np.linalg.norm(rows[p] - rows[n]))
        terms.append(max(0.0, np.linalg.norm(rows[a] - rows[p]) - to_negative + 0.7))
    violated = [t for t in terms if t > 0]
    assert loss.item() == pytest.approx(0.5 * np.mean(violated), rel=1e-5)


@pytest.mark.parametrize("progress", [0.0, 0.9])
def test_a_batch_without_triplets_costs_nothing_and_breaks_nothing(progress: float) -> None:
    descriptors = torch.randn(4, 3, requires_grad=True)
    nothing = torch.zeros(4, 4, dtype=torch.bool)
    loss = TripletTask(TaskConfig(batch_all=0.5))(descriptors, nothing, nothing, progress)
    loss.backward()
    assert loss.item() == 0.0
    assert descriptors.grad is not None
    assert (descriptors.grad == 0).all()


@settings(max_examples=60, deadline=None)
@given(
    places=st.lists(st.tuples(*[st.floats(-60, 60)] * 2, st.floats(-7, 7)), min_size=1, max_size=8),
    others=st.lists(st.tuples(*[st.floats(-60, 60)] * 2, st.floats(-7, 7)), min_size=1, max_size=8),
    radius=st.floats(1, 60),
    heading=st.none() | st.floats(1, 179),
)
def test_same_place_is_what_two_loops_say(
    places: list[tuple[float, ...]], others: list[tuple[float, ...]], radius: float, heading: float | None
) -> None:
    a, b = np.array(places), np.array(others)
    same = same_place(a[:, :2], a[:, 2], b[:, :2], b[:, 2], radius, heading)
    for i, (x, y, yaw) in enumerate(places):
        for j, (u, v, other) in enumerate(others):
            apart, turned = np.hypot(x - u, y - v), np.degrees(abs(np.angle(np.exp(1j * (yaw - other)))))
            if abs(apart - radius) > 1e-6 and (heading is None or abs(turned - heading) > 1e-6):
                assert same[i, j] == (apart < radius and (heading is None or turned < heading))


def test_long_drives_are_compared_in_little_memory() -> None:
    rng = np.random.default_rng(0)
    a, b = (np.column_stack([rng.uniform(0, 400, (n, 2)), rng.uniform(-3, 3, n)]) for n in (2500, 3000))
    tracemalloc.start()
    same = same_place(a[:, :2], a[:, 2], b[:, :2], b[:, 2], 25.0, 45.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < same.size + 100e6, "a byte of the answer each, and a block"
    for i in rng.integers(0, 2500, 20):
        near = np.hypot(*(b[:, :2] - a[i, :2]).T) <= 25
        turned = np.abs(np.angle(np.exp(1j * (b[:, 2] - a[i, 2]))))
        assert np.array_equal(same[i], near & (turned <= np.deg2rad(45)))


def test_training_and_evaluation_agree_on_what_is_the_same_place(keyframes: Keyframes) -> None:
    one, other = keyframes.sessions[0], keyframes.sessions[1]
    pairing = Pairing(positive_m=12, negative_m=30, heading_deg=30)
    places, yaws = np.vstack([one.positions, other.positions]), np.concatenate([one.yaws, other.yaws])
    positive, _ = place_masks(places, yaws, np.zeros(len(places), dtype=np.int64), pairing)
    right = right_answers(one, other, Protocol(radius_m=12, heading_deg=30))
    assert right.any()
    assert np.array_equal(right, positive[: len(one), len(one) :])
    by_distance = right_answers(one, other, Protocol(radius_m=12))
    assert (right <= by_distance).all()
