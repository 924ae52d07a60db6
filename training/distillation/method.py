"""What all distillation methods share: who has a gradient, in which precision, and which sizes fit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.distillation.adaptor import Adaptor
from vpr_kd_ros.errors import ConfigError


class DistillationMethod(nn.Module):
    """Teacher and student descriptors of one batch -> the weighted terms of the distillation loss.

    A method writes `terms`; this class calls it with float64 descriptors, autocast off, and a teacher without
    gradient. The terms come back as float32 (float64 where a descriptor was float64), and their sum is the loss.

    Attributes:
        adaptor: where set, it is applied first. It has weights: give ``method.parameters()`` to the optimiser.
    """

    def __init__(self) -> None:
        super().__init__()
        self.adaptor: Adaptor | None = None

    @property
    def needs_equal_dims(self) -> bool:
        """Whether teacher and student descriptors are compared directly, and so must have the same size."""
        return True

    def check_dims(self, teacher_dim: int, student_dim: int) -> None:
        """Check descriptor sizes, those before the adaptor.

        Raises:
            ConfigError: the sizes differ, the method needs equal ones, and there is no adaptor.
        """
        if self.needs_equal_dims and self.adaptor is None and teacher_dim != student_dim:
            raise ConfigError(
                f"{type(self).__name__}: the teacher's descriptors have {teacher_dim} channels and the student's "
                f"{student_dim}, and this method compares the two; set its option `adaptor: teacher` (a linear layer "
                "that maps the teacher's to the student's size; `student` for the other way round)"
            )

    def terms(self, teacher: Tensor, student: Tensor) -> dict[str, Tensor]:
        """The weighted terms for float64 descriptors teacher (N, Ct) and student (N, Cs)."""
        raise NotImplementedError

    def forward(self, teacher: Tensor, student: Tensor) -> dict[str, Tensor]:
        """Compute the weighted terms of the distillation loss.

        Args:
            teacher: (N, Ct) descriptors, any floating type; never receives a gradient.
            student: (N, Cs) descriptors of the same N samples, not normalised.

        Returns:
            Scalars by name; their sum is the distillation loss.

        Raises:
            ConfigError: sizes that the method cannot compare (see `check_dims`).
            ValueError: shapes that are no batch of pairs.
        """
        if teacher.ndim != 2 or student.ndim != 2 or len(teacher) != len(student) or len(teacher) == 0:
            raise ValueError(f"expected (N, Ct) and (N, Cs), N > 0; got {tuple(teacher.shape)}, {tuple(student.shape)}")
        self.check_dims(teacher.shape[1], student.shape[1])
        dtype = torch.float64 if torch.float64 in (teacher.dtype, student.dtype) else torch.float32
        teacher = teacher.detach()
        with torch.autocast(student.device.type, enabled=False):
            if self.adaptor is not None:
                teacher, student = self.adaptor(teacher, student)
            terms = self.terms(teacher.double(), student.double())
        return {name: term.to(dtype) for name, term in terms.items()}
