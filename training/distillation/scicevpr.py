"""SciceVPR: what images of a batch say about each other, distilled into a network that sees one (Wan et al., 2025)."""

from __future__ import annotations

from torch import Tensor

from training.distillation.manifolds import normalise_rows
from training.distillation.method import DistillationMethod
from training.distillation.mse import squared_error


class SciceVPR(DistillationMethod):
    """The squared error to a teacher that compares the images of the student's own batch, Eq. 11; a conv handed over.

    Descriptors are compared at length one; the squares are summed over channels and divided by the batch, as in the
    equation and in the authors' code (not the mean over channels that its name promises). Eq. 12 adds the
    multi-similarity loss: ``task: {loss: multi-similarity}``, gamma is ``task.weight``.

    The student first takes over the 1x1 convolution of its teacher Super-CricaVPR and freezes it. For any other pair of
    networks, and for the paper's ablation (Table V), switch that off.

    Args:
        weight: eta of Eq. 12, of the term ``descriptor``.
        hand_over: whether the student inherits and freezes the convolution.
    """

    paper = "SciceVPR, 2025"
    needs = "a teacher in every batch, super-cricavpr or with hand_over false; of the student's size or with an adaptor"
    same_batch = True

    def __init__(self, weight: float = 1.0, hand_over: bool = True) -> None:
        super().__init__()
        self.weight = weight
        self.hands_over = hand_over

    def terms(self, teacher: Tensor, student: Tensor) -> dict[str, Tensor]:
        error = squared_error(normalise_rows(teacher), normalise_rows(student), "scicevpr")
        return {"descriptor": self.weight * error}
