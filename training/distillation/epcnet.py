"""EPC-Net's distillation of EPC-Net-L (Hui et al., IEEE Transactions on Image Processing 2022)."""

from __future__ import annotations

from torch import Tensor

from training.distillation.method import DistillationMethod


class EPCNet(DistillationMethod):
    """The squared error between final descriptors, summed over the batch and weighted by 0.1.

    EPC-Net adds the same for the point features of its two networks, which descriptors do not hold: left out here. In
    DistilVPR's comparison this baseline is the mean squared error of the descriptors, which is `MSE` (method ``mse``).

    Args:
        weight: of the term ``descriptor``.
    """

    paper = "EPC-Net, TIP 2022"
    needs = "any teacher, of the student's size or with an adaptor"

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__()
        self.weight = weight

    def terms(self, teacher: Tensor, student: Tensor) -> dict[str, Tensor]:
        return {"descriptor": self.weight * (teacher - student).square().sum()}
