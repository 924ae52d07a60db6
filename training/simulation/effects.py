"""From light to image: what falls through the air, the lens, and the sensor."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from training.simulation.conditions import Condition
from training.simulation.shading import Look

F32 = NDArray[np.float32]

REFERENCE_WIDTH = 128.0
"""Image width, pixels, for which blur and the sizes of drops and flakes are given."""


def develop(light: F32, condition: Condition, look: Look, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Image RGB (H, W, 3) uint8 of linear light (H, W, 3) float32.

    Args:
        light: what reaches the camera.
        condition: weather, exposure and sensor noise.
        look: of the traverse.
        rng: source of flakes, streaks, drops and noise.
    """
    scale = light.shape[1] / REFERENCE_WIDTH
    light = light * (look.gain * np.float32(condition.exposure))
    grey = light.mean(axis=2, keepdims=True)
    light = grey + (light - grey) * np.float32(condition.saturation)
    # Lamps bloom: what is brighter than white spreads.
    glare = cv2.GaussianBlur(np.clip(light - 1.0, 0, 4), (0, 0), 2.2 * scale)
    light = cv2.GaussianBlur(light + glare * np.float32(0.6), (0, 0), condition.blur * scale)
    # A curve that is straight in the shadows and never clips.
    display = (1 - np.exp(-np.maximum(light, 0) * np.float32(1.1))) ** np.float32(1 / 2.2)
    if condition.streaks:
        _streaks(display, condition.streaks, scale, rng)
    if condition.flakes:
        _flakes(display, condition.flakes, scale, rng)
    if condition.drops:
        display = _drops(display, condition.drops, scale, rng)
    display += rng.normal(0, 1, display.shape).astype(np.float32) * np.float32(condition.noise)
    return np.asarray(np.clip(display * 255 + 0.5, 0, 255), dtype=np.uint8)


def _streaks(image: F32, count: int, scale: float, rng: np.random.Generator) -> None:
    height, width = image.shape[:2]
    veil = np.zeros((height, width), dtype=np.uint8)
    slant = rng.normal(0, 0.12)
    for x, y, size in zip(
        rng.uniform(0, width, count), rng.uniform(0, height, count), rng.uniform(3, 11, count), strict=True
    ):
        end = (round(x + slant * size * scale), round(y + size * scale))
        cv2.line(veil, (round(x), round(y)), end, int(rng.integers(20, 70)), max(1, round(0.6 * scale)), cv2.LINE_AA)
    image += veil[:, :, None] * np.float32(1 / 255)


def _flakes(image: F32, count: int, scale: float, rng: np.random.Generator) -> None:
    height, width = image.shape[:2]
    veil = np.zeros((height, width), dtype=np.uint8)
    sizes = 0.4 + 0.5 * rng.exponential(1.0, count)
    for x, y, size in zip(rng.uniform(0, width, count), rng.uniform(0, height, count), sizes, strict=True):
        # Centre and radius in sixteenths of a pixel.
        centre, radius = (int(x * 16), int(y * 16)), max(1, int(16 * min(size, 2.2) * scale))
        cv2.circle(veil, centre, radius, int(rng.integers(110, 235)), -1, cv2.LINE_AA, 4)
    cover = cv2.GaussianBlur(veil, (0, 0), 0.5 * scale)[:, :, None] * np.float32(1 / 255)
    image += (np.float32(0.96) - image) * cover


def _drops(image: F32, count: int, scale: float, rng: np.random.Generator) -> F32:
    height, width = image.shape[:2]
    mask = np.zeros((height, width), dtype=np.float32)
    for x, y, size in zip(
        rng.uniform(0, width, count), rng.uniform(0, height, count), rng.uniform(2, 7, count), strict=True
    ):
        cv2.circle(mask, (round(x), round(y)), max(1, round(size * scale)), 1.0, -1, cv2.LINE_AA)
    soft = cv2.GaussianBlur(mask, (0, 0), 0.8 * scale)[:, :, None]
    smeared = cv2.GaussianBlur(image, (0, 0), 4 * scale) * np.float32(1.05)
    return np.asarray(image + (smeared - image) * soft, dtype=np.float32)
