"""KD: distilling the knowledge in a neural network (Hinton, Vinyals and Dean, 2015)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from training.distillation.method import DistillationMethod
from vpr_kd_ros.errors import ConfigError


def softened_divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """T² KL(softmax(t / T) || softmax(s / T)), mean over the batch.

    T² keeps the size of the gradient as T changes (Hinton et al., section 2).

    Args:
        teacher, student: (N, C) logits, or descriptors in their place.
    """
    expected = F.log_softmax(teacher / temperature, dim=1)
    actual = F.log_softmax(student / temperature, dim=1)
    return temperature**2 * F.kl_div(actual, expected, reduction="batchmean", log_target=True)


class KD(DistillationMethod):
    """Hinton's distillation with descriptors in the place of class logits, as in DistilVPR's comparison.

    Args:
        weight: of the term ``kl``.
        temperature: T; 1 in DistilVPR's comparison.
    """

    paper = "KD, 2015"
    needs = "any teacher, of the student's size or with an adaptor"

    def __init__(self, weight: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise ConfigError(f"kd: `temperature` must be positive, not {temperature}")
        self.weight = weight
        self.temperature = temperature

    def terms(self, teacher: Tensor, student: Tensor) -> dict[str, Tensor]:
        return {"kl": self.weight * softened_divergence(teacher, student, self.temperature)}
