"""Sparse convolution in pure PyTorch: find the neighbours by sorted keys, then gather, multiply, scatter.

A voxel is one int64 key whose lowest bits are z, so the voxels of a column (x, y) lie next to each other among the
sorted keys: one binary search per column of a kernel finds its lowest neighbour, and the others are found by stepping
on. For a centred kernel between voxels of one level, the pairs of offset -d are those of d the other way round: half
the search is enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.models.voxels import FIELD_BITS, VoxelBatch, pack, unpack


@dataclass(frozen=True)
class KernelMap:
    """Which input row meets which output row at which offset of the kernel.

    Attributes:
        inputs, outputs: (P,) int64 rows, ordered by offset index; within one offset no row occurs twice.
        counts: number of pairs of each offset, x fastest.
        identity: offset index at which every row meets itself (left out of the pairs), or None.
    """

    inputs: Tensor
    outputs: Tensor
    counts: tuple[int, ...]
    identity: int | None

    def transposed(self) -> KernelMap:
        """The map of the transposed convolution: the same pairs, the other way round."""
        return KernelMap(self.outputs, self.inputs, self.counts, self.identity)


def kernel_map(keys_in: Tensor, keys_out: Tensor, kernel_size: int, stride_in: int) -> KernelMap:
    """Search the neighbours of ``keys_out`` among ``keys_in``.

    Args:
        keys_in: (V_in,) int64, sorted, unique.
        keys_out: (V_out,) int64; the same tensor as ``keys_in`` for a convolution within one level.
        kernel_size: odd kernels are centred, even ones start at their voxel.
        stride_in: of the level of ``keys_in``; neighbours are this far apart.
    """
    centred_on_itself = keys_in is keys_out and kernel_size % 2 == 1
    low = -((kernel_size - 1) // 2) * stride_in
    steps = low + stride_in * torch.arange(kernel_size, device=keys_in.device)
    columns = torch.cartesian_prod(steps, steps)  # (K^2, 2): y, x with x fastest
    if centred_on_itself:
        columns = columns[kernel_size**2 // 2 :]
    bases = keys_out + (columns[:, 1] * (1 << 2 * FIELD_BITS) + columns[:, 0] * (1 << FIELD_BITS) + low)[:, None]
    position = torch.searchsorted(keys_in, bases)
    padded = torch.cat([keys_in, keys_in.new_full((1,), torch.iinfo(torch.int64).max)])
    found, hits = [], []
    for step in range(kernel_size):
        hit = padded[position] == bases + step * stride_in
        found.append(position)
        hits.append(hit)
        position = position + hit
    hit_table = torch.stack(hits)  # (K, columns, V_out): z slowest, so flattened it is the order of the kernel
    if centred_on_itself:
        hit_table[: kernel_size // 2 + 1, 0] = False  # of the central column, only what lies above the centre
    outputs = hit_table.nonzero()[:, 2]
    inputs = torch.stack(found)[hit_table]
    counts = hit_table.sum(dim=2)
    if centred_on_itself:
        return _mirror(inputs, outputs, counts.tolist(), kernel_size)
    return KernelMap(inputs, outputs, tuple(counts.flatten().tolist()), None)


def _mirror(half_inputs: Tensor, half_outputs: Tensor, counts: list[list[int]], kernel_size: int) -> KernelMap:
    """Complete the pairs of one half of a centred kernel, (z, column) by (z, column), by their mirror images."""
    volume, area = kernel_size**3, kernel_size**2
    inputs: list[Tensor] = [half_inputs[:0]] * volume
    outputs: list[Tensor] = [half_outputs[:0]] * volume
    start = 0
    for z, row in enumerate(counts):
        for column, count in enumerate(row):
            offset = z * area + area // 2 + column
            if count:
                pairs = slice(start, start + count)
                inputs[offset], outputs[offset] = half_inputs[pairs], half_outputs[pairs]
                inputs[volume - 1 - offset], outputs[volume - 1 - offset] = half_outputs[pairs], half_inputs[pairs]
                start += count
    return KernelMap(torch.cat(inputs), torch.cat(outputs), tuple(len(rows) for rows in inputs), volume // 2)


class _Convolution(torch.autograd.Function):
    """out[o] = sum over pairs (i, o, k) of x[i] @ kernel[k]; keeps no gathered rows for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, kmap: KernelMap, rows_out: int) -> Tensor:
        ctx.save_for_backward(x, kernel)
        ctx.kmap = kmap
        return _gather_multiply_scatter(x, kernel, kmap, rows_out)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel = ctx.saved_tensors
        kmap: KernelMap = ctx.kmap
        grad = grads[0].contiguous()
        grad_x = grad_kernel = None
        with torch.autocast(grad.device.type, enabled=False):  # some call backward inside their autocast
            if ctx.needs_input_grad[0]:
                grad_x = _gather_multiply_scatter(grad, kernel.transpose(1, 2), kmap.transposed(), len(x))
            if ctx.needs_input_grad[1]:
                grad_kernel = _kernel_gradient(x, grad, kmap)
        return grad_x, grad_kernel, None, None


