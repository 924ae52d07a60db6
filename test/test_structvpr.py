"""StructVPR's ranks, groups, weights and loss against loops over the paper's definitions."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from support.largest_tensor import LargestTensor
from training.distillation.adaptor import Adaptor
from training.distillation.method import Beginning, Context, Triplets
from training.distillation.structvpr import GROUPS, StructVPR, function_weights, groups, positive_ranks
from vpr_kd_ros.errors import ConfigError

KEYFRAMES, DRIVES = 60, 3


def known(seed: int, student_dim: int = 7, teacher_dim: int = 9) -> Beginning:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (torch.randn(KEYFRAMES, dim, generator=generator) for dim in (teacher_dim, student_dim))
    return Beginning(teacher, student, torch.arange(DRIVES).repeat_interleave(KEYFRAMES // DRIVES))


def draw(seed: int, samples: int = 10, triplets: int = 14) -> tuple[Tensor, Triplets]:
    """Keyframes of a batch, each once, and triplets of different rows."""
    generator = torch.Generator().manual_seed(seed)
    keyframes = torch.randperm(KEYFRAMES, generator=generator)[:samples]
    rows = torch.stack([torch.randperm(samples, generator=generator)[:3] for _ in range(triplets)])
    return keyframes, (rows[:, 0], rows[:, 1], rows[:, 2])


def naive_rank(descriptors: Tensor, sessions: Tensor, query: int, positive: int) -> int:
    """Sort p's drive by the angle to q, what is as near as p before it, and look where p is."""
    unit = descriptors.double().numpy()
    drive = [i for i, session in enumerate(sessions.tolist()) if session == sessions[positive] and i != query]

    def cosine(i: int) -> float:
        return float(unit[query] @ unit[i] / np.linalg.norm(unit[query]) / np.linalg.norm(unit[i]))

    ordered = sorted(drive, key=cosine, reverse=True)
    return max(place for place, i in enumerate(ordered, 1) if abs(cosine(i) - cosine(positive)) < 1e-9)


def naive_group(x: int, y: int, n_t: int) -> str:
    if x <= n_t and y > n_t:
        return "D1"
    if x <= y <= n_t:
        return "D2"
    if y < x <= n_t:
        return "D3"
    assert x > n_t
    return "D4"


def naive_weight(x: int, y: int) -> float:
    """Eq. 4 with N_t = 10 and N_m = 20."""
    group = naive_group(x, y, 10)
    if group == "D1":
        return 1 + (min(20, y) - x) / (4 * math.log(1 + x))
    if group == "D2":
        return 1 + (y - x) / (5 * math.log(1 + x))
    if group == "D3":
        return 1 + (y - x) / (4 * math.log(1 + x))
    return 0.0


