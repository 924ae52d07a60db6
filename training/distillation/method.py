"""What all distillation methods share: who has a gradient, in which precision, and which sizes fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.distillation.adaptor import Adaptor
from training.models.pooling import at_least_float32
from vpr_kd_ros.errors import ConfigError

Triplets = tuple[Tensor, Tensor, Tensor]
"""Anchors, positives, negatives: rows of a batch, (T,) int64 each."""
MapShape = tuple[int, int, int]
"""Channels, height and width of a feature map."""


class Context(NamedTuple):
    """What else is known of a batch; a method says what it needs of it.

    Attributes:
        keyframes: (N,) int64, which training keyframes the samples are.
        triplets: of labelled samples, the hardest positive and negative of each in the student's space.
        teacher_maps, student_maps: feature maps (N, C, H, W) of each resolution, fine first; see
            ``training.models.maps``. The teacher's have no gradient.
    """

    keyframes: Tensor | None = None
    triplets: Triplets | None = None
    teacher_maps: Sequence[Tensor] = ()
    student_maps: Sequence[Tensor] = ()


@dataclass(frozen=True)
class Beginning:
    """What is known before the first step, of all M training keyframes.

    Attributes:
        teacher: (M, Ct) float32 descriptors.
        student: (M, Cs) float32 descriptors of the student as it starts.
        sessions: (M,) int64, the drive that each keyframe belongs to.
    """

    teacher: Tensor
    student: Tensor
    sessions: Tensor


class DistillationMethod(nn.Module):
    """Teacher and student descriptors of one batch -> the weighted terms of the distillation loss.

    A method writes `terms`, or, when it needs more than the descriptors, `terms_in`; this class calls it with float64
    descriptors, autocast off, and a teacher without gradient. The terms come back as float32 (float64 where a
    descriptor was float64), and their sum is the loss.

    Attributes:
        paper: where it comes from, in a few words.
        needs: what it wants of teacher, student and data, in one line.
        adaptor: where set, it is applied first. It has weights: give ``method.parameters()`` to the optimiser.
        compares_descriptors: the terms depend on the descriptors, so that an adaptor has something to learn.
        needs_maps: `terms_in` reads the context's feature maps, and so both networks must make some.
        needs_triplets: it reads the context's triplets.
        needs_beginning: `begin` wants to be called before the first step.
        same_batch: the teacher must see the very images of the student's batch: its descriptors cannot be cached.
        hands_over: the student inherits weights from the teacher (``EmbeddingModel.inherit``) before the first step.
    """

    paper: str
    needs: str
    compares_descriptors: bool = True
    needs_maps: bool = False
    needs_triplets: bool = False
    needs_beginning: bool = False
    same_batch: bool = False
    hands_over: bool = False

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

    def begin(self, beginning: Beginning) -> None:
        """Learn what is fixed before the first step; called once, where ``needs_beginning``."""

    def begin_maps(self, teacher: Sequence[MapShape], student: Sequence[MapShape]) -> None:
        """Make the weights that depend on the feature maps' sizes; called once before the optimiser is made, where
        ``needs_maps``.

        Args:
            teacher, student: of each resolution, fine first, as the context will hold them.

        Raises:
            ConfigError: maps that the method cannot compare.
        """

    def terms(self, teacher: Tensor, student: Tensor) -> dict[str, Tensor]:
        """The weighted terms for float64 descriptors teacher (N, Ct) and student (N, Cs)."""
        raise NotImplementedError

    def terms_in(self, teacher: Tensor, student: Tensor, context: Context) -> dict[str, Tensor]:
        """The weighted terms; ``context`` as the method asked for it."""
        return self.terms(teacher, student)

    def forward(self, teacher: Tensor, student: Tensor, context: Context | None = None) -> dict[str, Tensor]:
        """Compute the weighted terms of the distillation loss.

        Args:
            teacher: (N, Ct) descriptors, any floating type; never receives a gradient.
            student: (N, Cs) descriptors of the same N samples, not normalised.
            context: of the batch; may be left out for a method that needs nothing of it.

        Returns:
            Scalars by name; their sum is the distillation loss.

        Raises:
            ConfigError: sizes that the method cannot compare (see `check_dims`), or feature maps that it cannot.
            ValueError: shapes that are no batch of pairs, or a context without what the method needs.
        """
        if teacher.ndim != 2 or student.ndim != 2 or len(teacher) != len(student) or len(teacher) == 0:
            raise ValueError(f"expected (N, Ct) and (N, Cs), N > 0; got {tuple(teacher.shape)}, {tuple(student.shape)}")
        self.check_dims(teacher.shape[1], student.shape[1])
        context = self._checked(context or Context())
        dtype = torch.float64 if torch.float64 in (teacher.dtype, student.dtype) else torch.float32
        teacher = teacher.detach()
        with torch.autocast(student.device.type, enabled=False):
            if self.adaptor is not None:
                teacher, student = self.adaptor(teacher, student)
            terms = self.terms_in(teacher.double(), student.double(), context)
        return {name: term.to(dtype) for name, term in terms.items()}

    def _checked(self, context: Context) -> Context:
        if self.needs_maps and not (context.teacher_maps and context.student_maps):
            raise ValueError(f"{type(self).__name__}: the context has no feature maps")
        if self.needs_triplets and context.triplets is None:
            raise ValueError(f"{type(self).__name__}: the context has no triplets")
        return Context(
            context.keyframes,
            context.triplets,
            tuple(at_least_float32(x.detach()) for x in context.teacher_maps),
            tuple(at_least_float32(x) for x in context.student_maps),
        )
