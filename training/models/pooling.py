"""Generalised-mean pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.models.sparse import SparseTensor


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision to float32: the cube of a feature overflows float16 above about 40, and the epsilon underflows."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class GeM(nn.Module):
    """Generalised mean, (mean max(x, eps)^p)^(1/p), over a feature map (Radenovic et al., TPAMI 2019, Eq. 3).

    ``p`` is learnable, one for all channels. Computes and answers in float32 under autocast.

    Takes (B, C, H, W), answers (B, C).
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([p]))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = at_least_float32(x)
        p = self.p.to(x.dtype)
        return x.clamp(min=self.eps).pow(p).mean(dim=(2, 3)).pow(1 / p)


class SparseGeM(GeM):
    """``GeM`` over the voxels of each cloud: takes a SparseTensor, answers (B, C).

    A cloud without voxels pools like one whose features are all 0, to eps.
    """

    def forward(self, x: SparseTensor) -> Tensor:  # type: ignore[override]
        features = at_least_float32(x.features)
        p = self.p.to(features.dtype)
        means = x.mean(features.clamp(min=self.eps).pow(p))
        floor = torch.full_like(p, self.eps).pow(p)
        return torch.maximum(means, floor.detach()).pow(1 / p)