@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_ranks_are_those_of_a_sort(spread: float) -> None:
    sessions = known(0).sessions
    # A small spread: all descriptors nearly the same, as those of a network that is hardly trained.
    descriptors = F.normalize(1 - spread + spread * known(0).teacher.double(), dim=1)
    queries, positives = torch.cartesian_prod(torch.arange(KEYFRAMES), torch.arange(KEYFRAMES)).unbind(1)
    different = (queries != positives) & (queries % 7 == 0)
    queries, positives = queries[different], positives[different]
    found = positive_ranks(descriptors, sessions, queries, positives)
    expected = [naive_rank(descriptors, sessions, int(q), int(p)) for q, p in zip(queries, positives, strict=True)]
    assert found.tolist() == expected
    assert set(expected) == set(range(1, KEYFRAMES // DRIVES + 1))


def test_what_is_as_near_as_the_positive_is_before_it() -> None:
    rows = torch.eye(4, dtype=torch.float64)[[0, 0, 0, 1, 2, 0]]
    sessions = torch.tensor([0, 1, 1, 1, 1, 2])
    queries, positives = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([1, 2, 3, 2, 0])
    # 1 and 2 are as near to 0 as can be, 3 is as far as 4; the drive of 0 holds it alone.
    assert positive_ranks(rows, sessions, queries, positives).tolist() == [2, 2, 4, 1, 1]
    expected = [naive_rank(rows, sessions, int(q), int(p)) for q, p in zip(queries, positives, strict=True)]
    assert expected == [2, 2, 4, 1, 1]


def test_a_branch_that_cannot_tell_places_apart_ranks_them_last_and_teaches_nothing() -> None:
    beginning = known(1)
    method = StructVPR()
    for alike in (torch.ones(KEYFRAMES, 9), torch.zeros(KEYFRAMES, 9)):
        method.begin(replace(beginning, teacher=alike))
        x, y = method.ranks(torch.tensor([0, 1]), torch.tensor([30, 55]))
        assert x.tolist() == [20, 20]
        assert method.sample_weights(x, y).tolist() == [0, 0]


def test_a_keyframe_that_is_its_own_positive_is_found_at_once() -> None:
    """Two processes may draw one keyframe, each augmented on its own: a pair at distance zero."""
    method = StructVPR()
    method.begin(known(2))
    x, y = method.ranks(torch.tensor([4]), torch.tensor([4]))
    assert (x.tolist(), y.tolist()) == ([1], [1])
    assert method.sample_weights(x, y).tolist() == [1]


def all_ranks(last: int = 40) -> tuple[Tensor, Tensor]:
    x, y = torch.cartesian_prod(torch.arange(1, last + 1), torch.arange(1, last + 1)).unbind(1)
    return x, y


@pytest.mark.parametrize("n_t", [1, 3, 10, 15])
def test_the_groups_are_a_partition(n_t: int) -> None:
    x, y = all_ranks()
    found = groups(x, y, "gp-d", n_t)
    assert found.tolist() == [GROUPS["gp-d"].index(naive_group(int(a), int(b), n_t)) for a, b in zip(x, y, strict=True)]
    assert set(found.tolist()) == ({0, 1, 3} if n_t == 1 else {0, 1, 2, 3})
    assert torch.equal(groups(x, y, "gp-s", n_t) == 0, found < 3), "S1 is D1, D2 and D3; S2 is D4"
    assert torch.equal(groups(x, y, "gp-r", n_t) == 0, y <= n_t)


@pytest.mark.parametrize(
    ("x", "y", "weight"),
    [(1, 20, 7.85), (1, 35, 7.85), (1, 10, 3.60), (10, 1, 0.06), (11, 1, 0.0), (11, 50, 0.0), (5, 5, 1.0)],
)
def test_the_weights_at_the_points_of_the_supplement(x: int, y: int, weight: float) -> None:
    found = StructVPR().sample_weights(torch.tensor([x]), torch.tensor([y]))
    assert found.item() == pytest.approx(weight, abs=0.005)


def test_the_weights_are_those_of_equation_4_everywhere() -> None:
    x, y = all_ranks()
    found = StructVPR().sample_weights(x, y)
    expected = [naive_weight(int(a), int(b)) for a, b in zip(x, y, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    assert found[x > 10].abs().max() == 0


@pytest.mark.parametrize("n_t", [1, 10, 11, 30, 40])
def test_weights_are_never_negative(n_t: int) -> None:
    x, y = all_ranks()
    for partition in ("gp-d", "gp-s"):
        assert function_weights(x, y, partition, n_t, max(20, n_t)).min() >= 0


def test_the_partition_by_the_teacher_alone_degenerates_to_equation_7() -> None:
    x, y = all_ranks()
    found = StructVPR(partition="gp-s").sample_weights(x, y)
    expected = [1 + 1 / (4 * math.log(1 + int(a))) if a <= 10 else 0.0 for a in x]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("partition", "weights"),
    [
        ("gp-d", [8, 4, 1, 0]),
        ("gp-d", [1, 0, 0, 0]),
        ("gp-d", [0, 0, 0, 1]),
        ("gp-s", [1.0, 0.0]),
        ("gp-s", [0, 1]),
        ("gp-r", [1, 0]),
    ],
)
def test_constant_weights_select_groups(partition: str, weights: list[float]) -> None:
    x, y = all_ranks()
    found = StructVPR(partition=partition, weights=weights).sample_weights(x, y)
    for rank_x, rank_y, weight in zip(x.tolist(), y.tolist(), found.tolist(), strict=True):
        if partition == "gp-d":
            number = ("D1", "D2", "D3", "D4").index(naive_group(rank_x, rank_y, 10))
        else:
            number = int((rank_x if partition == "gp-s" else rank_y) > 10)
        assert weight == weights[number]


def naive_loss(
    teacher: Tensor, student: Tensor, beginning: Beginning, keyframes: Tensor, triplets: Triplets, adaptor: Adaptor
) -> Tensor:
    """Eq. 4 to 6, one triplet after the other."""
    total = torch.zeros((), dtype=torch.float64)
    matrix, bias = adaptor.linear.weight, adaptor.linear.bias
    for q, p, n in zip(*(rows.tolist() for rows in triplets), strict=True):
        pair = int(keyframes[q]), int(keyframes[p])
        x, y = (naive_rank(rows, beginning.sessions, *pair) for rows in (beginning.teacher, beginning.student))
        for image in (q, p, n):
            mapped = torch.stack([sum(row * student[image]) for row in matrix.to(student.dtype)]) + bias
            total = total + naive_weight(x, y) * sum((teacher[image] - mapped.to(teacher.dtype)) ** 2)
    return total / len(triplets[0])


def case(dtype: torch.dtype) -> tuple[StructVPR, Tensor, Tensor, Beginning, Tensor, Triplets]:
    beginning = known(3)
    keyframes, triplets = draw(4)
    method = StructVPR()
    torch.manual_seed(5)
    method.adaptor = Adaptor("student", teacher_dim=9, student_dim=7)
    method.adaptor.to(dtype)
    method.begin(beginning)
    generator = torch.Generator().manual_seed(6)
    student = torch.randn(len(keyframes), 7, generator=generator, dtype=dtype).requires_grad_()
    return method, beginning.teacher[keyframes].to(dtype), student, beginning, keyframes, triplets


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-11)])
def test_the_loss_and_its_gradients_are_those_of_the_loops(dtype: torch.dtype, tolerance: float) -> None:
    method, teacher, student, beginning, keyframes, triplets = case(dtype)
    assert method.adaptor is not None
    terms = method(teacher, student, Context(keyframes, triplets))
    assert terms["feature"].dtype == dtype
    expected = naive_loss(teacher.double(), student, beginning, keyframes, triplets, method.adaptor)
    torch.testing.assert_close(terms["feature"].double(), expected, rtol=tolerance, atol=0)
    learnt = [student, *method.adaptor.parameters()]
    found, wanted = (torch.autograd.grad(loss, learnt) for loss in (terms["feature"], expected))
    for left, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(left, right, rtol=10 * tolerance, atol=10 * tolerance)


