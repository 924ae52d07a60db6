"""The belief's equations in plain loops, and beliefs and images to compare with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vpr_kd_ros.belief import Belief, BeliefConfig, Posterior
from vpr_kd_ros.geometry import Ints
from vpr_kd_ros.motion import GATE, Motion

Floats = NDArray[np.float64]
Image = tuple[Ints, Callable[[Ints], Floats], Floats]
SECOND = 1_000_000_000


def angle(a: float, b: float) -> float:
    return abs(math.remainder(a - b, 2 * math.pi))


class Dense:
    """The same equations with an entry for every place, in loops. Knows no pruning."""

    def __init__(self, places: list[tuple[float, float, float]], spacing: float, config: BeliefConfig) -> None:
        self.places, self.spacing, self.config = places, spacing, config
        self.b = [0.0] * len(places)
        self.lost, self.off = config.on_map, 1 - config.on_map

    def kernel(self, i: int, j: int, motion: Motion | None, seconds: float) -> float:
        """K_ij of the module's text."""
        c, (x, y, yaw), other = self.config, self.places[i], self.places[j]
        if motion is None:
            reach, sigma, width = c.max_speed_mps * seconds, self.spacing / 3, 2 * c.yaw_sigma_rad
            if math.dist((x, y), other[:2]) > reach + GATE * sigma:
                return 0.0
            bearing, far = math.atan2(other[1] - y, other[0] - x) - yaw, math.dist((x, y), other[:2])
            ahead, aside = far * math.cos(bearing), abs(far * math.sin(bearing))
            squared = max(0.0, -ahead, ahead - reach) ** 2 + max(0.0, aside - abs(ahead) / 2) ** 2
            return math.exp(-squared / (2 * sigma**2) - angle(other[2], yaw) ** 2 / (2 * width**2))
        sigma = math.sqrt((self.spacing / 3) ** 2 + (c.odometry_noise * motion.distance) ** 2)
        goal = (
            x + math.cos(yaw) * motion.forward - math.sin(yaw) * motion.left,
            y + math.sin(yaw) * motion.forward + math.cos(yaw) * motion.left,
        )
        far, turned = math.dist(goal, other[:2]), angle(other[2], yaw + motion.turn)
        value = math.exp(-(far**2) / (2 * sigma**2) - turned**2 / (2 * c.yaw_sigma_rad**2))
        return value if far <= GATE * sigma else 0.0

    def predict(self, motion: Motion | None, seconds: float, share: float) -> None:
        c, n = self.config, len(self.places)
        restart, crossing = 1 - (1 - c.restart) ** share, 1 - (1 - c.crossing) ** share
        new = [0.0] * n
        for i in range(n):
            row = [self.kernel(i, j, motion, seconds) for j in range(n)]
            for j in range(n):
                new[j] += (1 - restart) * row[j] / (sum(row) + math.exp(-GATE * GATE / 2)) * self.b[i]
        lost = restart * sum(self.b) + (1 - crossing) * self.lost + crossing * self.off
        self.b, self.lost, self.off = new, lost, 1 - lost - sum(new)

    def update(self, retrieved: list[int], ratios: Floats, background: Floats, share: float) -> None:
        each = self.lost / len(self.places)
        for j in range(len(self.places)):
            if self.b[j] > 0 or j in retrieved:
                self.b[j] = (self.b[j] + each) * math.exp(share * ratios[j])
                self.lost -= each
        self.lost *= sum(math.exp(share * ratio) for ratio in background) / len(background)
        total = sum(self.b) + self.lost + self.off
        self.b = [value / total for value in self.b]
        self.lost /= total
        self.off /= total


def make(places: list[tuple[float, float, float]], spacing: float, **config: Any) -> Belief:
    """Every frame counts in full, unless told otherwise."""
    rows = np.array(places, dtype=np.float64).reshape(-1, 3)
    options = {"decorrelation_m": 1e-3, "step_m": 2.0, **config}
    return Belief(np.arange(len(rows)) + 100, rows[:, :2], rows[:, 2], spacing, BeliefConfig(**options))


def image(ratios: Floats, retrieved: list[int] | None = None, background: Floats | None = None) -> Image:
    """An image with these log likelihood ratios (N,) of the places 100, 101, ..."""
    chosen = np.argsort(-ratios)[:5] if retrieved is None else np.array(retrieved, dtype=np.int64)
    return chosen + 100, lambda ids: ratios[ids - 100], ratios if background is None else background


def pointing(count: int, place: int, ratio: float) -> Image:
    """An image that speaks for one place, and against none."""
    ratios = np.zeros(count)
    ratios[place] = ratio
    return image(ratios, [place], np.zeros(count))


def total(posterior: Posterior) -> float:
    return float(posterior.weights.sum()) + posterior.unknown
