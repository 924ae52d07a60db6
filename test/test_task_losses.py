"""The task losses against loops over the papers' sums, and on batches with nothing to compare."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pytorch_metric_learning.miners import MultiSimilarityMiner
from torch import Tensor

from training.engine.config import TaskConfig
from training.engine.task import TASKS, informative_pairs, task_loss
from vpr_kd_ros.errors import ConfigError


def batch(seed: int, samples: int = 9, channels: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Descriptors, and positives and negatives that no labelling by classes could give."""
    generator = torch.Generator().manual_seed(seed)
    descriptors = torch.randn(samples, channels, generator=generator).requires_grad_()
    draw = torch.rand(samples, samples, generator=generator)
    draw = torch.triu(draw, 1) + torch.triu(draw, 1).T
    off = ~torch.eye(samples, dtype=torch.bool)
    return descriptors, (draw < 0.35) & off, (draw > 0.5) & off


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())


def naive_multi_similarity(
    x: Tensor, positive: Tensor, negative: Tensor, alpha: float, beta: float, base: float, epsilon: float
) -> Tensor:
    total = torch.zeros(())
    for q in range(len(x)):
        s = {i: cosine(x[q], x[i]) for i in range(len(x)) if i != q}
        ps, ns = ([i for i in s if mask[q, i]] for mask in (positive, negative))
        kept_p = [p for p in ps if ns and s[p] - epsilon < max(s[n] for n in ns)]
        kept_n = [n for n in ns if ps and s[n] + epsilon > min(s[p] for p in ps)]
        total = total + (1 + sum((-alpha * (s[p] - base)).exp() for p in kept_p)).log() / alpha if kept_p else total
        total = total + (1 + sum((beta * (s[n] - base)).exp() for n in kept_n)).log() / beta if kept_n else total
    return total / len(x)


def naive_pairwise_margin(x: Tensor, positive: Tensor, negative: Tensor, m: float, a: float) -> Tensor:
    terms: dict[int, list[Tensor]] = {1: [], -1: []}
    for i in range(len(x)):
        for j in range(len(x)):
            for sign, mask in ((1, positive), (-1, negative)):
                if mask[i, j]:
                    terms[sign].append((a + sign * ((x[i] - x[j]).abs().sum() - m)).clamp(min=0))
    return torch.stack(terms[1]).mean() + torch.stack(terms[-1]).mean()


def naive_ranking(x: Tensor, positive: Tensor, negative: Tensor, margin: float, most: int) -> Tensor:
    def squared(i: int, j: int) -> Tensor:
        return (x[i] - x[j]).square().sum()

    means = []
    for i in range(len(x)):
        ps, ns = ([j for j in range(len(x)) if mask[i, j]] for mask in (positive, negative))
        if ps and ns:
            p = min(ps, key=lambda j: squared(i, j).item())
            hard = sorted(ns, key=lambda j: squared(i, j).item())[:most]
            means.append(torch.stack([(squared(i, p) - squared(i, n) + margin).clamp(min=0) for n in hard]).mean())
    return torch.stack(means).mean()


def naive_triplet(x: Tensor, positive: Tensor, negative: Tensor, margin: float, swap: bool = True) -> Tensor:
    def d(i: int, j: int) -> Tensor:
        return (x[i] - x[j]).square().sum().sqrt()

    losses = []
    for i in range(len(x)):
        ps, ns = ([j for j in range(len(x)) if mask[i, j]] for mask in (positive, negative))
        if ps and ns:
            p, n = max(ps, key=lambda j: d(i, j).item()), min(ns, key=lambda j: d(i, j).item())
            away = torch.minimum(d(i, n), d(p, n)) if swap else d(i, n)
            losses.append((d(i, p) - away + margin).clamp(min=0))
    violated = [loss for loss in losses if loss > 0]
    return torch.stack(violated).mean()


ORACLES: list[tuple[dict[str, Any], Any]] = [
    ({"loss": "triplet"}, lambda *b: naive_triplet(*b, margin=0.2)),
    ({"loss": "triplet", "margin": 0.7, "weight": 0.5}, lambda *b: 0.5 * naive_triplet(*b, margin=0.7)),
    ({"loss": "triplet", "swap": False}, lambda *b: naive_triplet(*b, margin=0.2, swap=False)),
    ({"loss": "ranking"}, lambda *b: naive_ranking(*b, margin=0.1, most=10)),
    (
        {"loss": "ranking", "margin": 2.0, "negatives": 2, "weight": 0.5},
        lambda *b: 0.5 * naive_ranking(*b, margin=2.0, most=2),
    ),
    ({"loss": "multi-similarity"}, lambda *b: naive_multi_similarity(*b, alpha=1, beta=50, base=0, epsilon=0.1)),
    (
        {"loss": "multi-similarity", "alpha": 2.0, "beta": 40.0, "base": 0.5, "margin": 0.3, "weight": 3.0},
        lambda *b: 3 * naive_multi_similarity(*b, alpha=2, beta=40, base=0.5, epsilon=0.3),
    ),
    ({"loss": "pairwise-margin"}, lambda x, p, n: naive_pairwise_margin(x, p, n, m=25, a=1)),
    (
        {"loss": "pairwise-margin", "boundary": 4.0, "margin": 2.0},
        lambda x, p, n: naive_pairwise_margin(x, p, n, m=4, a=2),
    ),
]


