"""CSD: contextual similarity distillation for asymmetric retrieval (Wu et al., CVPR 2022)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from training.distillation.manifolds import cosine_similarities
from training.distillation.method import DistillationMethod


class CSD(DistillationMethod):
    """The student's similarities to the teacher's descriptors like the teacher's own.

    This is the form of DistilVPR's comparison: its Eq. 5 with cosine similarities and the mean squared error, the batch
    being each sample's context. The original takes as context a sample's nearest neighbours in a large gallery.

    Args:
        weight: of the term ``similarity``.
    """

    paper = "CSD, CVPR 2022"
    needs = "any teacher, of the student's size or with an adaptor"

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def terms(self, teacher: Tensor, student: Tensor) -> dict[str, Tensor]:
        expected = cosine_similarities(teacher, teacher)
        actual = cosine_similarities(teacher, student)
        return {"similarity": self.weight * F.mse_loss(actual, expected)}
