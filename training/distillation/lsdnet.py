"""LSDNet: topological distillation of global descriptors (Peng et al., IROS 2022)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from training.distillation.manifolds import root_or_zero, squared_distances
from training.distillation.method import DistillationMethod


def nearest_others(squared: Tensor) -> Tensor:
    """For each sample of (N, N) squared distances, N > 1, the nearest other one: (N,) int64."""
    itself = torch.eye(len(squared), dtype=torch.bool, device=squared.device)
    return squared.masked_fill(itself, torch.inf).argmin(dim=1)


def scaled_distances(distances: Tensor) -> Tensor:
    """Each row's distances query to reference over their mean, the mu of Eq. 8; a row of zeros stays zero.

    Args:
        distances: (N, N), zero on the diagonal, which is not part of the tuple.
    """
    mean = distances.sum(dim=1, keepdim=True) / (len(distances) - 1)
    return distances / torch.where(mean == 0, 1.0, mean)


def cosines_at_query(squared: Tensor, positives: Tensor) -> Tensor:
    """cos phi of Eq. 11: entry [q, n] is the cosine of the angle p(q)-q-n, (N, N); 0 where a side has no length.

    Args:
        squared: (N, N) squared distances; the law of cosines needs nothing else.
        positives: (N,) int64, p(q).
    """
    to_positive = squared.gather(1, positives[:, None])
    products = to_positive * squared
    zero = products == 0
    inverse = torch.where(zero, 0.0, torch.where(zero, 1.0, products).rsqrt())
    return (to_positive + squared - squared[positives]) * inverse / 2


def topological_losses(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """GDTD distance and angle terms (Eq. 8 and 10), mean over all triples (q, p, n) of the batch.

    Every sample is a query q, its nearest other sample in the teacher's space its positive p, and each of the rest a
    negative n. O(N²) memory.

    Args:
        teacher: (N, Ct).
        student: (N, Cs).

    Returns:
        The two terms; zero for fewer than three samples, which hold no triple.
    """
    samples = len(teacher)
    expected, actual = squared_distances(teacher, teacher), squared_distances(student, student)
    if samples < 3:
        return actual.sum() * 0, actual.sum() * 0
    positives = nearest_others(expected)
    negative = torch.ones_like(expected, dtype=torch.bool).fill_diagonal_(False)
    negative[torch.arange(samples), positives] = False

    distance = F.smooth_l1_loss(
        scaled_distances(root_or_zero(actual)), scaled_distances(root_or_zero(expected)), reduction="none"
    )
    to_positive = distance.gather(1, positives[:, None])
    angle = F.smooth_l1_loss(
        cosines_at_query(actual, positives), cosines_at_query(expected, positives), reduction="none"
    )
    return (to_positive + distance)[negative].mean(), angle[negative].mean()


class LSDNet(DistillationMethod):
    """Global descriptor topological distillation, Eq. 8 to 11, with lambda_2 of Eq. 12.

    The paper's triples are those of its triplet loss; a batch of descriptors does not tell them, so here the teacher
    does (`topological_losses`). Its intermediate feature distillation (Eq. 7) needs feature maps and is left out.

    Args:
        weight: lambda_2, for both terms ``distance`` and ``angle``; the paper does not give its value.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    @property
    def needs_equal_dims(self) -> bool:
        return False

    def terms(self, teacher: Tensor, student: Tensor) -> dict[str, Tensor]:
        distance, angle = topological_losses(teacher, student)
        return {"distance": self.weight * distance, "angle": self.weight * angle}
