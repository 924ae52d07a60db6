"""AdaFusion: its voxels, its attention by definition, and what learns from what."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from training.models import build_model, voxelise
from training.models.adafusion import AdaFusion, ChannelAttention, DenseVoxels, SpatialAttention, pooled
from vpr_kd_ros.errors import ConfigError, DataError

BOX = {"lower": [-1.0, -1.0, -1.0], "upper": [1.0, 1.0, 1.0], "voxels": [16, 16, 8]}


def clouds(*sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(size, 3, generator=generator) * 2.4 - 1.2 for size in sizes]


def test_dense_voxels_are_where_the_points_are() -> None:
    densify = DenseVoxels((-20, -10, 0), (20, 10, 5), (72, 40, 48))
    rng = np.random.default_rng(0)
    points = [rng.uniform((-25, -12, -1), (25, 12, 6), size=(n, 3)).astype(np.float32) for n in (500, 0, 300)]
    grid = densify(voxelise([torch.from_numpy(p) for p in points], densify.voxel_size))
    expected = np.zeros((3, 1, 72, 40, 48), dtype=np.float32)
    for b, cloud in enumerate(points):
        for x, y, z in cloud.astype(np.float64):
            cell = (math.floor((x + 20) / 40 * 72), math.floor((y + 10) / 20 * 40), math.floor(z / 5 * 48))
            if all(0 <= c < n for c, n in zip(cell, (72, 40, 48), strict=True)):
                expected[(b, 0, *cell)] = 1
    assert 0 < expected.sum() < 800
    np.testing.assert_array_equal(grid.numpy(), expected)


@pytest.mark.parametrize("dims", [2, 3])
def test_attention_by_its_definition(dims: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, *(5, 6, 4)[:dims])
    spatial = SpatialAttention(dims, 5, stride=2)
    maps = spatial.project(x)
    out = spatial(x)
    assert out.shape == (2, 16, *maps.shape[2:])
    for b in range(2):
        query, key, value = maps[b].flatten(1).split([4, 4, 16])
        for place in range(query.shape[1]):
            share = torch.softmax(torch.stack([query[:, place] @ k / 2 for k in key.T]), dim=0)
            expected = sum(s * v for s, v in zip(share, value.T, strict=True))
            torch.testing.assert_close(out[b].flatten(1)[:, place], expected, rtol=1e-4, atol=1e-5)
    channel = ChannelAttention(dims, 5)
    mixed = torch.empty_like(x)
    for b in range(2):
        for c in range(5):
            share = torch.softmax(torch.stack([(x[b, c] * other).sum() for other in x[b]]), dim=0)
            mixed[b, c] = sum(s * other for s, other in zip(share, x[b], strict=True))
    torch.testing.assert_close(channel(x), channel.project(mixed), rtol=1e-4, atol=1e-5)


def test_the_weights_scale_each_half_and_their_gradient_stops_before_the_backbones() -> None:
    torch.manual_seed(0)
    model = build_model("adafusion", BOX).eval()
    assert isinstance(model, AdaFusion)
    images, voxels = torch.randn(2, 3, 64, 64), voxelise(clouds(300, 200), model.voxel_size)
    halves = [pooled(model.image(images)[-1]), pooled(model.cloud(model.densify(voxels))[-1])]
    out = model(images, voxels)
    weights = [out[:, :128].sum(1) / halves[0].sum(1), out[:, 128:].sum(1) / halves[1].sum(1)]
    for half, weight, part in zip(halves, weights, out.split(128, dim=1), strict=True):
        assert ((weight > 0) & (weight < 1)).all()
        torch.testing.assert_close(part, weight[:, None] * half, rtol=1e-4, atol=1e-6)
    out.sum().backward()
    through_all = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    fixed = [weight.detach()[:, None] * half for half, weight in zip(halves, weights, strict=True)]
    torch.cat(fixed, dim=1).sum().backward()
    for key, p in model.named_parameters():
        if key.startswith(("image.", "cloud.")):
            torch.testing.assert_close(through_all[key], p.grad, rtol=1e-3, atol=1e-5)
        else:
            assert through_all[key].abs().max() > 0, key


def test_a_cloud_outside_the_box_has_a_descriptor() -> None:
    torch.manual_seed(0)
    model = build_model("adafusion-3d", BOX).eval()
    far = torch.full((5, 3), 7.0)
    out = model(None, voxelise([far, *clouds(200), torch.zeros(0, 3)], model.voxel_size))
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out[0], out[2])
    assert not torch.allclose(out[0], out[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lower": [0.0, 0.0]}, "three numbers each"),
        ({"voxels": [72, 72, 4]}, "at least 8"),
        ({"lower": [0.0, 0.0, 5.0]}, "below upper"),
        ({"cloud_widths": [32, 64]}, "cloud_widths wants three"),
    ],
)
def test_wrong_values_name_their_option(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model("adafusion", options)


def test_a_missing_input_is_named() -> None:
    model = build_model("adafusion", BOX)
    with pytest.raises(DataError, match="needs images"):
        model(None, voxelise(clouds(10), model.voxel_size))
    with pytest.raises(DataError, match="needs clouds"):
        model(torch.zeros(1, 3, 64, 64))