@pytest.mark.parametrize(("options", "oracle"), ORACLES, ids=[str(options) for options, _ in ORACLES])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_values_and_gradients_are_those_of_the_loops(options: dict[str, Any], oracle: Any, seed: int) -> None:
    descriptors, positive, negative = batch(seed)
    actual = task_loss(TaskConfig(**options))(descriptors, positive, negative, 0.5)
    expected = oracle(descriptors, positive, negative)
    assert expected > 0
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(loss, descriptors)[0] for loss in (actual, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_the_pairs_kept_are_those_of_the_librarys_miner_where_places_are_classes() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 3])
    same = labels[:, None] == labels[None, :]
    for seed in range(5):
        x = torch.nn.functional.normalize(batch(seed)[0].detach(), dim=1)
        ours = informative_pairs(x @ x.T, same & ~torch.eye(9, dtype=torch.bool), ~same, 0.1)
        theirs = MultiSimilarityMiner(epsilon=0.1)(x, labels)
        for a, b in ((0, 1), (2, 3)):
            pairs = [sorted(zip(found[a].tolist(), found[b].tolist(), strict=True)) for found in (ours, theirs)]
            assert pairs[0] == pairs[1]
            assert pairs[0]


def test_a_similar_negative_costs_more_than_a_different_one() -> None:
    """The sign of beta in SciceVPR's Eq. 10: with the printed minus it would cost less."""
    positive, negative = (torch.zeros(4, 4, dtype=torch.bool) for _ in range(2))
    positive[0, 1:3] = positive[1:3, 0] = True
    negative[0, 3] = negative[3, 0] = True
    task = task_loss(TaskConfig(loss="multi-similarity"))

    def cost(angle: float) -> float:
        angles = torch.tensor([0.0, 0.8, 0.9, -angle])
        return task(torch.stack([angles.cos(), angles.sin()], dim=1), positive, negative, 0.0).item()

    assert cost(0.1) > cost(0.2) > cost(0.4)


@pytest.mark.parametrize("loss", TASKS)
@pytest.mark.parametrize("what", ["nothing", "positives", "negatives"])
def test_batches_with_nothing_to_compare_cost_nothing_or_what_they_hold(loss: str, what: str) -> None:
    descriptors, positive, negative = batch(3)
    nothing = torch.zeros_like(positive)
    positive, negative = (
        mask if what == name else nothing for mask, name in ((positive, "positives"), (negative, "negatives"))
    )
    value = task_loss(TaskConfig(loss=loss, boundary=4.0))(descriptors, positive, negative, 0.5)  # type: ignore[arg-type]
    value.backward()
    assert descriptors.grad.isfinite().all()
    pairs_alone_count = loss == "pairwise-margin" and what != "nothing"
    assert (value.item() > 0) == pairs_alone_count


@pytest.mark.parametrize("loss", TASKS)
def test_autocast_does_not_change_the_loss(loss: str) -> None:
    descriptors, positive, negative = batch(4)
    task = task_loss(TaskConfig(loss=loss, boundary=4.0))  # type: ignore[arg-type]
    plain = task(descriptors, positive, negative, 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = task(descriptors, positive, negative, 0.5)
    assert half.dtype == torch.float32
    assert half == plain


def test_the_hardest_are_those_of_the_distance_that_the_loss_compares() -> None:
    x = torch.tensor([[1.0, 0.0], [10.0, 1.0], [0.5, 0.5], [0.0, 1.5], [-1.0, 0.1]])
    positive, negative = (torch.zeros(5, 5, dtype=torch.bool) for _ in range(2))
    positive[0, [1, 2]] = negative[0, [3, 4]] = True
    expected = {"triplet": (1, 3), "ranking": (2, 3), "multi-similarity": (2, 3), "pairwise-margin": (1, 4)}
    for loss, (far, near) in expected.items():
        found = task_loss(TaskConfig(loss=loss)).hardest(x, positive, negative)  # type: ignore[arg-type]
        assert [int(i) for i in found] == [0, far, near]


def test_parts_of_a_descriptor_have_the_same_loss_by_themselves() -> None:
    descriptors, positive, negative = batch(5, channels=7)
    config = TaskConfig(weight=0.5, parts={"cloud": 0.25, "image": 2.0})
    parts = {"cloud": slice(0, 3), "image": slice(3, 7), "unused": slice(0, 1)}
    found = task_loss(config, parts).terms(descriptors, positive, negative, 0.5)
    alone = task_loss(TaskConfig())
    expected = {
        "task": 0.5 * alone(descriptors, positive, negative, 0.5),
        "task/cloud": 0.25 * alone(descriptors[:, :3], positive, negative, 0.5),
        "task/image": 2.0 * alone(descriptors[:, 3:], positive, negative, 0.5),
    }
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "multi-similarity", "batch_all": 0.5}, "batch_all is of the triplet loss"),
        ({"margin": -0.1}, "margin must not be below 0"),
        ({"beta": 0.0}, "must be above 0"),
        ({"negatives": 0}, "must be above 0"),
    ],
)
def test_values_that_make_no_sense_name_their_key(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TaskConfig(**options)
