"""Distillation for low-quality queries (Yang, Wang, Rizzo and Feng, Distillation Improves Visual Place Recognition for
Low-Quality Queries, 2023)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from training.distillation.ickd import lqq_loss, require_equal_channels
from training.distillation.method import Context, DistillationMethod, MapShape
from training.distillation.mse import squared_error


class LowQuality(DistillationMethod):
    """Queries of low quality: the student sees degraded images, the teacher the originals; MSE and ICKD between them.

    What the student sees is ``degradation`` of the training configuration; ``start`` there gives it the teacher's
    weights, as published. The paper's best setting leaves the task loss out: ``task.weight: 0``.

    Args:
        mse_weight: of the mean squared error of the descriptors x 100 N, the term ``mse``.
        ickd_weight: of the correlations of the last feature maps' channels, the term ``correlation`` (see
            ``ickd.lqq_loss``); 0 leaves it out, and then the networks need no feature maps.
    """

    paper = "low-quality queries, VPR4LQQ"
    needs = "a teacher with feature maps (it reads images), in every batch; of the student's size or with an adaptor"
    same_batch = True

    def __init__(self, mse_weight: float = 1.0, ickd_weight: float = 1.0) -> None:
        super().__init__()
        self.mse_weight = mse_weight
        self.ickd_weight = ickd_weight
        self.needs_maps = ickd_weight > 0

    def begin_maps(self, teacher: Sequence[MapShape], student: Sequence[MapShape]) -> None:
        mend = "take one network for both, or set `ickd_weight: 0`"
        require_equal_channels("low-quality", teacher[-1], student[-1], mend)

    def terms_in(self, teacher: Tensor, student: Tensor, context: Context) -> dict[str, Tensor]:
        terms = {"mse": self.mse_weight * squared_error(teacher, student, "vpr4lqq")}
        if self.needs_maps:
            terms["correlation"] = self.ickd_weight * lqq_loss(context.teacher_maps[-1], context.student_maps[-1])
        return terms
