"""Reproducible randomness: generators by name, and noise that is a function of place."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Reals = NDArray[np.floating[Any]]
U32 = NDArray[np.uint32]

_PRIMES = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F)


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A generator of its own for each seed and list of names, the same on every machine and in every process."""
    return np.random.default_rng([seed, *(zlib.crc32(str(name).encode()) for name in names)])


def cells(values: Reals) -> U32:
    """The integer cell that each value lies in, as unsigned 32 bit (negative cells wrap round)."""
    return np.floor(values).astype(np.int32).view(np.uint32)


def hash_unit(*keys: U32 | int) -> F32:
    """A number in [0, 1) for each tuple of up to four unsigned integers, without visible pattern.

    Args:
        keys: arrays (N,) uint32, or integers that count for every row.
    """
    mixed = np.zeros(1, dtype=np.uint32)
    for key, prime in zip(keys, _PRIMES, strict=False):
        # Integers are wrapped here because numpy refuses a Python integer that overflows uint32.
        term = key * np.uint32(prime) if isinstance(key, np.ndarray) else np.uint32(key * prime & 0xFFFFFFFF)
        mixed = (mixed ^ term) * np.uint32(0x2545F491)
        mixed = mixed ^ (mixed >> np.uint32(15))
    mixed = mixed * np.uint32(0x297A2D39)
    mixed = mixed ^ (mixed >> np.uint32(16))
    return (mixed >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def smooth_noise(u: Reals, v: Reals, seed: int, octaves: int = 3) -> F32:
    """Cloudy noise over the plane in [0, 1]: bilinear value noise, each octave of half the size and half the weight."""
    total = np.zeros(len(u), dtype=np.float32)
    weight = 0.0
    for octave in range(octaves):
        scale = 2.0**octave
        x, y = u * np.float32(scale), v * np.float32(scale)
        i, j = cells(x), cells(y)
        fx, fy = x - np.floor(x), y - np.floor(y)
        fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
        one = np.uint32(1)
        key = seed * 31 + octave
        low = hash_unit(i, j, key) * (1 - fx) + hash_unit(i + one, j, key) * fx
        high = hash_unit(i, j + one, key) * (1 - fx) + hash_unit(i + one, j + one, key) * fx
        total += (low * (1 - fy) + high * fy) / np.float32(scale)
        weight += 1.0 / scale
    return total / np.float32(weight)


def smooth_loop(
    rng: np.random.Generator, sigma: float, limit: float, harmonics: int
) -> tuple[NDArray[np.float64], float]:
    """Coefficients of a smooth random function round a loop, for ``evaluate_loop``.

    Args:
        rng: source of randomness.
        sigma: standard deviation round the loop.
        limit: the function is squashed to stay within +-``limit``.
        harmonics: its shortest wave goes this often round the loop.

    Returns:
        (harmonics, 2) cosine and sine weights, and the limit.
    """
    weights = rng.normal(size=(harmonics, 2))
    weights *= sigma * np.sqrt(2.0 / np.sum(weights**2))
    return weights, limit


def evaluate_loop(series: tuple[NDArray[np.float64], float], turns: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """The value of a ``smooth_loop`` at the given fractions of the loop, any shape."""
    weights, limit = series
    if limit <= 0.0:
        return np.zeros(np.shape(turns))
    angles = 2 * np.pi * np.asarray(turns)[..., None] * np.arange(1, len(weights) + 1)
    value = np.cos(angles) @ weights[:, 0] + np.sin(angles) @ weights[:, 1]
    return np.asarray(limit * np.tanh(value / limit))
