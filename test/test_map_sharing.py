"""Maps that several processes use, approximate search, and maps of older versions."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from vpr_kd_ros import map_files
from vpr_kd_ros.errors import ConfigError, DataError
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.index import PlaceIndex
from vpr_kd_ros.map_lock import MapLock
from vpr_kd_ros.nodes.fixes import FixPoses
from vpr_kd_ros.place_map import PlaceMap

DIM = 24
STUDENT = "ab" * 32


def routes(count: int, seed: int = 0) -> NDArray[np.float16]:
    """Descriptors of a drive, each like the one before."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, DIM))
    for i in range(1, count):
        rows[i] = 0.9 * rows[i - 1] + 0.44 * rows[i]
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float16)


def save(path: Path, count: int = 5) -> PlaceMap:
    place_map = PlaceMap(DIM, STUDENT, "map")
    for i, row in enumerate(routes(count).astype(np.float32)):
        place_map.add(row / np.linalg.norm(row), Pose.planar(i, 0, 0), i, "drive")
    place_map.save(path)
    return place_map


def hold(path: Path, locked: Any, go_on: Any) -> None:
    with MapLock(path):
        locked.set()
        go_on.wait(60)


def test_a_second_process_cannot_write_and_readers_can(tmp_path: Path) -> None:
    place_map = save(tmp_path / "m")
    context = multiprocessing.get_context("spawn")
    locked, go_on = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path / "m", locked, go_on))
    other.start()
    assert locked.wait(60)
    with pytest.raises(DataError, match=f"process {other.pid} is writing this map"):
        place_map.save(tmp_path / "m")
    assert len(PlaceMap.load(tmp_path / "m")) == 5
    other.kill()
    other.join()
    # What the killed process left is no lock.
    assert (tmp_path / ".m.lock").exists()
    with MapLock(tmp_path / "m"), MapLock(tmp_path / "m"):
        place_map.save(tmp_path / "m")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_a_map_can_be_read_while_another_process_replaces_it(tmp_path: Path) -> None:
    save(tmp_path / "m")
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    other = context.Process(target=replace, args=(tmp_path / "m", stop))
    other.start()
    sizes = {len(PlaceMap.load(tmp_path / "m")) for _ in range(150)}
    stop.set()
    other.join()
    assert other.exitcode == 0
    assert sizes <= {5, 6, 7}


def replace(path: Path, stop: Any) -> None:
    while not stop.is_set():
        save(path, 6)
        save(path, 7)


