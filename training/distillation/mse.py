"""Squared error between descriptors, as SciceVPR and the distillation for low-quality queries use it."""

from __future__ import annotations

from torch import Tensor

from training.distillation.method import DistillationMethod
from training.options import choice

SCALES = ("mean", "scicevpr", "vpr4lqq")


def squared_error(teacher: Tensor, student: Tensor, scale: str = "mean") -> Tensor:
    """Squared error between descriptors (N, C), in one of the scales that papers use.

    ``mean`` over the N x C entries; ``scicevpr``: the sum over entries / N (SciceVPR, Eq. 11);
    ``vpr4lqq``: the mean x 100 N (Yang et al., Distillation improves VPR for low-quality queries, as its code has it).
    """
    squares = (teacher - student).square()
    if scale == "scicevpr":
        return squares.sum() / len(squares)
    if scale == "vpr4lqq":
        return squares.mean() * (100 * len(squares))
    return squares.mean()


class MSE(DistillationMethod):
    """Direct distillation by squared error (DistilVPR, Eq. 1); on descriptors as the networks give them.

    Args:
        weight: of the term ``mse``.
        scale: ``mean``, ``scicevpr`` or ``vpr4lqq``, see `squared_error`.
    """

    paper = "DistilVPR, AAAI 2024, Eq. 1"
    needs = "any teacher, of the student's size or with an adaptor"

    def __init__(self, weight: float = 1.0, scale: str = "mean") -> None:
        super().__init__()
        self.weight = weight
        self.scale = choice("scale", scale, SCALES)

    def terms(self, teacher: Tensor, student: Tensor) -> dict[str, Tensor]:
        return {"mse": self.weight * squared_error(teacher, student, self.scale)}
