"""Place maps: search, round trips, damage, another student's map, and savers that are killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from support.killed_saver import make_map
from support.tiny import picture
from vpr_kd_ros import map_files
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.place_map import PlaceMap

DIM = 32
STUDENT = "ab" * 32
FILES = ("map.json", "descriptors.safetensors", "keyframes.parquet", "thumbnails.parquet")


def unit(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    rows = rng.standard_normal((count, DIM))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def pose(rng: np.random.Generator) -> Pose:
    return Pose(rng.uniform(-100, 100, 3), rng.standard_normal(4))


def filled(count: int = 40) -> tuple[PlaceMap, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    place_map, rows = PlaceMap(DIM, STUDENT, "map"), unit(rng, count)
    for i in range(count):
        image = picture(i, 90, 200) if i % 3 else None
        place_map.add(rows[i], pose(rng), 10**18 + i, f"drive-{i % 2}", image)
    return place_map, rows


def test_search_is_brute_force_and_float16_moves_it_little() -> None:
    place_map, rows = filled()
    asked = unit(np.random.default_rng(1), 20)
    for query in asked:
        ids, similarities = place_map.search(query, 5)
        rounded = rows.astype(np.float16).astype(np.float64) @ query
        np.testing.assert_array_equal(ids, np.argsort(rounded)[::-1][:5])
        # |rounding of x| <= 2^-11 |x| for normal numbers, and the vectors have length 1 (Cauchy-Schwarz).
        np.testing.assert_allclose(similarities, rows[ids].astype(np.float64) @ query, atol=2**-11 + 1e-5)


def test_remove_and_ids_are_never_used_twice(tmp_path: Path) -> None:
    place_map, rows = filled(6)
    assert place_map.remove([5, 1, 99]) == 2
    assert place_map.ids.tolist() == [0, 2, 3, 4]
    assert 1 not in place_map.search(rows[1], 6)[0]
    with pytest.raises(DataError, match="id 1"):
        place_map.pose(1)
    place_map.save(tmp_path / "m")
    again = PlaceMap.load(tmp_path / "m")
    assert again.add(rows[1], Pose.planar(0, 0, 0), 0, "s") == 6


def test_a_saved_map_is_the_same_map(tmp_path: Path) -> None:
    place_map, _ = filled()
    place_map.remove([3, 17])
    place_map.save(tmp_path / "maps" / "town")
    again = PlaceMap.load(tmp_path / "maps" / "town", STUDENT)
    assert (again.frame_id, again.student_fingerprint, len(again)) == ("map", STUDENT, 38)
    np.testing.assert_array_equal(again.ids, place_map.ids)
    np.testing.assert_array_equal(again.positions, place_map.positions)
    np.testing.assert_array_equal(again.descriptors, place_map.descriptors)
    assert again.spacing_m == place_map.spacing_m > 0
    for i in place_map.ids.tolist():
        np.testing.assert_array_equal(again.pose(i).quaternion, place_map.pose(i).quaternion)
        assert again.stamp_ns(i) == place_map.stamp_ns(i) == 10**18 + i
        assert again.session(i) == f"drive-{i % 2}"
        before, after = place_map.thumbnail(i), again.thumbnail(i)
        if i % 3 == 0:
            assert before is None
            assert after is None
        else:
            assert before is not None
            assert before.shape == (72, 160, 3)
            np.testing.assert_array_equal(after, before)
            # A JPEG, but of the same picture and in RGB: the mean colours agree.
            np.testing.assert_allclose(before.mean((0, 1)), picture(i, 90, 200).mean((0, 1)), atol=3)
    for query in unit(np.random.default_rng(2), 5):
        for found, wanted in zip(again.search(query, 7), place_map.search(query, 7), strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_an_empty_map_is_a_map(tmp_path: Path) -> None:
    PlaceMap(DIM, STUDENT, "map").save(tmp_path / "m")
    again = PlaceMap.load(tmp_path / "m", STUDENT)
    assert (len(again), again.positions.shape, again.spacing_m) == (0, (0, 3), 0.0)
    assert len(again.search(unit(np.random.default_rng(3), 1)[0], 4)[0]) == 0


def test_spacing_is_the_median_step_within_sessions() -> None:
    place_map, rows = PlaceMap(DIM, STUDENT, "map"), unit(np.random.default_rng(4), 8)
    for i, (x, session) in enumerate([(0, "a"), (100, "b"), (2, "a"), (103, "b"), (6, "a"), (104, "b")]):
        place_map.add(rows[i], Pose.planar(x, 0, 0), i, session)
    assert place_map.spacing_m == np.median([2, 4, 3, 1])
    place_map.remove([2])
    assert place_map.spacing_m == np.median([6, 3, 1])


def test_what_no_map_should_hold_is_refused() -> None:
    place_map, rows = PlaceMap(DIM, STUDENT, "map"), unit(np.random.default_rng(5), 1)
    nowhere = Pose(np.array([np.nan, 0, 0]), np.array([0.0, 0, 0, 1]))
    here = Pose.planar(0, 0, 0)
    for row, at in ((rows[0] * 2, here), (rows[0] * np.nan, here), (rows[0][:-1], here), (rows[0], nowhere)):
        with pytest.raises(DataError, match="place map"):
            place_map.add(row, at, 0, "s")
    with pytest.raises(DataError, match="picture"):
        place_map.add(rows[0], here, 0, "s", np.zeros((4, 4), dtype=np.uint8))
    assert len(place_map) == 0


def test_another_students_map_is_refused_with_the_mend(tmp_path: Path) -> None:
    filled(3)[0].save(tmp_path / "m")
    with pytest.raises(DataError) as caught:
        PlaceMap.load(tmp_path / "m", "cd" * 32)
    for part in ("abababababab", "cdcdcdcdcdcd", "rebuild the map", str(tmp_path / "m")):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_a_short_file_and_a_missing_file_are_named(tmp_path: Path, name: str) -> None:
    filled(5)[0].save(tmp_path / "m")
    file = tmp_path / "m" / name
    whole = file.read_bytes()
    rng = np.random.default_rng(6)
    for position in {0, len(whole) - 1, *rng.integers(0, len(whole), 30).tolist()}:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=name):
            PlaceMap.load(tmp_path / "m")
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(DataError, match=name):
            PlaceMap.load(tmp_path / "m")
    file.unlink()
    with pytest.raises(DataError, match=name):
        PlaceMap.load(tmp_path / "m")
    file.write_bytes(whole)
    assert len(PlaceMap.load(tmp_path / "m")) == 5


def test_a_newer_schema_asks_for_an_update(tmp_path: Path) -> None:
    filled(2)[0].save(tmp_path / "m")
    info = json.loads((tmp_path / "m" / "map.json").read_text())
    (tmp_path / "m" / "map.json").write_text(json.dumps({"schema": map_files.SCHEMA + 1, "novelty": info}))
    with pytest.raises(DataError, match="update vpr_kd_ros"):
        PlaceMap.load(tmp_path / "m")


def test_files_of_two_maps_do_not_mix(tmp_path: Path) -> None:
    filled(4)[0].save(tmp_path / "a")
    filled(5)[0].save(tmp_path / "b")
    shutil.copy(tmp_path / "b" / "keyframes.parquet", tmp_path / "a")
    with pytest.raises(DataError, match=r"keyframes\.parquet"):
        PlaceMap.load(tmp_path / "a")


def test_nothing_but_a_map_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("kept")
    (tmp_path / "empty").mkdir()
    place_map = filled(2)[0]
    for name in ("home", "file"):
        with pytest.raises(DataError, match="not a place map"):
            place_map.save(tmp_path / name)
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / "file").read_text() == "kept"
    place_map.save(tmp_path / "empty")
    place_map.save(tmp_path / "empty")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "file", "home"]
    with pytest.raises(DataError, match="there is no place map"):
        PlaceMap.load(tmp_path / "nothing")
    with pytest.raises(DataError, match="not a place map"):
        PlaceMap.load(tmp_path / "home")


def test_searching_and_saving_while_another_thread_adds_and_removes(tmp_path: Path) -> None:
    place_map, rows = filled(10)
    more = unit(np.random.default_rng(7), 600)
    errors: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                found = place_map.neighbours(rows[4], 8)
                assert found.ids[0] == 4
                assert len(found.poses) == len(found.ids) == 8
                assert len(place_map.positions) >= 10
        except BaseException as error:
            errors.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for i, row in enumerate(more):
        added = place_map.add(row, Pose.planar(i, 0, 0), i, "live")
        if i % 3 == 0:
            place_map.remove([added])
        if i % 200 == 0:
            place_map.save(tmp_path / "m")
    done.set()
    for reader in readers:
        reader.join()
    assert not errors
    assert len(place_map) == 410


class Saver:
    """The process that lets itself be killed while it saves to ``path``."""

    def __init__(self, path: Path) -> None:
        here = Path(__file__).parent
        environment = {**os.environ, "PYTHONPATH": f"{here.parent}:{here}", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "support.killed_saver", str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.read() == "ready"

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, command: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(10) == 0


@pytest.fixture
def saver(tmp_path: Path) -> Iterator[Saver]:
    process = Saver(tmp_path / "m")
    yield process
    process.close()


def whole_map(path: Path) -> int:
    """Number of places of the map, after checking that all of it is of one save."""
    place_map = PlaceMap.load(path, "f" * 64)
    count = len(place_map)
    assert count in (5, 6)
    assert (place_map.positions[:, 0] == count).all()
    for i in place_map.ids.tolist():
        thumbnail = place_map.thumbnail(i)
        assert thumbnail is not None
        np.testing.assert_array_equal(thumbnail, np.full((20, 30, 3), count))
    return count


def test_a_saver_killed_at_any_line_leaves_a_whole_map(tmp_path: Path, saver: Saver) -> None:
    make_map(5).save(tmp_path / "old")
    seen: list[int] = []
    recovered = 0
    answer, line = "killed", 0
    while answer == "killed":
        line += 1
        for leftover in (tmp_path / "m", tmp_path / ".m.old"):
            shutil.rmtree(leftover, ignore_errors=True)
        # ``.m.new`` stays: the next saver has to cope with what the killed one left.
        shutil.copytree(tmp_path / "old", tmp_path / "m")
        answer = saver.ask(f"line {line}")
        recovered += not (tmp_path / "m").exists()
        seen.append(whole_map(tmp_path / "m"))
    assert line > 30
    assert recovered >= 1  # the moment between the two moves was among them
    assert seen == sorted(seen)
    assert set(seen) == {5, 6}
    assert {p.name for p in tmp_path.iterdir()} == {"m", "old"}


def test_savers_killed_at_random_moments_one_after_another(tmp_path: Path, saver: Saver) -> None:
    make_map(5).save(tmp_path / "m")
    rng = np.random.default_rng(8)
    for _ in range(15):
        assert saver.ask(f"time {rng.uniform(1, 300):.1f}") == "killed"
        whole_map(tmp_path / "m")
