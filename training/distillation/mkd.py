"""MKD: multi-level logit distillation (Jin, Wang and Lin, CVPR 2023)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from training.distillation.kd import softened_divergence
from training.distillation.method import DistillationMethod
from vpr_kd_ros.errors import ConfigError


def batch_loss(teacher: Tensor, student: Tensor) -> Tensor:
    """Squared difference of the N x N correlations between samples, p pᵀ, over N; p: (N, C) probabilities."""
    return (teacher @ teacher.T - student @ student.T).square().sum() / teacher.shape[0]


def class_loss(teacher: Tensor, student: Tensor) -> Tensor:
    """Squared difference of the C x C correlations between classes, pᵀ p, over C; p: (N, C) probabilities."""
    return (teacher.T @ teacher - student.T @ student).square().sum() / teacher.shape[1]


class MKD(DistillationMethod):
    """Alignment at the level of instances, of the batch and of classes, each summed over several temperatures.

    Made for class probabilities; here, as in DistilVPR's comparison, a descriptor takes the logits' place and its
    channels the classes'. The confidence masks of the original need true classes and are left out. The class level
    holds C x C entries.

    Args:
        weight: of each of the terms ``instance``, ``batch``, ``class``.
        temperatures: the softmax temperatures that augment the predictions.
    """

    paper = "MKD, CVPR 2023"
    needs = "any teacher, of the student's size or with an adaptor"

    def __init__(self, weight: float = 1.0, temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0)) -> None:
        super().__init__()
        if not temperatures or min(temperatures) <= 0:
            raise ConfigError(f"mkd: `temperatures` must be positive and at least one, not {list(temperatures)}")
        self.weight = weight
        self.temperatures = tuple(temperatures)

    def terms(self, teacher: Tensor, student: Tensor) -> dict[str, Tensor]:
        instance = batch = classes = teacher.new_zeros(())
        for temperature in self.temperatures:
            expected, actual = F.softmax(teacher / temperature, dim=1), F.softmax(student / temperature, dim=1)
            instance = instance + softened_divergence(teacher, student, temperature)
            batch = batch + batch_loss(expected, actual)
            classes = classes + class_loss(expected, actual)
        return {"instance": self.weight * instance, "batch": self.weight * batch, "class": self.weight * classes}
