"""Augmentation changes what it says and nothing else."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from training.data.augment import CloudAugmentation, ImageAugmentation

NOTHING = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "erase": 0.0}


@pytest.fixture
def images() -> torch.Tensor:
    """Pictures with room above and below, so that no factor used here clips."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(60, 160, (5, 3, 20, 30), dtype=torch.uint8, generator=generator)


def drawn(strength: float, count: int) -> list[float]:
    """The factors that the next call draws, by the same seed."""
    return (1 + strength * (2 * torch.rand(count, 1, 1) - 1)).flatten().tolist()


def test_no_strength_is_no_change(images: torch.Tensor) -> None:
    assert torch.equal(ImageAugmentation(**NOTHING)(images), images)


@pytest.mark.parametrize(
    ("kind", "order", "adjust"),
    [
        ("brightness", 0, F.adjust_brightness),
        ("contrast", 1, F.adjust_contrast),
        ("saturation", 2, F.adjust_saturation),
    ],
)
def test_colours_change_as_torchvision_defines_it(images: torch.Tensor, kind: str, order: int, adjust) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(3)
    draws = [drawn(0.3, len(images)) for _ in range(3)][order]
    torch.manual_seed(3)
    found = ImageAugmentation(**{**NOTHING, kind: 0.3})(images)
    expected = torch.stack([adjust(image, factor) for image, factor in zip(images, draws, strict=True)])
    # torchvision rounds in between and down.
    assert (found.int() - expected.int()).abs().max() <= 2
    assert (found != images).any(dim=(1, 2, 3)).all()


def test_hue_keeps_grey_and_brightness() -> None:
    torch.manual_seed(0)
    augment = ImageAugmentation(**{**NOTHING, "hue": 0.2})
    grey = torch.full((4, 3, 8, 8), 120, dtype=torch.uint8)
    assert (augment(grey).int() - 120).abs().max() <= 1
    colour = torch.tensor([150, 110, 90], dtype=torch.uint8).view(1, 3, 1, 1).expand(6, 3, 8, 8)
    turned = augment(colour).float()
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    torch.testing.assert_close((turned * luma).sum(1), (colour * luma).sum(1), atol=1.0, rtol=0)
    assert (turned - colour).abs().amax(dim=(1, 2, 3)).max() > 5


def test_erased_share_is_within_its_bounds_and_differs_by_image() -> None:
    torch.manual_seed(0)
    white = torch.full((200, 3, 60, 80), 255, dtype=torch.uint8)
    augment = ImageAugmentation(**{**NOTHING, "erase": 0.5, "erase_area": (0.1, 0.3)})
    gone = (augment(white) == 0).all(dim=1).float().mean(dim=(1, 2))
    hit = gone[gone > 0]
    assert 70 < len(hit) < 130
    assert hit.min() > 0.08
    assert hit.max() < 0.32
    assert hit.unique().numel() > 20


def test_rand_augment_is_torchvisions_for_each_image_on_its_own() -> None:
    images = torch.randint(0, 256, (6, 3, 24, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    torch.manual_seed(5)
    changed = ImageAugmentation(**NOTHING, rand_augment=3)(images)
    torch.manual_seed(5)
    one_by_one = [v2.RandAugment(3, interpolation=v2.InterpolationMode.BILINEAR)(image) for image in images]
    assert torch.equal(changed, torch.stack(one_by_one))
    assert changed.dtype == torch.uint8
    assert sum(not torch.equal(a, b) for a, b in zip(changed, images, strict=True)) >= 4
    same = ImageAugmentation(**NOTHING, rand_augment=3)(images[:1].expand(6, -1, -1, -1))
    assert len({image.numpy().tobytes() for image in same}) >= 4, "each is drawn by itself"


def test_the_inputs_stay_as_they_were(images: torch.Tensor) -> None:
    before = images.clone()
    ImageAugmentation()(images)
    cloud = torch.randn(100, 3)
    kept = cloud.clone()
    CloudAugmentation()(cloud)
    assert torch.equal(images, before)
    assert torch.equal(cloud, kept)


def test_a_turned_and_shifted_cloud_keeps_its_shape() -> None:
    cloud = torch.randn(50, 3, dtype=torch.float64) * 10
    augment = CloudAugmentation(jitter_m=0.0, drop=0.0, block=0.0, turn_deg=30.0, shift_m=5.0)
    moved = augment(cloud, torch.Generator().manual_seed(1))
    torch.testing.assert_close(torch.cdist(moved, moved), torch.cdist(cloud, cloud), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(moved[:, 2], cloud[:, 2])
    assert (moved - cloud)[:, :2].abs().max() > 0.1


def test_drops_blocks_and_jitter_are_bounded() -> None:
    cloud = torch.rand(2000, 3) * 40
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        dropped = CloudAugmentation(jitter_m=0.0, drop=0.1, block=0.0, turn_deg=0.0, shift_m=0.0)(cloud, generator)
        assert 1700 < len(dropped) <= 2000
    jittered = CloudAugmentation(jitter_m=0.1, drop=0.0, block=0.0, turn_deg=0.0, shift_m=0.0)(cloud, generator)
    assert 0.15 < (jittered - cloud).abs().max() <= 0.2001
    blocked = CloudAugmentation(jitter_m=0.0, drop=0.0, block=1.0, block_m=8.0, turn_deg=0.0, shift_m=0.0)
    assert 50 < 2000 - len(blocked(cloud, generator)) < 700


@pytest.mark.parametrize("points", [0, 1])
def test_the_smallest_clouds_survive(points: int) -> None:
    augment = CloudAugmentation(block=1.0, drop=1.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        assert len(augment(torch.zeros(points, 3), generator)) == points
