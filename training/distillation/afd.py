"""AFD: show, attend and distill (Ji, Heo and Park, AAAI 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.distillation.feature_maps import NormalisedLinear, unit
from training.distillation.method import Context, DistillationMethod, MapShape
from vpr_kd_ros.errors import ConfigError


class MapAttention(nn.Module):
    """How much each student map is to learn from each teacher map.

    The query of a teacher map is a linear function of its channels' means, the key of a student map a linear function
    and a ReLU of its own. The logit of a pair is (q_t W_t k_s + p_t p_s) / sqrt(d), with a bilinear weight W_t for each
    teacher map and a learnt position p for every map. A BatchNorm follows each linear layer, as the authors have it.

    Args:
        teacher, student: channels of their maps.
        dim: d, of queries and keys.
    """

    def __init__(self, teacher: Sequence[int], student: Sequence[int], dim: int) -> None:
        super().__init__()
        self.queries = nn.ModuleList([NormalisedLinear(channels, dim) for channels in teacher])
        self.keys = nn.ModuleList([NormalisedLinear(channels, dim) for channels in student])
        self.bilinear = NormalisedLinear(dim, dim * len(teacher))
        self.teacher_positions = nn.Parameter(nn.init.xavier_normal_(torch.empty(len(teacher), dim)))
        self.student_positions = nn.Parameter(nn.init.xavier_normal_(torch.empty(len(student), dim)))

    def forward(self, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
        """Weights (N, T, S) of maps (N, C, H, W), T of the teacher and S of the student; each sums to 1 over S."""
        queries = torch.stack([layer(x.mean((2, 3))) for layer, x in zip(self.queries, teacher, strict=True)], dim=1)
        keys = torch.stack([layer(x.mean((2, 3))).relu() for layer, x in zip(self.keys, student, strict=True)], dim=1)
        samples, maps, dim = queries.shape
        turned = self.bilinear(keys.flatten(0, 1)).reshape(samples, len(student), maps, dim)
        logits = torch.einsum("ntd,nstd->nts", queries, turned) + self.teacher_positions @ self.student_positions.T
        weights: Tensor = (logits / dim**0.5).softmax(dim=2)
        return weights


def map_distances(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """Distance of every student map from every teacher map, (N, T, S).

    A map's values are the mean squares over its channels, the student's averaged over the teacher's height and width,
    and of length one as a whole; their distance is the mean squared difference.
    """
    energies = [x.square().mean(1, keepdim=True) for x in student]
    distances: list[Tensor] = []
    for taught in teacher:
        height, width = taught.shape[2:]
        expected = taught.square().mean(1).flatten(1)
        actual = torch.stack([F.adaptive_avg_pool2d(x, (height, width)).flatten(1) for x in energies], dim=1)
        distances.append((unit(actual, 2) - unit(expected, 1)[:, None]).square().mean(2))
    return torch.stack(distances, dim=1)


class AFD(DistillationMethod):
    """Attention-based feature distillation: every teacher map teaches every student map, as much as attention says.

    The loss is the sum over teacher maps of the distances of the student's from it, weighted by the attention, mean
    over the batch. The attention is learnt with the student, on the same loss. Both networks must read images.

    Args:
        weight: beta; 200 in the authors' example. DistilVPR, whose baseline it is, gives none.
        dim: of queries and keys.
    """

    paper = "AFD, AAAI 2021"
    needs = "a teacher with feature maps (it reads images)"
    compares_descriptors = False
    needs_maps = True

    def __init__(self, weight: float = 200.0, dim: int = 128) -> None:
        super().__init__()
        if dim < 1:
            raise ConfigError(f"afd: `dim` must be at least 1, not {dim}")
        self.weight = weight
        self.dim = dim
        self.attention: MapAttention | None = None

    @property
    def needs_equal_dims(self) -> bool:
        return False

    def begin_maps(self, teacher: Sequence[MapShape], student: Sequence[MapShape]) -> None:
        self.attention = MapAttention([shape[0] for shape in teacher], [shape[0] for shape in student], self.dim)

    def terms_in(self, teacher: Tensor, student: Tensor, context: Context) -> dict[str, Tensor]:
        if self.attention is None:
            raise ValueError("AFD: begin_maps comes before the first batch")
        attention = self.attention(context.teacher_maps, context.student_maps)
        distances = map_distances(context.teacher_maps, context.student_maps)
        return {"attended": self.weight * (attention * distances).sum((1, 2)).mean()}
