"""The papers' sums written as loops over samples, to hold the fast forms against; float64, gradients by autograd."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Pairwise = Callable[[Tensor, Tensor], Tensor]


def zero_like(x: Tensor) -> Tensor:
    return x.new_zeros(())


def euclidean(x: Tensor, y: Tensor) -> Tensor:
    return zero_like(x) if torch.equal(x, y) else (x - y).square().sum().sqrt()


def cosine(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum() / (x.square().sum().sqrt() * y.square().sum().sqrt())


def moebius_sum(p: Tensor, q: Tensor, c: float, epsilon: float = 0.0) -> Tensor:
    """DistilVPR, Eq. 12."""
    pq, pp, qq = (p * q).sum(), p.square().sum(), q.square().sum()
    top = (1 + 2 * c * pq + c * qq) * p + (1 - c * pp) * q
    return top / (1 + 2 * c * pq + c**2 * pp * qq + epsilon)


def exp_map(v: Tensor, c: float) -> Tensor:
    """DistilVPR, Eq. 14."""
    norm = v.square().sum().sqrt()
    return torch.tanh(math.sqrt(c) * norm) * v / (math.sqrt(c) * norm)


def hyperbolic(x: Tensor, y: Tensor, c: float) -> Tensor:
    """DistilVPR, Eq. 15 with the inverse of p."""
    if torch.equal(x, y):
        return zero_like(x)
    between = moebius_sum(-exp_map(x, c), exp_map(y, c), c).square().sum().sqrt()
    return 2 / math.sqrt(c) * torch.atanh(math.sqrt(c) * between)


def hyperbolic_released(x: Tensor, y: Tensor, c: float) -> Tensor:
    """Eq. 12 to 15 with the published limits."""
    if torch.equal(x, y):
        return zero_like(x)
    points = []
    for v in (x, y):
        norm = v.square().sum().sqrt()
        p = torch.tanh((math.sqrt(c) * norm).clamp(-15, 15)) * v / (math.sqrt(c) * norm)
        length, limit = p.square().sum().sqrt(), (1 - 1e-3) / math.sqrt(c)
        points.append(p / length * limit if length > limit else p)
    between = moebius_sum(-points[0], points[1], c, epsilon=1e-5).square().sum().sqrt()
    return 2 / math.sqrt(c) * torch.atanh((math.sqrt(c) * between).clamp(max=1 - 1e-5))


def matrix(x: Tensor, y: Tensor, pairwise: Pairwise) -> list[list[Tensor]]:
    return [[pairwise(a, b) for b in y] for a in x]


def over_mean(distances: list[list[Tensor]]) -> list[list[Tensor]]:
    positive = [d for row in distances for d in row if d > 0]
    mean = sum(positive) / len(positive)
    return [[d / mean for d in row] for row in distances]


def smooth_l1(a: Tensor, b: Tensor) -> Tensor:
    """LSDNet, Eq. 9."""
    gap = (a - b).abs()
    return 0.5 * gap**2 if gap < 1 else gap - 0.5


def squared(a: Tensor, b: Tensor) -> Tensor:
    return (a - b) ** 2


def total(first: list[list[Tensor]], second: list[list[Tensor]], penalty: Pairwise) -> Tensor:
    """The sum over i, j of Eq. 3 to 5."""
    return sum(
        (penalty(a, b) for row_a, row_b in zip(first, second, strict=True) for a, b in zip(row_a, row_b, strict=True)),
        start=torch.zeros((), dtype=torch.float64),
    )


def cosine_of_angle(i: Tensor, j: Tensor, k: Tensor) -> Tensor:
    """RKD's angle at j between i and k; 0 where a side has no length."""
    if torch.equal(i, j) or torch.equal(k, j):
        return zero_like(i)
    return cosine(i - j, k - j)


def angle_total(teacher: Tensor, student: Tensor) -> Tensor:
    """RKD's sum over all N³ triplets."""
    triplets = [(i, j, k) for i in range(len(teacher)) for j in range(len(teacher)) for k in range(len(teacher))]
    loss = torch.zeros((), dtype=torch.float64)
    for i, j, k in triplets:
        loss = loss + smooth_l1(
            cosine_of_angle(teacher[i], teacher[j], teacher[k]), cosine_of_angle(student[i], student[j], student[k])
        )
    return loss


def unit(x: Tensor) -> Tensor:
    return torch.stack([row / row.square().sum().sqrt() for row in x])
