"""One drive cut into several sessions by where it went: areas that are kept for validation and test.

As PointNetVLAD cuts regions out of its traverses (Uy and Lee, CVPR 2018, section 5.1): what is measured on was never
trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vpr_kd_ros.errors import ConfigError
from vpr_kd_ros.geometry import Floats

ELSEWHERE = "in another area"
BOXES_HELP = (
    "name to [x min, y min, x max, y max], metres in the frame of the poses, and four more numbers for each further "
    "box of the area: keyframes in an area become a session of their own, OUT/AREA/NAME-AREA, of the region AREA; keep "
    "such areas for validation and test"
)
MARGIN_HELP = "keyframes outside an area but this near to it go into no session: what is tested on was not trained on"


Box = Sequence[float]
"""x min, y min, x max, y max, metres in the frame of the poses."""


@dataclass(frozen=True)
class Part:
    """A session of a drive.

    Attributes:
        name, region: of the session.
        folder: of the session, below the output folder.
        boxes: its area, x min, y min, x max, y max each, metres; none for what lies in no area.
    """

    name: str
    region: str
    folder: str
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Areas:
    """What is cut out of every drive.

    Attributes:
        corners: name to the numbers of its boxes, one box after the other.
        margin_m: keyframes in no box but this near to one belong to no part.

    Raises:
        ConfigError: a name is none of a folder, a box has no extent, or the margin is negative.
    """

    corners: Mapping[str, Sequence[float]]
    margin_m: float

    def __post_init__(self) -> None:
        if not self.margin_m >= 0:
            raise ConfigError(f"area_margin_m is {self.margin_m}; it must not be negative")
        for area, corners in self.corners.items():
            if not area.strip() or "/" in area or area.startswith("."):
                raise ConfigError(f"areas: {area!r} cannot be the name of a folder")
            boxes = _boxes(corners)
            if not boxes or not all(len(box) == 4 and box[0] < box[2] and box[1] < box[3] for box in boxes):
                raise ConfigError(f"areas: {area} is {corners}; wants x min, y min, x max, y max of each box")

    def parts(self, name: str, region: str) -> list[Part]:
        """A drive's sessions: ``NAME`` of what lies in no area, and ``AREA/NAME-AREA`` for each, of the region AREA."""
        cut = [
            Part(f"{name}-{area}", area, f"{area}/{name}-{area}", _boxes(corners))
            for area, corners in self.corners.items()
        ]
        return [Part(name, region, name), *cut]

    def inside(self, part: Part, positions: Floats) -> NDArray[np.bool_]:
        """Which of (N, 3) positions in metres are the part's, (N,)."""
        if part.boxes:
            return _within(positions, part.boxes, 0.0)
        return ~_within(positions, [box for corners in self.corners.values() for box in _boxes(corners)], self.margin_m)


def _boxes(corners: Sequence[float]) -> tuple[Box, ...]:
    return tuple(corners[i : i + 4] for i in range(0, len(corners), 4))


def _within(positions: Floats, boxes: Sequence[Box], margin_m: float) -> NDArray[np.bool_]:
    """Which positions lie in one of the boxes, or within the margin around it."""
    inside = np.zeros(len(positions), dtype=bool)
    for box in boxes:
        low, high = np.array(box[:2]) - margin_m, np.array(box[2:]) + margin_m
        inside |= ((positions[:, :2] >= low) & (positions[:, :2] <= high)).all(axis=1)
    return inside
