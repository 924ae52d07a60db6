"""Sparse 3-d convolutions over occupied voxels: the layers.

The layers hold parameters only. Where the neighbours are and how the sum is computed is the business of a ``Grid``,
of which there are two: pure PyTorch (``kernel_maps.py``) and MinkowskiEngine (``minkowski.py``). One set of weights
serves both; kernels are laid out as MinkowskiEngine lays them out (offset index = ix + K iy + K^2 iz).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Grid(Protocol):
    """The occupied voxels of a batch at several strides, and convolutions between them.

    Level ``stride`` holds voxels whose coordinates are multiples of ``stride``; level 1 is the input. A coarser level
    comes into being when something is convolved to it.
    """

    batch_size: int

    def batch_index(self, stride: int) -> Tensor:
        """Which cloud each voxel of a level belongs to, (V,) int64."""

    def coordinates(self, stride: int) -> Tensor:
        """The voxels of a level, (V, 4) int32 (batch, x, y, z), in units of input voxels."""

    def convolve(self, features: Tensor, kernel: Tensor, from_stride: int, to_stride: int, kernel_size: int) -> Tensor:
        """Convolve (V_from, C_in) with ``kernel`` (kernel_size^3, C_in, C_out) to (V_to, C_out).

        ``from_stride > to_stride`` is the transposed convolution, onto a level that is already there.
        """


@dataclass(frozen=True)
class SparseTensor:
    """Features of the voxels of one level of a grid.

    Attributes:
        features: (V, C) float, row by row as ``grid.coordinates(stride)``.
        stride: the level.
        grid: shared by all layers of a forward pass, so that each neighbourhood is searched once.
    """

    features: Tensor
    stride: int
    grid: Grid

    def with_features(self, features: Tensor) -> SparseTensor:
        """Other features of the same voxels."""
        return replace(self, features=features)

    def __add__(self, other: SparseTensor) -> SparseTensor:
        return self.with_features(self.features + other.features)

    def mean(self, features: Tensor | None = None) -> Tensor:
        """Mean over the voxels of each cloud, (B, C); 0 for a cloud without voxels."""
        values = self.features if features is None else features
        rows = self.grid.batch_index(self.stride)
        sums = values.new_zeros(self.grid.batch_size, values.shape[1]).index_add(0, rows, values)
        counts = torch.bincount(rows, minlength=self.grid.batch_size).clamp(min=1)
        return sums / counts[:, None].to(values.dtype)


class SparseConv(nn.Module):
    """Convolution at the occupied voxels, without bias, as MinkowskiEngine defines it.

    An odd kernel is centred; an even one reaches from its voxel in the positive direction. ``stride`` s > 1 goes to the
    voxels s floor(c / s) of the next level; ``transposed`` goes back to the finer level that is already there. Computes
    in float32 under autocast: gathering and scattering cost more than the products.

    Args:
        kernel_size: voxels per axis.
        stride: 1, or the ratio of the two levels.
        transposed: from the coarse level to the fine one.
    """

    def __init__(self, cin: int, cout: int, kernel_size: int, stride: int = 1, transposed: bool = False) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride
        self.transposed = transposed
        self.kernel = nn.Parameter(torch.empty(kernel_size**3, cin, cout))
        fan_out = cout * kernel_size**3
        if transposed:
            nn.init.uniform_(self.kernel, -1 / math.sqrt(fan_out), 1 / math.sqrt(fan_out))
        else:
            nn.init.normal_(self.kernel, std=math.sqrt(2 / fan_out))  # He et al., fan out

    def forward(self, x: SparseTensor) -> SparseTensor:
        to_stride = x.stride // self.stride if self.transposed else x.stride * self.stride
        with torch.autocast(x.features.device.type, enabled=False):
            features = x.features.to(self.kernel.dtype)
            if self.kernel_size == 1 and self.stride == 1:
                return x.with_features(features @ self.kernel[0])
            out = x.grid.convolve(features, self.kernel, x.stride, to_stride, self.kernel_size)
        return SparseTensor(out, to_stride, x.grid)

    def extra_repr(self) -> str:
        _, cin, cout = self.kernel.shape
        return f"{cin}, {cout}, kernel_size={self.kernel_size}, stride={self.stride}, transposed={self.transposed}"


class SparseBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over all voxels of the batch. With fewer than two voxels it uses the running statistics."""

    def forward(self, x: SparseTensor) -> SparseTensor:  # type: ignore[override]
        if self.training and len(x.features) < 2:
            y = F.batch_norm(x.features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
            return x.with_features(y)
        return x.with_features(super().forward(x.features))


class SparseReLU(nn.Module):
    """max(x, 0)."""

    def forward(self, x: SparseTensor) -> SparseTensor:
        return x.with_features(F.relu(x.features))


class EfficientChannelAttention(nn.Module):
    """ECA (Wang et al., CVPR 2020): a 1-d convolution over the channel means of a cloud weights its channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        size = int(abs((math.log2(channels) + 1) / 2))  # their Eq. 12 with gamma = 2, b = 1
        size += 1 - size % 2
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, x: SparseTensor) -> SparseTensor:
        weights = torch.sigmoid(self.conv(x.mean()[:, None, :])[:, 0])
        return x.with_features(x.features * weights.index_select(0, x.grid.batch_index(x.stride)))


class SparseBlock(nn.Module):
    """Residual block: two 3x3x3 convolutions and ECA; a 1x1x1 convolution on the shortcut where widths differ."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.conv1 = SparseConv(cin, cout, 3)
        self.norm1 = SparseBatchNorm(cout)
        self.conv2 = SparseConv(cout, cout, 3)
        self.norm2 = SparseBatchNorm(cout)
        self.attention = EfficientChannelAttention(cout)
        self.relu = SparseReLU()
        self.shortcut: nn.Module = (
            nn.Identity() if cin == cout else nn.Sequential(SparseConv(cin, cout, 1), SparseBatchNorm(cout))
        )

    def forward(self, x: SparseTensor) -> SparseTensor:
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.attention(self.norm2(self.conv2(y)))
        out: SparseTensor = self.relu(y + self.shortcut(x))
        return out
