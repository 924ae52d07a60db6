"""What can be done with a saved map besides adding to it: merge, prune, export, draw.

Each function is a value in, a value out; reading and writing maps is ``vpr_kd_ros.map_files``, which verifies them.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from vpr_kd_ros.errors import DataError, did_you_mean
from vpr_kd_ros.geometry import Floats, same_view
from vpr_kd_ros.map_files import MapContent

MARGIN_PIXELS = 30
WHITE, GREY, BLACK = (255, 255, 255), (190, 190, 190), (0, 0, 0)
PALETTE = ((31, 119, 180), (214, 90, 20), (44, 140, 44), (150, 60, 160), (180, 30, 40), (20, 150, 150))
"""RGB of the sessions, in turn."""
CSV_COLUMNS = ("id", "stamp_ns", "session", "x", "y", "z", "qx", "qy", "qz", "qw")


def describe(content: MapContent) -> str:
    """A map in words: student, frame, extent and sessions, one fact a line."""
    lines = [
        f"student     {content.student_fingerprint}",
        f"frame       {content.frame_id}",
        f"places      {len(content.ids)}, descriptors of {content.descriptors.shape[1]}",
        f"pictures    {sum(place.jpeg is not None for place in content.places)}",
        f"memory      {content.memory_bytes / 1e6:.1f} MB once it is loaded",
    ]
    if content.places:
        low, high = positions(content).min(axis=0), positions(content).max(axis=0)
        lines.append("extent      " + " x ".join(f"{size:.1f}" for size in high - low) + " m")
    lines += [f"session     {name}: {count} places" for name, count in _sessions(content).items()]
    return "\n".join(lines)


def positions(content: MapContent) -> Floats:
    """(N, 3) float64, metres."""
    return np.array([place.pose.position for place in content.places], dtype=np.float64).reshape(-1, 3)


def merge(maps: dict[str, MapContent]) -> MapContent:
    """One map with the places of all, in order, under new ids from 0. Sessions of equal names become one.

    Args:
        maps: by the name that errors call them.

    Raises:
        DataError: there is no map, or the maps' students or frames differ.
    """
    if not maps:
        raise DataError("merge: there is no map")
    (first_name, first), *others = maps.items()
    for name, other in others:
        if other.student_fingerprint != first.student_fingerprint:
            raise DataError(
                f"{name}: was made with the student {other.student_fingerprint[:12]}, {first_name} with "
                f"{first.student_fingerprint[:12]}, and descriptors of two students do not compare; rebuild one of them"
            )
        if other.frame_id != first.frame_id:
            raise DataError(
                f"{name}: its poses are in {other.frame_id!r}, those of {first_name} in {first.frame_id!r}; map both "
                f"drives in one frame"
            )
    places = [place for content in maps.values() for place in content.places]
    return replace(
        first,
        next_id=len(places),
        ids=np.arange(len(places), dtype=np.int64),
        descriptors=np.concatenate([content.descriptors for content in maps.values()]),
        places=places,
    )


def prune_near(content: MapContent, min_distance_m: float) -> MapContent:
    """Without the places whose view one shows that stays and was added before it in the same session.

    It is nearer than ``min_distance_m`` to them and heads their way, see ``geometry.same_view``: of a street that was
    driven both ways, both views stay.

    Raises:
        DataError: the distance is not positive.
    """
    if not min_distance_m > 0:
        raise DataError(f"prune: a distance of {min_distance_m} m, wants more than 0")
    at = positions(content)
    quaternions = np.array([place.pose.quaternion for place in content.places], dtype=np.float64).reshape(-1, 4)
    stays: dict[str, list[int]] = {}
    for row, place in enumerate(content.places):
        kept = stays.setdefault(place.session, [])
        if not same_view(at[kept], quaternions[kept], place.pose, min_distance_m).any():
            kept.append(row)
    return _rows(content, sorted(row for kept in stays.values() for row in kept))


def prune_sessions(content: MapContent, sessions: Sequence[str]) -> MapContent:
    """Without the places of these sessions.

    Raises:
        DataError: the map has no session of a name.
    """
    known = _sessions(content)
    for name in sessions:
        if name not in known:
            raise DataError(f"prune: the map has no session {name!r}{did_you_mean(name, known)}; it has {list(known)}")
    return _rows(content, [row for row, place in enumerate(content.places) if place.session not in sessions])


def to_tum(content: MapContent) -> str:
    """Poses in the format of the TUM tools: ``seconds x y z qx qy qz qw`` a line, by time."""
    lines = []
    for place in sorted(content.places, key=lambda place: place.stamp_ns):
        seconds, nanoseconds = divmod(place.stamp_ns, 10**9)
        numbers = [*place.pose.position.tolist(), *place.pose.quaternion.tolist()]
        lines.append(f"{seconds}.{nanoseconds:09d} " + " ".join(f"{number:.9f}" for number in numbers))
    return "".join(f"{line}\n" for line in lines)


def to_csv(content: MapContent) -> str:
    """Every place's id, stamp, session and pose under a header, in the order of the ids."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for place_id, place in zip(content.ids.tolist(), content.places, strict=True):
        pose = [*place.pose.position.tolist(), *place.pose.quaternion.tolist()]
        writer.writerow([place_id, place.stamp_ns, place.session, *pose])
    return text.getvalue()


