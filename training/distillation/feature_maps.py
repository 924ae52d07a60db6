"""What losses between feature maps share: lengths of one, and layers between channels of different numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.distillation.manifolds import root_or_zero


def unit(x: Tensor, dim: int) -> Tensor:
    """Vectors along ``dim`` brought to length one; zero stays zero and has no gradient."""
    # Neither the result nor its gradient depends on this scale, but the squares of very small values do.
    largest = x.detach().abs().amax(dim, keepdim=True)
    x = x / torch.where(largest == 0, 1.0, largest)
    norm = root_or_zero(x.square().sum(dim, keepdim=True))
    return x / torch.where(norm == 0, 1.0, norm)


class NormalisedLinear(nn.Module):
    """A linear layer over channels and a BatchNorm: (N, C) to (N, C'), or as a 1x1 convolution (N, C, H, W) to
    (N, C', H, W).

    In training mode too, a batch with a single value of each channel is normalised by the statistics of those before.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, out, bias=False)
        self.norm = nn.BatchNorm1d(out)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.linear.weight.dtype)
        by_channel = x.movedim(1, -1)
        rows = self._normalised(self.linear(by_channel.flatten(0, -2)))
        return rows.reshape(*by_channel.shape[:-1], -1).movedim(-1, 1)

    def _normalised(self, rows: Tensor) -> Tensor:
        if len(rows) > 1:
            normalised: Tensor = self.norm(rows)
            return normalised
        norm = self.norm
        return F.batch_norm(rows, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
