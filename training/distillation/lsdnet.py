"""LSDNet: distillation of the topology of global descriptors and of feature maps (Peng et al., IROS 2022)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from training.distillation.feature_maps import unit
from training.distillation.manifolds import root_or_zero, squared_distances
from training.distillation.method import Context, DistillationMethod, Triplets
from training.options import choice

TRIPLES = ("teacher", "task")


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


def triple_losses(teacher: Tensor, student: Tensor, triplets: Triplets) -> tuple[Tensor, Tensor]:
    """GDTD distance and angle terms (Eq. 8 and 10), mean over given triples (q, p, n), each a tuple of its own.

    Args:
        teacher: (N, Ct).
        student: (N, Cs).
        triplets: queries, positives, negatives; where there are none, the terms are zero.
    """
    if len(triplets[0]) == 0:
        # Of both: several processes expect a gradient, if only of zero, for an adaptor on either side.
        nothing = (teacher.sum() + student.sum()) * 0
        return nothing, nothing
    distances, cosines = zip(*(_sides_and_cosines(x, triplets) for x in (teacher, student)), strict=True)
    mu = [x.mean(dim=1, keepdim=True) for x in distances]
    expected, actual = (x / torch.where(m == 0, 1.0, m) for x, m in zip(distances, mu, strict=True))
    distance = F.smooth_l1_loss(actual, expected, reduction="none").sum(dim=1).mean()
    return distance, F.smooth_l1_loss(cosines[1], cosines[0])


def _sides_and_cosines(x: Tensor, triplets: Triplets) -> tuple[Tensor, Tensor]:
    """|q - p| and |q - n| of each triple, (T, 2), and the cosine of the angle between the two, (T,)."""
    queries, positives, negatives = (x[rows] for rows in triplets)
    sides = torch.stack([queries - positives, queries - negatives], dim=1)
    directions = unit(sides, 2)
    return root_or_zero(sides.square().sum(dim=2)), (directions[:, 0] * directions[:, 1]).sum(dim=1)


def feature_loss(teacher: Tensor, student: Tensor, triplets: Triplets | None) -> Tensor:
    """IFD (Eq. 7): the length of the difference of a tuple's channel means, mean over the tuples.

    Local features are of length one, as the paper's X are (its section III-A). The images of a tuple are put side by
    side and not averaged, although the paper speaks of pooling what was concatenated along the channels: one mean over
    all of a tuple would not tell whose feature is where.

    Args:
        teacher: maps (N, Ct, Ht, Wt), averaged here over the student's height and width.
        student: maps (N, Cs, Hs, Ws).
        triplets: each a tuple; None for one tuple of all N images. Zero where there are none.
    """
    height, width = student.shape[2:]
    expected = F.adaptive_avg_pool2d(unit(teacher, 1), (height, width)).mean(dim=1)
    squared = (unit(student, 1).mean(dim=1) - expected).square().sum(dim=(1, 2))
    if triplets is None:
        return root_or_zero(squared.sum())
    lengths = root_or_zero(sum((squared[rows] for rows in triplets[1:]), squared[triplets[0]]))
    return lengths.sum() / max(len(lengths), 1)


class LSDNet(DistillationMethod):
    """Dual distillation: relations of triples of descriptors, and channel means of the last feature maps; Eq. 7 to 12.

    The paper's tuples (a query, its nearest positive, hard negatives) are those of its triplet loss. The teacher can
    tell them instead, so that images without poses teach too.

    Args:
        weight: lambda_2, for both terms ``distance`` and ``angle``; the paper does not give its value.
        feature_weight: lambda_1, for the term ``feature``; nor this one's. 0 leaves it out; above, both networks must
            read images.
        triples: ``teacher``, every sample with the nearest other in the teacher's space as its positive and each of
            the rest as a negative (`topological_losses`); ``task``, those of the task loss: of each image with a pose,
            the hardest positive and negative.
    """

    paper = "LSDNet, IROS 2022"
    needs = "any teacher; a camera teacher for its feature maps (feature_weight)"

    def __init__(self, weight: float = 1.0, feature_weight: float = 0.0, triples: str = "teacher") -> None:
        super().__init__()
        self.weight = weight
        self.feature_weight = feature_weight
        self.needs_maps = feature_weight > 0
        self.needs_triplets = choice("triples", triples, TRIPLES) == "task"

    @property
    def needs_equal_dims(self) -> bool:
        return False

    def terms_in(self, teacher: Tensor, student: Tensor, context: Context) -> dict[str, Tensor]:
        if context.triplets is None:
            distance, angle = topological_losses(teacher, student)
        else:
            distance, angle = triple_losses(teacher, student, context.triplets)
        terms = {"distance": self.weight * distance, "angle": self.weight * angle}
        if self.needs_maps:
            maps = context.teacher_maps[-1], context.student_maps[-1]
            terms["feature"] = self.feature_weight * feature_loss(*maps, context.triplets)
        return terms
