"""Geometric verification of warped and of unrelated pictures."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from vpr_kd_ros.errors import ConfigError
from vpr_kd_ros.verification import FUNDAMENTAL, VerificationConfig, Verifier

Picture = NDArray[np.uint8]


def scene(seed: int, width: int = 320, height: int = 240) -> Picture:
    """Rectangles and discs of many colours."""
    rng = np.random.default_rng(seed)
    canvas = np.full((height, width, 3), 128, dtype=np.uint8)
    for _ in range(150):
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        size, colour = int(rng.integers(4, 30)), rng.integers(0, 256, 3).tolist()
        if rng.random() < 0.5:
            cv2.rectangle(canvas, (x, y), (x + size, y + int(rng.integers(4, 30))), colour, -1)
        else:
            cv2.circle(canvas, (x, y), size // 2, colour, -1)
    return canvas


def warped(picture: Picture, seed: int) -> Picture:
    """Seen from nearby: the corners shift by up to 8 % of the width; in other light and with noise."""
    rng = np.random.default_rng(seed)
    height, width = picture.shape[:2]
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=np.float32)
    moved = corners + rng.uniform(-0.08 * width, 0.08 * width, (4, 2)).astype(np.float32)
    turned = cv2.warpPerspective(picture, cv2.getPerspectiveTransform(corners, moved), (width, height))
    return np.clip(turned * 0.7 + 20 + rng.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("width", [320, 160])
def test_a_place_seen_from_nearby_agrees_and_another_does_not(width: int) -> None:
    config = VerificationConfig()
    verifier = Verifier(config)
    for seed in range(8):
        place = scene(seed)
        kept = np.asarray(cv2.resize(place, (width, width * 3 // 4), interpolation=cv2.INTER_AREA), dtype=np.uint8)
        assert verifier.inliers(warped(place, seed), kept) >= config.min_inliers
        assert verifier.inliers(scene(100 + seed), kept) < config.min_inliers


def test_it_says_the_same_each_time() -> None:
    verifier = Verifier(VerificationConfig())
    pair = warped(scene(3), 1), scene(3)
    assert len({verifier.inliers(*pair) for _ in range(3)}) == 1


def test_pictures_without_features_agree_on_nothing() -> None:
    verifier = Verifier(VerificationConfig())
    blank, noise = np.zeros((96, 128, 3), dtype=np.uint8), np.random.default_rng(0).integers(0, 256, (96, 128, 3))
    assert verifier.inliers(blank, blank) == 0
    assert verifier.inliers(scene(0), blank) == 0
    assert verifier.inliers(noise.astype(np.uint8), scene(0)) < VerificationConfig().min_inliers
    assert verifier.inliers(np.zeros((1, 1, 3), dtype=np.uint8), scene(0)) == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [("places", -1), ("min_inliers", FUNDAMENTAL), ("ratio", 1.0), ("tolerance_px", 0.0), ("max_features", 16)],
)
def test_bad_settings_are_named(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=key):
        VerificationConfig(**{key: value})  # type: ignore[arg-type]