def test_pairs_that_the_teacher_does_not_find_contribute_nothing() -> None:
    method, teacher, student, _, keyframes, triplets = case(torch.float64)
    x, _ = method.ranks(keyframes[triplets[0]], keyframes[triplets[1]])
    lost = x > 10
    assert lost.any()
    terms = method(teacher, student, Context(keyframes, tuple(rows[lost] for rows in triplets)))  # type: ignore[arg-type]
    assert terms["feature"].item() == 0
    assert torch.autograd.grad(terms["feature"], student)[0].abs().max() == 0


def test_a_batch_without_triplets_has_a_loss_of_zero_that_reaches_the_adaptor() -> None:
    method, teacher, student, _, keyframes, _ = case(torch.float32)
    none = torch.empty(0, dtype=torch.int64)
    method(teacher, student, Context(keyframes, (none, none, none)))["feature"].backward()
    assert method.adaptor is not None
    assert method.adaptor.linear.weight.grad.abs().max() == 0, "as DDP wants it: a gradient, of zero"
    assert student.grad.abs().max() == 0


def test_ranks_take_memory_by_pairs_times_keyframes_not_by_keyframes_squared() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(2000, 8, generator=generator), dim=1)
    queries = torch.arange(10)
    with LargestTensor() as mode:
        positive_ranks(rows, torch.arange(2000) % 4, queries, queries + 100)
    assert mode.entries <= max(10 * 2000, rows.numel())


def test_what_it_knows_is_not_in_its_checkpoint() -> None:
    """A resumed training makes it again from the same teacher and the same start."""
    method, *_ = case(torch.float32)
    assert set(method.state_dict()) == {"adaptor.linear.weight", "adaptor.linear.bias"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partition": "gp-x"}, "no partition 'gp-x'"),
        ({"weights": "equation"}, "no weights 'equation'"),
        ({"weights": [8.0, 4.0]}, "one number >= 0 for each of D1, D2, D3, D4"),
        ({"weights": [1.0, -1.0], "partition": "gp-s"}, "one number >= 0 for each of S1, S2"),
        ({"partition": "gp-r"}, "give its weights as"),
        ({"n_t": 0}, "1 <= n_t <= n_m"),
        ({"n_t": 30}, "1 <= n_t <= n_m"),
    ],
)
def test_options_that_cannot_be_name_the_mend(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StructVPR(**options)


def test_a_context_that_lacks_something_is_refused() -> None:
    method, teacher, student, _, keyframes, triplets = case(torch.float32)
    for context in (Context(keyframes), Context(None, triplets)):
        with pytest.raises(ValueError, match="the context has no triplets"):
            method(teacher, student, context)
    fresh = StructVPR()
    with pytest.raises(ValueError, match="begin"):
        fresh(teacher, teacher.clone(), Context(keyframes, triplets))
