"""What is taken from images: each kind by what it must leave and what it must not."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from training.data.degrade import Degradation, down_sampled, jpeg, video_key_frame
from vpr_kd_ros.errors import ConfigError


def scene(height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth ramp with a checkerboard of single pixels on its right half, (H, W, 3) uint8."""
    rows, columns = np.mgrid[:height, :width]
    ramp = np.stack([rows * 2 + 60, columns * 2 + 60, rows + columns + 60], axis=2)
    ramp[:, width // 2 :] += (40 * ((rows + columns) % 2))[:, width // 2 :, None]
    return np.clip(ramp, 0, 255).astype(np.uint8)


def error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())


def test_nothing_is_taken_by_default() -> None:
    images = torch.from_numpy(scene().transpose(2, 0, 1))[None]
    assert Degradation()(images) is images


def test_down_sampling_keeps_what_is_smooth_and_loses_what_is_fine() -> None:
    image = torch.from_numpy(scene().transpose(2, 0, 1))
    small = down_sampled(image, 0.25).numpy().astype(int)
    original = image.numpy().astype(int)
    assert np.abs(small - original)[:, 8:-8, 4:20].max() <= 3
    contrast = np.abs(np.diff(original, axis=2))[:, 8:-8, 40:56].mean()
    assert np.abs(np.diff(small, axis=2))[:, 8:-8, 40:56].mean() < 0.2 * contrast


def test_jpeg_is_what_another_library_makes_of_the_same_quality() -> None:
    image = scene()
    for quality in (10, 50, 90):
        buffer = io.BytesIO()
        Pillow.fromarray(image).save(buffer, "JPEG", quality=quality)
        theirs = np.asarray(Pillow.open(buffer).convert("RGB"))
        assert error(jpeg(image, quality), theirs) < 1.5, quality
    assert error(jpeg(image, 10), image) > 2 * error(jpeg(image, 90), image)


@pytest.mark.parametrize("size", [(48, 64), (47, 63), (24, 20)])
def test_video_takes_more_the_higher_the_quantisation(size: tuple[int, int]) -> None:
    pytest.importorskip("av", reason="video compression needs the package av")
    image = scene(*size)
    errors = [error(video_key_frame(image, qp), image) for qp in (5, 30, 50)]
    assert video_key_frame(image, 30).shape == image.shape
    assert errors[0] < errors[1] < errors[2]
    assert errors[0] < 3


def test_a_blur_spreads_a_point_over_its_width() -> None:
    image = np.zeros((33, 33, 3), dtype=np.uint8)
    image[16, 16] = 255
    blurred = Degradation(blur_px=(2.0, 2.0))(torch.from_numpy(image.transpose(2, 0, 1))[None])[0, 0].double()
    offsets = torch.arange(33) - 16
    deviation = ((blurred.sum(0) * offsets**2).sum() / blurred.sum()).sqrt()
    assert deviation == pytest.approx(2.0, rel=0.15)


def test_strengths_are_drawn_for_every_image_from_the_generator() -> None:
    images = torch.from_numpy(scene().transpose(2, 0, 1)).repeat(4, 1, 1, 1)
    degrade = Degradation(scale=(0.1, 0.9))
    first, again, other = (degrade(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize(
    "options", [{"scale": (0.5, 1.5)}, {"blur_px": (3.0, 1.0)}, {"jpeg_quality": (0, 50)}, {"video_qp": (30, 60)}]
)
def test_strengths_out_of_range_are_refused_by_name(options: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        Degradation(**options)
