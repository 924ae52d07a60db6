"""Feature maps as they are taken from the networks."""

from __future__ import annotations

import pytest
import torch

from training.models import build_model
from training.models.maps import captured_maps
from vpr_kd_ros.errors import ConfigError

PYRAMIDS = {
    "minkloc++2d": [(64, 32, 48), (64, 16, 24), (128, 8, 12), (384, 4, 6)],
    "resnet18-gem": [(64, 32, 48), (64, 16, 24), (128, 8, 12), (256, 4, 6), (512, 2, 3)],
    "mobilenetv2-gem": [(16, 32, 48), (24, 16, 24), (32, 8, 12), (96, 4, 6), (1280, 2, 3)],
    "structvpr": [(16, 32, 48), (24, 16, 24), (32, 8, 12), (96, 4, 6), (320, 2, 3)],
    "adafusion-2d": [(128, 4, 6)],
}


@pytest.mark.parametrize("name", PYRAMIDS)
def test_the_last_map_of_each_resolution_is_captured(name: str) -> None:
    model = build_model(name, {}).eval()
    with captured_maps(model) as maps:
        model(torch.rand(2, 3, 64, 96))
        assert [tuple(x.shape) for x in maps] == [(2, *shape) for shape in PYRAMIDS[name]]


def test_the_last_map_is_what_is_pooled_and_carries_the_gradient() -> None:
    torch.manual_seed(0)
    model = build_model("minkloc++2d", {"descriptor_dim": 16}).eval()
    with captured_maps(model) as maps:
        for seed in (1, 2):  # the second pass replaces the maps of the first
            descriptors = model(torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(seed)))
        assert len(maps) == 4
        torch.testing.assert_close(model.pool(maps[-1]), descriptors)
        maps[0].sum().backward()
    assert model.features[0].weight.grad is not None


def test_the_context_leaves_no_hooks_behind() -> None:
    model = build_model("resnet18-gem", {}).eval()
    with captured_maps(model) as maps:
        pass
    model(torch.rand(1, 3, 32, 32))
    assert maps == []
    assert all(not layer._forward_hooks for layer in model.modules())


def test_a_model_without_maps_says_so() -> None:
    model = build_model("minkloc++3d", {"sparse_backend": "torch"})
    with pytest.raises(ConfigError, match="MinkLoc3D makes no feature maps"), captured_maps(model):
        pass
