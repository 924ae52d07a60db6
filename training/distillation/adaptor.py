"""A layer that brings teacher and student descriptors of different sizes into one space."""

from __future__ import annotations

from torch import Tensor, nn

from training.options import choice

SIDES = ("teacher", "student")


class Adaptor(nn.Module):
    """A fully connected layer on one side: DistilVPR, supplement 8.1 (Tables 7 and 8).

    On the teacher's side, which the paper found to work better, the teacher's descriptors are mapped to the student's
    size; on the student's side the other way round. Only the distillation sees the result: the student's task loss and
    the robot use its own descriptors. The layer is trained with the student, whichever side it is on.
    """

    def __init__(self, side: str, teacher_dim: int, student_dim: int) -> None:
        super().__init__()
        self.side = choice("side of the adaptor", side, SIDES)
        sizes = (teacher_dim, student_dim) if side == "teacher" else (student_dim, teacher_dim)
        self.linear = nn.Linear(*sizes)

    def forward(self, teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
        """Map teacher (N, Ct) and student (N, Cs) to a common size; one of the two is returned as it came."""
        dtype = self.linear.weight.dtype
        if self.side == "teacher":
            return self.linear(teacher.to(dtype)), student
        return teacher, self.linear(student.to(dtype))
