"""A map of pictures along a line for the localizer's tests, and the images that its camera sends."""

from __future__ import annotations

from pathlib import Path

from sensor_msgs.msg import Image

from support.tiny import picture
from vpr_kd_ros.conversions import image_to_message
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.place_map import PlaceMap
from vpr_kd_ros.student import Student

START_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000
SIMILAR = 0.999


def pose_at(index: float, offset_m: float = 0.0) -> Pose:
    """Along a line, 5 m per picture, turning slowly."""
    return Pose.planar(5.0 * index + offset_m, 2.0, 0.1 * index)


def save_town(path: Path, student: Path, places: int = 8, offset_m: float = 0.0) -> None:
    """Write a map of the pictures 0, 1, ..., each at its pose."""
    tiny = Student.load(student)
    place_map = PlaceMap(tiny.metadata.descriptor_dim, tiny.metadata.fingerprint, "map")
    for index in range(places):
        place_map.add(tiny.describe([picture(index)])[0], pose_at(index, offset_m), START_NS + index, "drive")
    place_map.save(path)


def image_of(index: int, seconds: float) -> Image:
    """The picture of a place."""
    return image_to_message(picture(index), START_NS + int(seconds * SECOND_NS), "camera")
