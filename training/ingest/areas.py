"""One drive cut into several sessions by where it went: areas that are kept for validation and test.

As PointNetVLAD cuts regions out of its traverses (Uy and Lee, CVPR 2018, section 5.1): what is measured on was never
trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from training.ingest.config import IngestConfig
from training.ingest.select import Selection
from vpr_kd_ros.geometry import Floats

ELSEWHERE = "in another area"


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
    box: tuple[float, float, float, float] | None = None


def parts_of(name: str, region: str, config: IngestConfig) -> list[Part]:
    """The drive's sessions: what lies in no area, ``NAME``, and for each area ``AREA/NAME-AREA`` of the region AREA."""
    areas = [
        Part(f"{name}-{area}", area, f"{area}/{name}-{area}", (box[0], box[1], box[2], box[3]))
        for area, box in (config.areas or {}).items()
    ]
    return [Part(name, region, name), *areas]


def restrict(selection: Selection, part: Part, areas: Mapping[str, list[float]], margin_m: float) -> Selection:
    """The keyframes of the part; the others count as dropped. What is near an area but not in it belongs to no part."""
    if not areas:
        return selection
    if part.box is not None:
        inside = _within(selection.positions, part.box, 0.0)
    else:
        boxes = [(box[0], box[1], box[2], box[3]) for box in areas.values()]
        inside = ~np.any([_within(selection.positions, box, margin_m) for box in boxes], axis=0)
    return replace(
        selection,
        images=selection.images[inside],
        clouds=selection.clouds[inside],
        stamps_ns=selection.stamps_ns[inside],
        cloud_stamps_ns=selection.cloud_stamps_ns[inside],
        positions=selection.positions[inside],
        quaternions=selection.quaternions[inside],
        drops=selection.drops + type(selection.drops)({ELSEWHERE: int((~inside).sum())}),
    )


def _within(positions: Floats, box: tuple[float, float, float, float], margin_m: float) -> NDArray[np.bool_]:
    x, y = positions[:, 0], positions[:, 1]
    across = (x >= box[0] - margin_m) & (x <= box[2] + margin_m)
    return np.asarray(across & (y >= box[1] - margin_m) & (y <= box[3] + margin_m))
