"""Which keyframes show the same place: the one rule by which training pairs them and evaluation judges answers.

Two labelled keyframes of one region are *positives* within ``positive_m`` metres and ``heading_deg`` degrees of each
other, and *negatives* beyond ``negative_m`` metres; keyframes of different regions are always negatives. What lies
between, and whatever has no pose, is neither. Defaults: 10 m and 50 m, as DistilVPR and PointNetVLAD train; heading is
not in those papers, whose LiDAR sees all around, but a forward camera on the way back looks at other walls.

At test an answer within 25 m is right (``training.evaluation.protocol``); there heading counts when asked for, because
the published numbers are by distance alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vpr_kd_ros.errors import ConfigError
from vpr_kd_ros.geometry import Floats, Ints, wrap_angle

Mask = NDArray[np.bool_]
BLOCK = 1 << 20
"""Pairs that are compared at once: each takes some fifty bytes, and two long drives have hundreds of millions."""


@dataclass(frozen=True)
class Pairing:
    """Radii of positives and negatives.

    Attributes:
        positive_m: at most this far apart is the same place, metres.
        negative_m: farther apart than this is another place, metres.
        heading_deg: positives head the same way within this angle; a forward camera sees another scene on the way back.
        together: what is apart and what is turned count together, as shares of ``positive_m`` and ``heading_deg`` whose
            sum is below one (StructVPR, supplement, Eq. 1, with 25 m and 40 degrees), not each by itself.
    """

    positive_m: float = 10.0
    negative_m: float = 50.0
    heading_deg: float = 45.0
    together: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.positive_m <= self.negative_m:
            raise ConfigError(
                f"pairing: wants 0 < positive_m <= negative_m, got positive_m={self.positive_m}, "
                f"negative_m={self.negative_m}"
            )
        if not 0 < self.heading_deg <= 180:
            raise ConfigError(f"pairing: heading_deg={self.heading_deg} is not in (0, 180]")


def same_place(
    positions: Floats,
    yaws: Floats,
    other_positions: Floats,
    other_yaws: Floats,
    radius_m: float,
    heading_deg: float | None,
) -> Mask:
    """Whether keyframes are near to others and, where that is asked for, head the same way.

    Args:
        positions, yaws: (N, 2 or 3) float64, metres, and (N,) float64, radians; NaN for a keyframe without a pose.
        other_positions, other_yaws: of M keyframes of the same region.
        radius_m: at most this far apart in the plane, metres.
        heading_deg: at most this far turned from one another; None to ignore the heading.

    Returns:
        (N, M) bool, false wherever a pose is missing.
    """
    same = np.empty((len(positions), len(other_positions)), dtype=bool)
    block = max(1, BLOCK // max(1, len(other_positions)))
    for start in range(0, len(positions), block):
        rows = slice(start, start + block)
        same[rows] = same_place_pairwise(
            positions[rows, None], yaws[rows, None], other_positions[None], other_yaws[None], radius_m, heading_deg
        )
    return same


def same_place_pairwise(
    positions: Floats,
    yaws: Floats,
    other_positions: Floats,
    other_yaws: Floats,
    radius_m: float,
    heading_deg: float | None,
) -> Mask:
    """``same_place`` of each keyframe and the other one in its row; axes but the last are broadcast.

    Args:
        positions, yaws: (..., 2 or 3) and (...), as in ``same_place``.
        other_positions, other_yaws: likewise, of the others.
        radius_m, heading_deg: see ``same_place``.

    Returns:
        (...) bool, false wherever a pose is missing.
    """
    with np.errstate(invalid="ignore"):
        same = np.linalg.norm(positions[..., :2] - other_positions[..., :2], axis=-1) <= radius_m
        if heading_deg is not None:
            same &= np.abs(wrap_angle(yaws - other_yaws)) <= np.deg2rad(heading_deg)
    return np.asarray(same)


def positives_pairwise(
    positions: Floats, yaws: Floats, other_positions: Floats, other_yaws: Floats, pairing: Pairing
) -> Mask:
    """Whether each keyframe and the other one in its row are positives; arguments as in ``same_place_pairwise``."""
    if not pairing.together:
        return same_place_pairwise(
            positions, yaws, other_positions, other_yaws, pairing.positive_m, pairing.heading_deg
        )
    with np.errstate(invalid="ignore"):
        apart = np.linalg.norm(positions[..., :2] - other_positions[..., :2], axis=-1) / pairing.positive_m
        turned = np.abs(wrap_angle(yaws - other_yaws)) / np.deg2rad(pairing.heading_deg)
        return np.asarray(apart + turned < 1)


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
    near = positives_pairwise(positions[:, None], yaws[:, None], positions[None], yaws[None], pairing)
    far = ~same_place(positions, yaws, positions, yaws, pairing.negative_m, None)
    positive = posed & same_region & near
    np.fill_diagonal(positive, False)
    negative = posed & (~same_region | far)
    return positive, negative
