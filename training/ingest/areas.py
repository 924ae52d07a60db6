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
    "name to [x min, y min, x max, y max], metres in the frame of the poses: keyframes in an area become a session "
    "of their own, OUT/AREA/NAME-AREA, of the region AREA; keep such areas for validation and test"
)
MARGIN_HELP = "keyframes outside an area but this near to it go into no session: what is tested on was not trained on"


@dataclass(frozen=True)
class Part:
    """A session of a drive.

    Attributes:
        name, region: of the session.
        folder: of the session, below the output folder.
        box: x min, y min, x max, y max of its area, metres; None for what lies in no area.
    """

    name: str
    region: str
    folder: str
    box: Sequence[float] | None = None


@dataclass(frozen=True)
class Areas:
    """Boxes that are cut out of every drive.

    Attributes:
        boxes: name to x min, y min, x max, y max, metres in the frame of the poses.
        margin_m: keyframes in no box but this near to one belong to no part.

    Raises:
        ConfigError: a name is none of a folder, a box has no extent, or the margin is negative.
    """

    boxes: Mapping[str, Sequence[float]]
    margin_m: float

    def __post_init__(self) -> None:
        if not self.margin_m >= 0:
            raise ConfigError(f"area_margin_m is {self.margin_m}; it must not be negative")
        for area, box in self.boxes.items():
            if not area.strip() or "/" in area or area.startswith("."):
                raise ConfigError(f"areas: {area!r} cannot be the name of a folder")
            if len(box) != 4 or not (box[0] < box[2] and box[1] < box[3]):
                raise ConfigError(f"areas: {area} is {box}; wants x min, y min, x max, y max")

    def parts(self, name: str, region: str) -> list[Part]:
        """A drive's sessions: ``NAME`` of what lies in no area, and ``AREA/NAME-AREA`` for each, of the region AREA."""
        cut = [Part(f"{name}-{area}", area, f"{area}/{name}-{area}", box) for area, box in self.boxes.items()]
        return [Part(name, region, name), *cut]

    def inside(self, part: Part, positions: Floats) -> NDArray[np.bool_]:
        """Which of (N, 3) positions in metres are the part's, (N,)."""
        if part.box is not None:
            return _within(positions, part.box, 0.0)
        near = [_within(positions, box, self.margin_m) for box in self.boxes.values()]
        return ~np.any(near, axis=0) if near else np.ones(len(positions), dtype=bool)


def _within(positions: Floats, box: Sequence[float], margin_m: float) -> NDArray[np.bool_]:
    x, y = positions[:, 0], positions[:, 1]
    across = (x >= box[0] - margin_m) & (x <= box[2] + margin_m)
    return np.asarray(across & (y >= box[1] - margin_m) & (y <= box[3] + margin_m))
