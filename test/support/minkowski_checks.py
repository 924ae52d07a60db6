"""Layers and encoder on MinkowskiEngine against ours; ``test_sparse.py`` runs this file in a process of its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.models.kernel_maps import TorchGrid
from training.models.minkfpn import MinkLoc3D
from training.models.minkowski import MinkowskiGrid, make_grid
from training.models.sparse import Grid, SparseConv, SparseTensor
from training.models.voxels import VoxelBatch, pack, voxelise

SIDE = 12  # of the dense grid of the oracle; voxels lie in [-SIDE / 2, SIDE / 2)


def random_voxels(count: int, batch_size: int, seed: int) -> VoxelBatch:
    generator = torch.Generator().manual_seed(seed)
    coordinates = torch.randint(-SIDE // 2, SIDE // 2, (count, 4), generator=generator)
    coordinates[:, 0] = torch.randint(0, batch_size, (count,), generator=generator)
    return VoxelBatch(torch.unique(coordinates, dim=0).int(), batch_size)


def rows_in_order(grid: Grid, stride: int, features: Tensor) -> Tensor:
    return features[pack(grid.coordinates(stride)).argsort()]


@pytest.mark.parametrize(
    ("size", "stride", "transposed"),
    [
        (1, 1, False),
        (2, 1, False),
        (3, 1, False),
        (5, 1, False),
        (2, 2, False),
        (3, 2, False),
        (2, 2, True),
        (3, 2, True),
    ],
)
def test_a_layer_is_the_same_in_minkowski_engine(size: int, stride: int, transposed: bool) -> None:
    torch.manual_seed(2)
    voxels = random_voxels(300, 3, seed=2)
    first = SparseConv(1, 4, 3).double()
    to_coarse = SparseConv(4, 4, 2, 2).double()
    layer = SparseConv(4, 5, size, stride, transposed).double()
    outputs, gradients = [], []
    for grid in (TorchGrid(voxels), MinkowskiGrid(voxels)):
        x = first(SparseTensor(torch.ones(len(voxels.coordinates), 1, dtype=torch.float64), 1, grid))
        x = to_coarse(x) if transposed else x
        out = layer(x)
        outputs.append(rows_in_order(grid, out.stride, out.features))
        gradients.append(torch.autograd.grad(out.features.pow(3).sum(), [first.kernel, layer.kernel]))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("top_down", [0, 1, 3])
def test_the_encoder_is_the_same_in_minkowski_engine(top_down: int) -> None:
    torch.manual_seed(3)
    clouds = [torch.rand(n, 3) * 2 - 1 for n in (700, 1, 0, 1500)]
    voxels = voxelise(clouds, 0.05)
    ours = MinkLoc3D(descriptor_dim=32, planes=(8, 16, 16), top_down=top_down, sparse_backend="torch").double()
    theirs = MinkLoc3D(descriptor_dim=32, planes=(8, 16, 16), top_down=top_down, sparse_backend="minkowski").double()
    theirs.load_state_dict(ours.state_dict())
    assert isinstance(make_grid(theirs.sparse_backend, voxels), MinkowskiGrid)
    weights = torch.randn(4, 32, dtype=torch.float64)
    descriptors = [model(None, voxels) for model in (ours, theirs)]
    torch.testing.assert_close(descriptors[0], descriptors[1], rtol=1e-11, atol=1e-11)
    for descriptor in descriptors:
        (descriptor * weights).sum().backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-8, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")
    empty = voxelise([torch.zeros(0, 3)], 0.05)
    torch.testing.assert_close(ours.eval()(None, empty), theirs.eval()(None, empty))
