"""Keyframes by novelty, and the bounded number of views of a spot, against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vpr_kd_ros.errors import ConfigError
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.mapper import Mapper, MapperConfig
from vpr_kd_ros.place_map import PlaceMap
from vpr_kd_ros.preprocess import Preprocess
from vpr_kd_ros.student import Student, StudentMetadata

DIM = 8
IMAGE = np.zeros((8, 8, 3), dtype=np.uint8)
Floats = NDArray[np.float64]


class Preset:
    """A backend that describes every image by the vector it was last told, and counts."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.answer: Floats = np.eye(DIM)[0]
        self.count = 0

    def describe(self, batch: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return torch.from_numpy(self.answer).to(torch.float32).expand(len(batch), -1)


def make(**config: object) -> tuple[Mapper, Preset]:
    backend = Preset()
    metadata = StudentMetadata("preset", "none", DIM, Preprocess(8, 8), {}, None, "ab" * 32)
    place_map = PlaceMap(DIM, "ab" * 32, "map")
    return Mapper(Student(metadata, backend), place_map, MapperConfig(**config)), backend  # type: ignore[arg-type]


def unit(rng: np.random.Generator) -> Floats:
    row = rng.standard_normal(DIM)
    return np.asarray(row / np.linalg.norm(row))


def test_what_looks_new_is_a_keyframe_where_the_robot_stands() -> None:
    rng = np.random.default_rng(0)
    mapper, backend = make(min_distance_m=2.0, min_novelty=0.3)
    last: tuple[float, Floats] | None = None
    x, look = 0.0, unit(rng)
    added = 0
    for i in range(150):
        x += rng.uniform(0, 0.5)
        look = look + rng.normal(0, 0.15, DIM)
        look /= np.linalg.norm(look)
        backend.answer = 5.0 * look
        wanted = last is None or x - last[0] >= 2.0 or 1.0 - float(look @ last[1]) >= 0.3
        assert (mapper.observe(IMAGE, Pose.planar(x, 0, 0), i) is not None) == wanted
        if wanted:
            last, added = (x, look), added + 1
    by_distance, other = make(min_distance_m=2.0)
    assert added > 1.2 * x / 2.0
    # Without it, frames that are no keyframes are not described.
    for i in range(10):
        by_distance.observe(IMAGE, Pose.planar(0.1 * i, 0, 0), i)
    assert other.count == 1
    assert backend.count == 150


def test_views_of_a_spot_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    mapper, backend = make(min_distance_m=2.0, min_angle_rad=0.5, max_views=3, view_radius_m=1.0)
    kept: dict[int, tuple[float, float, Floats]] = {}
    # Ten drives along the same street, half of them the other way; every second a new session by its stamps.
    for drive in range(10):
        for step in range(6):
            x, yaw = 2.5 * step + rng.uniform(-0.2, 0.2), math.pi * (drive % 2) + rng.uniform(-0.1, 0.1)
            backend.answer = unit(rng)
            place_id = mapper.observe(IMAGE, Pose.planar(x, 0, yaw), 100 * (drive % 2) + step)
            assert place_id is not None
            kept[place_id] = (x, yaw, backend.answer.astype(np.float16).astype(np.float64))
            views = [
                i
                for i, (x2, yaw2, _) in kept.items()
                if abs(x2 - x) < 1.0 and abs(math.remainder(yaw2 - yaw, 2 * math.pi)) < 0.5
            ]
            if len(views) > 3:
                pairs = [(float(kept[i][2] @ kept[j][2]), i) for i in views for j in views if i < j]
                del kept[max(pairs)[1]]
            assert mapper.place_map.ids.tolist() == sorted(kept)
    assert len(kept) == 6 * 2 * 3
    assert mapper.replaced == 60 - 36


def test_the_new_view_always_stays_and_one_view_is_the_newest() -> None:
    mapper, backend = make(max_views=1)
    ids = []
    for i in range(4):
        backend.answer = np.eye(DIM)[i % 2]
        mapper.observe(IMAGE, Pose.planar(50.0, 0, 0), 10 * i)
        ids.append(mapper.observe(IMAGE, Pose.planar(0.01 * i, 0, 0), 10 * i + 1))
        assert ids[-1] in mapper.place_map.ids
    assert len(mapper.place_map) == 2


@pytest.mark.parametrize(
    ("key", "value"), [("min_novelty", 0.0), ("min_novelty", math.nan), ("max_views", 0), ("view_radius_m", -1.0)]
)
def test_bad_settings_are_named(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=key):
        MapperConfig(**{key: value})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="below min_distance_m"):
        MapperConfig(max_views=2, view_radius_m=2.0)