def draw(content: MapContent, size_pixels: int = 1000) -> NDArray[np.uint8]:
    """The places from above, x to the right and y up, with a colour and a line of the legend for each session.

    Returns:
        RGB, (H, W, 3) uint8; the longer side of the route takes ``size_pixels`` without its margins.

    Raises:
        DataError: the map is empty.
    """
    if not content.places:
        raise DataError("picture: the map is empty")
    at = positions(content)[:, :2]
    low, extent = at.min(axis=0), np.ptp(at, axis=0)
    scale = size_pixels / max(float(extent.max()), 1.0)
    sessions = list(_sessions(content))
    width, height = (np.ceil(extent * scale).astype(int) + 2 * MARGIN_PIXELS).tolist()
    width = max(width, size_pixels // 3)
    image = np.full((height + 18 * len(sessions) + 30, width, 3), WHITE, dtype=np.uint8)
    pixels = np.round((at - low) * scale).astype(int) + MARGIN_PIXELS
    pixels[:, 1] = height - 1 - pixels[:, 1]
    for row, place in enumerate(content.places):
        colour = PALETTE[sessions.index(place.session) % len(PALETTE)]
        cv2.circle(image, pixels[row].tolist(), 3, colour, cv2.FILLED, cv2.LINE_AA)
    for line, name in enumerate(sessions):
        spot = (10, height + 18 * line + 8)
        cv2.circle(image, (spot[0] + 4, spot[1] - 5), 4, PALETTE[line % len(PALETTE)], cv2.FILLED, cv2.LINE_AA)
        cv2.putText(image, name, (spot[0] + 16, spot[1]), cv2.FONT_HERSHEY_SIMPLEX, 0.45, BLACK, 1, cv2.LINE_AA)
    # A bar of a round length, at most a third of the picture.
    metres = 10.0 ** np.floor(np.log10(max(width / 3 / scale, 1e-3)))
    base = image.shape[0] - 10
    cv2.line(image, (10, base), (10 + round(metres * scale), base), GREY, 3)
    label = (16 + round(metres * scale), base + 4)
    cv2.putText(image, f"{metres:g} m", label, cv2.FONT_HERSHEY_SIMPLEX, 0.45, BLACK, 1, cv2.LINE_AA)
    return image


def _sessions(content: MapContent) -> Counter[str]:
    """Number of places of each session, in order of appearance."""
    return Counter(place.session for place in content.places)


def _rows(content: MapContent, rows: list[int]) -> MapContent:
    """The map with these rows only; ids stay, so none is used twice."""
    keep = np.array(rows, dtype=np.int64)
    return replace(
        content,
        ids=content.ids[keep],
        descriptors=content.descriptors[keep],
        places=[content.places[row] for row in rows],
    )
