"""ICKD: inter-channel correlation (Liu et al., Exploring Inter-Channel Correlation for Diversity-Preserved Knowledge
Distillation, ICCV 2021)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from training.distillation.feature_maps import NormalisedLinear, unit
from training.distillation.manifolds import root_or_zero
from training.distillation.method import Context, DistillationMethod, MapShape
from training.options import choice
from vpr_kd_ros.errors import ConfigError

FORMS = ("original", "lqq")


def channel_correlations(maps: Tensor, unit_channels: bool) -> Tensor:
    """Products of each two channels of maps (N, C, H, W) summed over the places, each row of length one: (N, C, C).

    Args:
        maps: of any height and width, which the result does not tell.
        unit_channels: bring every channel to length one first.
    """
    rows = maps.flatten(2)
    if unit_channels:
        rows = unit(rows, 2)
    return unit(rows @ rows.transpose(1, 2), 2)


def original_loss(teacher: Tensor, student: Tensor) -> Tensor:
    """Sum of squared differences of correlations / (C N), for maps (N, C, H, W) of as many channels."""
    difference = channel_correlations(student, False) - channel_correlations(teacher, False)
    return difference.square().sum() / (len(student) * student.shape[1])


def lqq_loss(teacher: Tensor, student: Tensor) -> Tensor:
    """Frobenius norm of the whole batch's differences / 1000, channels of length one (Yang et al., as their code has
    it); maps (N, C, H, W) of as many channels."""
    difference = channel_correlations(student, True) - channel_correlations(teacher, True)
    return root_or_zero(difference.square().sum()) / 1000


def require_equal_channels(method: str, teacher: MapShape, student: MapShape, mend: str) -> None:
    """Refuse maps of different numbers of channels.

    Raises:
        ConfigError: with ``mend``, which says what helps.
    """
    if teacher[0] != student[0]:
        raise ConfigError(
            f"{method}: the teacher's last feature map has {teacher[0]} channels and the student's {student[0]}; {mend}"
        )


class ICKD(DistillationMethod):
    """Inter-channel correlation: which channels of the last feature map fire together. Height and width may differ.

    Args:
        weight: of the term ``correlation``.
        form: ``original``, with a learnt 1x1 convolution and BatchNorm on the student's map where the channels differ;
            ``lqq``, that of the distillation for low-quality queries, for maps of as many channels.
    """

    paper = "ICKD, ICCV 2021"
    needs = "a teacher with feature maps (it reads images)"
    compares_descriptors = False
    needs_maps = True

    def __init__(self, weight: float = 1.0, form: str = "original") -> None:
        super().__init__()
        self.weight = weight
        self.form = choice("form", form, FORMS)
        self.embed: NormalisedLinear | None = None

    @property
    def needs_equal_dims(self) -> bool:
        return False

    def begin_maps(self, teacher: Sequence[MapShape], student: Sequence[MapShape]) -> None:
        if self.form == "lqq":
            require_equal_channels("ickd", teacher[-1], student[-1], "set its option `form: original`")
        elif teacher[-1][0] != student[-1][0]:
            self.embed = NormalisedLinear(student[-1][0], teacher[-1][0])

    def terms_in(self, teacher: Tensor, student: Tensor, context: Context) -> dict[str, Tensor]:
        expected, actual = context.teacher_maps[-1], context.student_maps[-1]
        if self.embed is not None:
            actual = self.embed(actual)
        loss = (lqq_loss if self.form == "lqq" else original_loss)(expected, actual)
        return {"correlation": self.weight * loss}
