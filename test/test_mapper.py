"""Keyframe selection against a plain loop, and time that jumps back."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from support.tiny import picture
from vpr_kd_ros.errors import ConfigError, DataError
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.mapper import Mapper, MapperConfig
from vpr_kd_ros.place_map import PlaceMap
from vpr_kd_ros.student import Student


@pytest.fixture(scope="module")
def student(tiny_student: Path) -> Student:
    return Student.load(tiny_student)


def empty_map(student: Student) -> PlaceMap:
    return PlaceMap(student.metadata.descriptor_dim, student.metadata.fingerprint, "map")


def test_keyframes_are_those_of_a_plain_loop(student: Student) -> None:
    rng = np.random.default_rng(0)
    count = 300
    positions = np.cumsum(rng.normal(0, 0.4, (count, 3)), axis=0)
    rotations = Rotation.from_rotvec(np.cumsum(rng.normal(0, 0.05, (count, 3)), axis=0))
    # Every other quaternion with the other sign: the same rotation.
    quaternions = rotations.as_quat() * np.where(np.arange(count) % 2, 1, -1)[:, None]
    wanted = [0]
    for i in range(1, count):
        last = wanted[-1]
        moved = math.dist(positions[i], positions[last])
        turned = (rotations[i] * rotations[last].inv()).magnitude()
        if moved >= 2.0 or turned >= 0.3:
            wanted.append(i)
    place_map = empty_map(student)
    mapper = Mapper(student, place_map, MapperConfig(min_distance_m=2.0, min_angle_rad=0.3, session="walk"))
    image = picture(0)
    ids = [mapper.observe(image, Pose(positions[i], quaternions[i]), 10 * i) for i in range(count)]
    kept = [i for i, place_id in enumerate(ids) if place_id is not None]
    assert kept == wanted
    assert 20 < len(kept) < 200
    assert [place_map.stamp_ns(i) for i in place_map.ids.tolist()] == [10 * i for i in wanted]
    np.testing.assert_array_equal(place_map.positions, positions[wanted])
    assert {place_map.session(i) for i in place_map.ids.tolist()} == {"walk"}
    np.testing.assert_allclose(place_map.search(student.describe([image])[0], 1)[1], 1.0, atol=2e-3)
    assert place_map.thumbnail(0) is not None


def test_time_that_jumps_back_begins_a_session(student: Student) -> None:
    place_map = empty_map(student)
    mapper = Mapper(student, place_map, MapperConfig(session="drive"))
    here = Pose.planar(0, 0, 0)
    assert mapper.observe(picture(0), here, 100) == 0
    assert mapper.observe(picture(0), here, 100) is None
    assert mapper.observe(picture(0), here, 99) == 1
    assert mapper.observe(picture(0), here, 101) is None
    assert mapper.observe(picture(0), Pose.planar(5, 0, 0), 200) == 2
    assert mapper.observe(picture(0), here, 5) == 3
    assert [place_map.session(i) for i in range(4)] == ["drive", "drive-2", "drive-2", "drive-3"]


def test_a_frame_that_cannot_be_mapped_is_refused_and_the_next_one_is_not(student: Student) -> None:
    place_map = empty_map(student)
    mapper = Mapper(student, place_map, MapperConfig())
    mapper.observe(picture(0), Pose.planar(0, 0, 0), 0)
    with pytest.raises(DataError, match="pose"):
        mapper.observe(picture(1), Pose.planar(math.nan, 0, 0), 1)
    with pytest.raises(DataError, match="RGB"):
        mapper.observe(np.zeros((3, 3), dtype=np.uint8), Pose.planar(9, 0, 0), 2)
    assert mapper.observe(picture(1), Pose.planar(9, 0, 0), 3) == 1


@pytest.mark.parametrize(
    ("key", "value"), [("min_distance_m", 0.0), ("min_distance_m", math.nan), ("min_angle_rad", 4.0), ("session", "")]
)
def test_configuration_is_checked(key: str, value: float | str) -> None:
    with pytest.raises(ConfigError, match=key):
        MapperConfig(**{key: value})  # type: ignore[arg-type]
