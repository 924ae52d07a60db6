"""Which keyframes show the same place.

Two labelled keyframes of one region are *positives* within ``positive_m`` metres and ``heading_deg`` degrees of each
other, and *negatives* beyond ``negative_m`` metres; keyframes of different regions are always negatives. What lies
between, and whatever has no pose, is neither. Defaults: 10 m and 50 m, as DistilVPR and PointNetVLAD train.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vpr_kd_ros.errors import ConfigError
from vpr_kd_ros.geometry import Floats, Ints, wrap_angle

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Pairing:
    """Radii of positives and negatives.

    Attributes:
        positive_m: at most this far apart is the same place, metres.
        negative_m: farther apart than this is another place, metres.
        heading_deg: positives head the same way within this angle; a forward camera sees another scene on the way back.
    """

    positive_m: float = 10.0
    negative_m: float = 50.0
    heading_deg: float = 45.0

    def __post_init__(self) -> None:
        if not 0 < self.positive_m <= self.negative_m:
            raise ConfigError(
                f"pairing: wants 0 < positive_m <= negative_m, got positive_m={self.positive_m}, "
                f"negative_m={self.negative_m}"
            )
        if not 0 < self.heading_deg <= 180:
            raise ConfigError(f"pairing: heading_deg={self.heading_deg} is not in (0, 180]")


def place_masks(positions: Floats, yaws: Floats, regions: Ints, pairing: Pairing) -> tuple[Mask, Mask]:
    """Positives and negatives among N keyframes.

    Args:
        positions: (N, 3) float64, metres; NaN for a keyframe without a pose.
        yaws: (N,) float64, radians; NaN likewise.
        regions: (N,) int64, equal for keyframes whose positions share a frame.
        pairing: the radii.

    Returns:
        Two (N, N) bool matrices, symmetric, false on the diagonal and in the rows of keyframes without a pose.
    """
    labelled = np.asarray(np.isfinite(positions).all(axis=1))
    posed = labelled[:, None] & labelled[None, :]
    same_region = regions[:, None] == regions[None, :]
    distance = np.linalg.norm(positions[:, None, :2] - positions[None, :, :2], axis=2)
    turn = np.abs(wrap_angle(yaws[:, None] - yaws[None, :]))
    with np.errstate(invalid="ignore"):
        near = (distance <= pairing.positive_m) & (turn <= np.deg2rad(pairing.heading_deg))
        far = distance > pairing.negative_m
    positive = posed & same_region & near
    np.fill_diagonal(positive, False)
    negative = posed & (~same_region | far)
    return positive, negative
