"""What the localizer answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vpr_kd_ros.geometry import Floats, Pose


@dataclass(frozen=True)
class Candidates:
    """Retrieved places, best first.

    Attributes:
        place_ids: (k,) int64.
        similarities: (k,) float32, inner products of unit descriptors.
        probabilities: (k,) float64, each of being the right place; NaN where the student carries no calibration.
        positions: (k, 3) float64, metres in the map's frame.
        yaws: (k,) float64, radians.
    """

    place_ids: NDArray[np.int64]
    similarities: NDArray[np.float32]
    probabilities: Floats
    positions: Floats
    yaws: Floats

    def __len__(self) -> int:
        return len(self.place_ids)


@dataclass(frozen=True)
class Match:
    """What one image told.

    Attributes:
        stamp_ns: of the image, nanoseconds.
        accepted: whether the pose may be used.
        reason: why not; empty when accepted.
        pose: of the robot's base in the map's frame; None when not accepted.
        covariance: (6, 6) float64 in the order x, y, z, rotation about x, y, z (metres, radians); None with ``pose``.
        candidates: the retrieved places; none when the map is empty.
        place_id: the best candidate's, in mode ``belief`` the most probable place; None without one, or where its
            camera's map has none there.
        similarity: the best candidate's; NaN without candidates.
        probability: that this place is right; NaN without one or without a calibration.
        seconds: wall time of each step.
        camera: that took the image, where there are several; the ids of places are of this camera's map.
    """

    stamp_ns: int
    accepted: bool
    reason: str
    pose: Pose | None
    covariance: Floats | None
    candidates: Candidates
    place_id: int | None
    similarity: float
    probability: float
    seconds: dict[str, float]
    camera: str = ""
