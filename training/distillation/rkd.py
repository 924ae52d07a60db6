"""RKD: relational knowledge distillation (Park et al., CVPR 2019)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from training.distillation.manifolds import euclidean_distances, squared_distances
from training.distillation.method import DistillationMethod
from training.distillation.penalties import Penalty

BLOCK_ENTRIES = 2**22
"""Angles held at a time: 32 MB of float64 for each of the few tensors of a block."""


def divide_by_mean(distances: Tensor) -> Tensor:
    """Distances divided by the mean of those above zero (mu in RKD's section 3.2.1); all-zero distances stay zero."""
    positive = distances > 0
    count = positive.sum()
    # Summed rather than indexed, so that no value decides a shape; NaN is not hidden by the comparison.
    mean = distances.sum() / count.clamp(min=1)
    return distances / torch.where(count == 0, 1.0, mean)


def distance_loss(teacher: Tensor, student: Tensor, reduction: str = "mean") -> Tensor:
    """Smooth-L1 between the two batches' distances, each divided by their mean (RKD, section 3.2.1).

    Args:
        teacher: (N, Ct).
        student: (N, Cs).
        reduction: ``mean`` or ``sum`` over the N x N pairs.
    """
    expected = divide_by_mean(euclidean_distances(teacher, teacher))
    actual = divide_by_mean(euclidean_distances(student, student))
    return F.smooth_l1_loss(actual, expected, reduction=reduction)


def cosines_at(squared: Tensor, first: int, last: int) -> Tensor:
    """Cosines of the angles at the anchors j in [first, last): (J, N, N) of the angles i-j-k (RKD, section 3.2.2).

    Args:
        squared: (N, N) squared Euclidean distances; the law of cosines needs nothing else.

    A side of length zero gives 0, as a difference that cannot be normalised does.
    """
    sides = squared[first:last]
    zero = sides == 0
    inverse = torch.where(zero, 0.0, torch.where(zero, 1.0, sides).rsqrt())
    twice_products = sides[:, :, None] + sides[:, None, :] - squared[None]
    return twice_products * inverse[:, :, None] * inverse[:, None, :] / 2


def angle_loss(
    teacher: Tensor, student: Tensor, penalty: Penalty = F.smooth_l1_loss, reduction: str = "mean"
) -> Tensor:
    """Penalty (smooth-L1 in RKD) between the cosines of all angles i-j-k of the two batches (RKD, section 3.2.2).

    There are N³ angles, so time grows with N³; memory does not: anchors j are taken in blocks whose angles are
    computed again in the backward pass (BLOCK_ENTRIES at a time, at least N²).

    Args:
        teacher: (N, Ct).
        student: (N, Cs).
        penalty: of `penalties`.
        reduction: ``mean`` or ``sum`` over the N³ triplets.
    """
    expected, actual = squared_distances(teacher, teacher), squared_distances(student, student)
    samples = len(expected)
    anchors = max(1, BLOCK_ENTRIES // samples**2)

    def block(expected: Tensor, actual: Tensor, first: int) -> Tensor:
        last = first + anchors
        return penalty(cosines_at(actual, first, last), cosines_at(expected, first, last), reduction="sum")

    total = expected.new_zeros(())
    for first in range(0, samples, anchors):
        total = total + checkpoint(block, expected, actual, first, use_reentrant=False)
    return total / samples**3 if reduction == "mean" else total


class RKD(DistillationMethod):
    """Distance-wise and angle-wise relations between the samples of a batch (Park et al., 2019, section 3.2).

    Args:
        distance_weight, angle_weight: 1 and 2 are the paper's for metric learning. The angle takes O(N³) time; at
            weight 0 a term is not computed.
    """

    paper = "RKD, CVPR 2019"
    needs = "any teacher"

    def __init__(self, distance_weight: float = 1.0, angle_weight: float = 2.0) -> None:
        super().__init__()
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight

    @property
    def needs_equal_dims(self) -> bool:
        return False

    def terms(self, teacher: Tensor, student: Tensor) -> dict[str, Tensor]:
        terms = {}
        if self.distance_weight:
            terms["distance"] = self.distance_weight * distance_loss(teacher, student)
        if self.angle_weight:
            terms["angle"] = self.angle_weight * angle_loss(teacher, student)
        return terms