def test_the_map_of_schema_1_and_of_float32_still_load(tmp_path: Path) -> None:
    place_map = save(tmp_path / "m", 12)
    query = place_map.descriptors[7]
    wanted = place_map.search(query, 5)
    tensors = safetensors.numpy.load_file(tmp_path / "m" / map_files.DESCRIPTORS)
    for kind, schema in ((np.float16, 1), (np.float32, 1), (np.float32, 2)):
        path = tmp_path / f"{np.dtype(kind).name}-{schema}"
        shutil.copytree(tmp_path / "m", path)
        changed = {**tensors, "descriptors": tensors["descriptors"].astype(kind)}
        safetensors.numpy.save_file(changed, path / map_files.DESCRIPTORS)
        info = json.loads((path / map_files.INFO).read_text())
        del info["checksum"]
        info["schema"] = schema
        if schema == 1:
            del info["memory_bytes"]
        info["files"] = {
            name: map_files.hashlib.sha256((path / name).read_bytes()).hexdigest() for name in info["files"]
        }
        (path / map_files.INFO).write_text(map_files._render({**info, "checksum": map_files._checksum(info)}))
        for found, expected in zip(PlaceMap.load(path, STUDENT).search(query, 5), wanted, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_the_manifest_announces_at_least_what_descriptors_and_pictures_take(tmp_path: Path) -> None:
    place_map = PlaceMap(DIM, STUDENT, "map")
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    for i in range(10):
        place_map.add(np.eye(DIM, dtype=np.float32)[i], Pose.planar(i, 0, 0), i, "drive", noise)
    place_map.save(tmp_path / "m")
    pictures = sum(len(place.jpeg or b"") for place in map_files.read_map(tmp_path / "m").places)
    announced = json.loads((tmp_path / "m" / "map.json").read_text())["memory_bytes"]
    assert pictures > 100_000
    assert pictures + 10 * 2 * DIM < announced < pictures + 10 * 2000


def test_approximate_search_gives_the_same_similarities_and_seldom_misses(tmp_path: Path) -> None:
    rows = routes(5000)
    ids = np.random.default_rng(1).permutation(20_000)[:5000]
    index, exact = PlaceIndex.build(ids, rows, "approximate"), PlaceIndex.build(ids, rows)
    assert index.approximate
    assert not exact.approximate
    asked = rows[::10].astype(np.float32) + 0.1 * np.random.default_rng(2).standard_normal((500, DIM)).astype(
        np.float32
    )
    found, similarities = index.search(asked, 3)
    products = rows.astype(np.float64) @ asked.T.astype(np.float64)
    row_of = {place_id: row for row, place_id in enumerate(ids.tolist())}
    for q in range(len(asked)):
        expected = [products[row_of[i], q] for i in found[q].tolist()]
        np.testing.assert_allclose(similarities[q], expected, atol=1e-5)
    best = ids[products.argmax(axis=0)]
    assert (found[:, 0] == best).mean() >= 0.99
    np.testing.assert_array_equal(exact.search(asked, 1)[0][:, 0], best)
    # It can be added to and removed from, and tells its descriptors.
    assert index.remove(ids[:100]) == 100
    assert not np.isin(index.search(asked, 10)[0], ids[:100]).any()
    index.add([99_999], rows[:1])
    assert index.search(rows[:1], 1)[0].item() == 99_999
    np.testing.assert_array_equal(index.descriptors(ids[[200, 4000]]), rows[[200, 4000]])
    with pytest.raises(ConfigError, match="did you mean 'exact'"):
        PlaceIndex.build(ids, rows, "exakt")


class Fix:
    """A ``sensor_msgs/NavSatFix``."""

    status = type("Status", (), {"status": 0})

    def __init__(self, latitude: float, longitude: float, altitude: float = float("nan")) -> None:
        self.latitude, self.longitude, self.altitude = latitude, longitude, altitude


def test_the_map_does_not_rise_when_the_altitude_comes() -> None:
    fixes = FixPoses()
    with pytest.raises(DataError, match="heading"):
        fixes.pose(Fix(48.0, 11.0))
    assert fixes.pose(Fix(48.0, 11.0001)).position[2] == pytest.approx(0.0, abs=0.01)
    assert fixes.pose(Fix(48.0, 11.0002, 512.0)).position[2] == pytest.approx(0.0, abs=0.01)
    assert fixes.origin == (48.0, 11.0, 512.0)
    assert fixes.pose(Fix(48.0, 11.0003, 515.0)).position[2] == pytest.approx(3.0, abs=0.01)
    # An altitude that was given stays, and so does the first fix's.
    given = FixPoses([48.0, 11.0, 500.0])
    with pytest.raises(DataError, match="heading"):
        given.pose(Fix(48.0, 11.0))
    assert given.pose(Fix(48.0, 11.0001, 512.0)).position[2] == pytest.approx(12.0, abs=0.01)
    first = FixPoses()
    with pytest.raises(DataError, match="heading"):
        first.pose(Fix(48.0, 11.0, 510.0))
    assert first.pose(Fix(48.0, 11.0001, 512.0)).position[2] == pytest.approx(2.0, abs=0.01)


def test_fixes_head_where_the_robot_drives() -> None:
    fixes = FixPoses([48.0, 11.0, 500.0])
    with pytest.raises(DataError, match="heading"):
        fixes.pose(Fix(48.0, 11.0))
    east = fixes.pose(Fix(48.0, 11.0001))
    # A degree of longitude at 48 degrees: 111.3 km x cos, on the ellipsoid 74.63 km.
    np.testing.assert_allclose(east.position, [7.463, 0.0, 0.0], atol=0.01)
    assert east.yaw == pytest.approx(0.0, abs=1e-4)
    assert fixes.pose(Fix(48.0001, 11.0001)).yaw == pytest.approx(np.pi / 2, abs=1e-4)
    # Noise at a standstill is no turn.
    assert fixes.pose(Fix(48.000101, 11.000101)).yaw == pytest.approx(np.pi / 2, abs=1e-4)
    with pytest.raises(ConfigError, match="nav_origin"):
        FixPoses([95.0, 0.0, 0.0])
