"""Voxels and sparse convolutions, against dense convolutions, plain loops and MinkowskiEngine."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from support import minkowski_checks
from support.minkowski_checks import SIDE, random_voxels
from training.models.kernel_maps import TorchGrid
from training.models.minkfpn import MinkLoc3D
from training.models.minkowski import import_minkowski, minkowski_is_installed
from training.models.sparse import SparseBatchNorm, SparseConv, SparseTensor
from training.models.voxels import MAX_COORDINATE, pack, unpack, voxelise
from vpr_kd_ros.errors import ConfigError, DataError, MissingDependencyError

REPOSITORY = Path(__file__).resolve().parents[1]
needs_minkowski = pytest.mark.skipif(
    not minkowski_is_installed(), reason="MinkowskiEngine is not installed; the pure PyTorch path is the one tested"
)


def dense(features: Tensor, coordinates: Tensor, stride: int, batch_size: int) -> Tensor:
    """Scatter rows to a dense (B, C, X, Y, Z) grid of one level."""
    grid = features.new_zeros(batch_size, SIDE // stride, SIDE // stride, SIDE // stride, features.shape[1])
    b, x, y, z = coordinates.long().unbind(1)
    cells = [torch.div(c + SIDE // 2, stride, rounding_mode="floor") for c in (x, y, z)]
    grid[b, cells[0], cells[1], cells[2]] = features
    return grid.permute(0, 4, 1, 2, 3)


def at(grid: Tensor, coordinates: Tensor, stride: int) -> Tensor:
    """Read the rows of ``coordinates`` back from a dense grid."""
    b, x, y, z = coordinates.long().unbind(1)
    cells = [torch.div(c + SIDE // 2, stride, rounding_mode="floor") for c in (x, y, z)]
    return grid.permute(0, 2, 3, 4, 1)[b, cells[0], cells[1], cells[2]]


def dense_weight(kernel: Tensor, size: int) -> Tensor:
    """(K^3, C_in, C_out), x fastest, to conv3d's (C_out, C_in, K_x, K_y, K_z)."""
    return kernel.view(size, size, size, *kernel.shape[1:]).permute(4, 3, 2, 1, 0)


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (2, 1), (3, 1), (5, 1), (2, 2), (3, 2), (5, 2), (3, 3)])
def test_convolution_equals_a_dense_convolution_at_the_active_sites(size: int, stride: int) -> None:
    torch.manual_seed(size * 10 + stride)
    voxels = random_voxels(300, 3, seed=size)
    layer = SparseConv(4, 6, size, stride).double()
    features = torch.randn(len(voxels.coordinates), 4, dtype=torch.float64)
    out = layer(SparseTensor(features, 1, TorchGrid(voxels)))

    low = (size - 1) // 2
    padded = F.pad(dense(features, voxels.coordinates, 1, 3), (low, size - 1 - low) * 3)
    expected = F.conv3d(padded, dense_weight(layer.kernel, size), stride=stride)
    coordinates = out.grid.coordinates(stride)
    occupied = {(b, *(c // stride * stride for c in xyz)) for b, *xyz in voxels.coordinates.tolist()}
    assert {tuple(row) for row in coordinates.tolist()} == occupied
    assert out.stride == stride
    torch.testing.assert_close(out.features, at(expected, coordinates, stride), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [2, 3])
def test_transposed_convolution_equals_a_dense_one_at_the_fine_sites(size: int) -> None:
    torch.manual_seed(size)
    voxels = random_voxels(200, 2, seed=3)
    grid = TorchGrid(voxels)
    down = SparseConv(1, 5, size, 2).double()
    up = SparseConv(5, 3, size, 2, transposed=True).double()
    coarse = down(SparseTensor(torch.randn(len(voxels.coordinates), 1, dtype=torch.float64), 1, grid))
    out = up(coarse)
    weight = dense_weight(up.kernel, size).transpose(0, 1)
    coarse_grid = dense(coarse.features, grid.coordinates(2), 2, 2)
    padding = (size - 1) // 2
    expected = F.conv_transpose3d(coarse_grid, weight, stride=2, padding=padding, output_padding=padding)
    assert out.stride == 1
    torch.testing.assert_close(out.features, at(expected, voxels.coordinates, 1), rtol=0, atol=1e-12)


def test_a_level_two_strides_up_sees_its_own_neighbours() -> None:
    torch.manual_seed(0)
    voxels = random_voxels(400, 2, seed=5)
    grid = TorchGrid(voxels)
    x = SparseConv(1, 3, 2, 2).double()(SparseTensor(torch.ones(len(voxels.coordinates), 1).double(), 1, grid))
    layer = SparseConv(3, 2, 3).double()
    expected = F.conv3d(dense(x.features, grid.coordinates(2), 2, 2), dense_weight(layer.kernel, 3), padding=1)
    torch.testing.assert_close(layer(x).features, at(expected, grid.coordinates(2), 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("size", "stride", "transposed"), [(3, 1, False), (2, 2, False), (3, 2, False), (2, 2, True)])
def test_gradients_are_those_of_finite_differences(size: int, stride: int, transposed: bool) -> None:
    torch.manual_seed(1)
    voxels = random_voxels(25, 2, seed=1)
    grid = TorchGrid(voxels)
    SparseConv(1, 1, 2, 2)(SparseTensor(torch.ones(len(voxels.coordinates), 1), 1, grid))  # makes level 2
    from_stride, to_stride = (2, 1) if transposed else (1, stride)
    rows = len(grid.coordinates(from_stride))
    features = torch.randn(rows, 2, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(size**3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f, k: grid.convolve(f, k, from_stride, to_stride, size), (features, kernel))


def test_layers_of_a_level_share_one_search(monkeypatch: pytest.MonkeyPatch) -> None:
    searches = []
    search = torch.searchsorted
    monkeypatch.setattr(torch, "searchsorted", lambda *args: searches.append(1) or search(*args))
    x = SparseTensor(torch.ones(50, 2), 1, TorchGrid(random_voxels(50, 1, seed=0)))
    x = x.with_features(torch.ones(len(x.grid.coordinates(1)), 2))
    for _ in range(3):
        x = SparseConv(2, 2, 3)(x)
    assert len(searches) == 1


def test_batch_norm_is_over_all_voxels_and_survives_a_lone_one() -> None:
    torch.manual_seed(0)
    norm = SparseBatchNorm(4)
    grid = TorchGrid(random_voxels(60, 2, seed=0))
    features = torch.randn(len(grid.coordinates(1)), 4) * 3 + 1
    out = norm(SparseTensor(features, 1, grid)).features
    expected = (features - features.mean(0)) / (features.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    before = norm.running_mean.clone()
    lone = norm(SparseTensor(features[:1], 1, grid)).features
    expected_lone = (features[:1] - before) / (norm.running_var + 1e-5).sqrt()
    torch.testing.assert_close(lone, expected_lone)
    assert torch.equal(norm.running_mean, before)


def test_keys_sort_as_coordinates_do_and_unpack() -> None:
    rng = random.Random(0)
    limit = MAX_COORDINATE
    rows = [[rng.randrange(4096), *(rng.choice([-limit, -1, 0, 1, limit]) for _ in range(3))] for _ in range(500)]
    keys = pack(torch.tensor(rows, dtype=torch.int32))
    assert unpack(keys).tolist() == rows
    assert [rows[i] for i in keys.argsort(stable=True)] == sorted(rows)


def test_voxelise_finds_the_occupied_cells_once_each() -> None:
    generator = torch.Generator().manual_seed(0)
    clouds = [torch.randn(200, 3, generator=generator) * 2, torch.zeros(0, 3), torch.randn(50, 3, generator=generator)]
    voxels = voxelise(clouds, 0.5)
    expected = sorted({(b, *(int(c // 0.5) for c in p)) for b, cloud in enumerate(clouds) for p in cloud.tolist()})
    assert [tuple(row) for row in voxels.coordinates.tolist()] == expected
    assert voxels.coordinates.dtype == torch.int32
    assert voxels.batch_size == 3


def test_voxelise_ignores_the_order_of_points_and_non_finite_ones() -> None:
    generator = torch.Generator().manual_seed(1)
    cloud = torch.randn(300, 3, generator=generator)
    damaged = torch.cat([cloud[torch.randperm(300, generator=generator)], torch.full((3, 3), float("nan"))])
    damaged[-1] = torch.tensor([0.0, float("inf"), 0.0])
    assert torch.equal(voxelise([cloud], 0.1).coordinates, voxelise([damaged], 0.1).coordinates)


def test_voxelise_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(ConfigError, match="voxel_size"):
        voxelise([torch.zeros(1, 3)], 0.0)
    with pytest.raises(DataError, match=r"cloud 1 .*\(5, 4\)"):
        voxelise([torch.zeros(2, 3), torch.zeros(5, 4)], 1.0)
    with pytest.raises(DataError, match=r"cloud 0 .*far points"):
        voxelise([torch.tensor([[1e30, 0.0, 0.0]])], 1.0)
    with pytest.raises(DataError, match="clouds in a batch"):
        voxelise([], 1.0)


def test_minkowski_that_is_not_there_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "MinkowskiEngine", None)
    with pytest.raises(MissingDependencyError, match="pip install MinkowskiEngine"):
        MinkLoc3D(sparse_backend="minkowski")
    with pytest.raises(MissingDependencyError, match="libopenblas-dev"):
        import_minkowski()


@needs_minkowski
def test_minkowski_engine_agrees_in_a_process_of_its_own() -> None:
    """It loads an OpenBLAS beside torch's own libraries; what it does to a process must not reach the other tests."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", minkowski_checks.__file__]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "11 passed" in result.stdout