def _kernel_gradient(x: Tensor, grad: Tensor, kmap: KernelMap) -> Tensor:
    out = x.new_zeros(len(kmap.counts), x.shape[1], grad.shape[1])
    start = 0
    for k, count in enumerate(kmap.counts):
        if count:
            pairs = slice(start, start + count)
            gathered = x.index_select(0, kmap.inputs[pairs])
            torch.mm(gathered.t(), grad.index_select(0, kmap.outputs[pairs]), out=out[k])
            start += count
    if kmap.identity is not None:
        torch.mm(x.t(), grad, out=out[kmap.identity])
    return out


def _gather_multiply_scatter(x: Tensor, kernel: Tensor, kmap: KernelMap, rows_out: int) -> Tensor:
    out = x @ kernel[kmap.identity] if kmap.identity is not None else x.new_zeros(rows_out, kernel.shape[2])
    # Two buffers for all offsets: they stay in the cache, and allocating megabytes anew costs as much as filling them.
    most = max(kmap.counts)
    gathered, products = x.new_empty(most, x.shape[1]), x.new_empty(most, kernel.shape[2])
    start = 0
    for k, count in enumerate(kmap.counts):
        if count:
            pairs = slice(start, start + count)
            torch.index_select(x, 0, kmap.inputs[pairs], out=gathered[:count])
            torch.mm(gathered[:count], kernel[k], out=products[:count])
            out.index_add_(0, kmap.outputs[pairs], products[:count])
            start += count
    return out


class TorchGrid:
    """A ``Grid`` in pure PyTorch; levels and kernel maps are made at first use and shared by all layers."""

    def __init__(self, voxels: VoxelBatch) -> None:
        self.batch_size = voxels.batch_size
        self._keys: dict[int, Tensor] = {1: torch.unique(pack(voxels.coordinates))}
        self._maps: dict[tuple[int, int, int], KernelMap] = {}
        self._batch_index: dict[int, Tensor] = {}

    def batch_index(self, stride: int) -> Tensor:
        """See ``Grid``."""
        if stride not in self._batch_index:
            self._batch_index[stride] = self._keys[stride] >> 3 * FIELD_BITS
        return self._batch_index[stride]

    def coordinates(self, stride: int) -> Tensor:
        """See ``Grid``."""
        return unpack(self._keys[stride])

    def convolve(self, features: Tensor, kernel: Tensor, from_stride: int, to_stride: int, kernel_size: int) -> Tensor:
        """See ``Grid``."""
        kmap = self._map(min(from_stride, to_stride), max(from_stride, to_stride), kernel_size)
        if from_stride > to_stride:
            kmap = kmap.transposed()
        out: Tensor = _Convolution.apply(features, kernel, kmap, len(self._keys[to_stride]))
        return out

    def _map(self, fine: int, coarse: int, kernel_size: int) -> KernelMap:
        if coarse not in self._keys:
            coordinates = unpack(self._keys[fine])
            coordinates[:, 1:] -= coordinates[:, 1:].remainder(coarse)
            self._keys[coarse] = torch.unique(pack(coordinates))
        name = (fine, coarse, kernel_size)
        if name not in self._maps:
            self._maps[name] = kernel_map(self._keys[fine], self._keys[coarse], kernel_size, fine)
        return self._maps[name]
