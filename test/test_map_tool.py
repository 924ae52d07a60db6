"""The map tool by the values that come out, and by the errors that name what is wrong."""

from __future__ import annotations

import csv
import io
import itertools
import math
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from support.tiny import picture, save_tiny_student
from vpr_kd_ros import map_tool
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.place_map import PlaceMap
from vpr_kd_ros.student import Student

DIM = 16
STUDENT = "ab" * 32


def save_map(
    path: Path, count: int, session: str, seed: int, student: str = STUDENT, frame: str = "map", step: float = 1.0
) -> PlaceMap:
    """Places on a line along x; the second id is missing."""
    rng = np.random.default_rng(seed)
    place_map = PlaceMap(DIM, student, frame)
    for i in range(count):
        row = rng.standard_normal(DIM)
        pose = Pose.planar(step * i, 3.0 * seed, 0.1 * i, z=0.5)
        row = (row / np.linalg.norm(row)).astype(np.float32)
        place_map.add(row, pose, 10**18 + 1000 * seed + 7 * i, session, picture(i) if i % 2 else None)
    place_map.remove([1])
    place_map.save(path)
    return place_map


def test_merge_keeps_every_place_and_finds_it(tmp_path: Path) -> None:
    maps = [save_map(tmp_path / name, 12, name, seed) for seed, name in enumerate(("monday", "tuesday"))]
    assert (
        map_tool.main(["merge", str(tmp_path / "monday"), str(tmp_path / "tuesday"), "--output", str(tmp_path / "m")])
        == 0
    )
    merged = PlaceMap.load(tmp_path / "m", STUDENT)
    assert merged.ids.tolist() == list(range(22))
    old = [(part, i) for part in maps for i in part.ids.tolist()]
    for new, (part, i) in enumerate(old):
        assert merged.session(new) == part.session(i)
        assert merged.stamp_ns(new) == part.stamp_ns(i)
        np.testing.assert_array_equal(merged.pose(new).position, part.pose(i).position)
        np.testing.assert_array_equal(merged.pose(new).quaternion, part.pose(i).quaternion)
        before, after = part.thumbnail(i), merged.thumbnail(new)
        assert (before is None) == (after is None)
        if before is not None:
            np.testing.assert_array_equal(after, before)
    np.testing.assert_array_equal(merged.descriptors, np.concatenate([part.descriptors for part in maps]))
    query = maps[1].descriptors[4]
    assert merged.search(query, 1)[0][0] == 11 + 4
    # The next place takes an id that no one has.
    assert merged.add(query / np.linalg.norm(query), Pose.planar(0, 0, 0), 0, "s") == 22


def test_merge_refuses_other_students_and_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_map(tmp_path / "a", 3, "s", 0)
    save_map(tmp_path / "b", 3, "s", 0, student="cd" * 32)
    save_map(tmp_path / "c", 3, "s", 0, frame="odom")
    for name, text in (("b", "two students"), ("c", "'odom'")):
        out = tmp_path / "out"
        assert map_tool.main(["merge", str(tmp_path / "a"), str(tmp_path / name), "--output", str(out)]) == 1
        said = capsys.readouterr().err
        assert f"{tmp_path / name}: " in said
        assert text in said
        assert not out.exists()


def test_prune_is_a_plain_loop(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    place_map = PlaceMap(DIM, STUDENT, "map")
    for i in range(80):
        row = rng.standard_normal(DIM)
        row = (row / np.linalg.norm(row)).astype(np.float32)
        place_map.add(row, Pose.planar(*rng.uniform(0, 10, 2), 0.0), i, f"s{i % 3}")
    place_map.save(tmp_path / "m")
    kept: list[int] = []
    for i in range(80):
        same = [j for j in kept if j % 3 == i % 3]
        here = place_map.pose(i).position
        if all(math.dist(here, place_map.pose(j).position) >= 2.0 for j in same):
            kept.append(i)
    assert 10 < len(kept) < 70
    small = tmp_path / "small"
    assert map_tool.main(["prune", str(tmp_path / "m"), "--min-distance", "2", "--output", str(small)]) == 0
    pruned = PlaceMap.load(small)
    assert pruned.ids.tolist() == kept
    np.testing.assert_array_equal(pruned.descriptors, place_map.descriptors[kept])
    assert len(PlaceMap.load(tmp_path / "m")) == 80
    both = ["--session", "s0", "--session", "s2", "--min-distance", "2", "--output", str(tmp_path / "one")]
    assert map_tool.main(["prune", str(tmp_path / "m"), *both]) == 0
    assert PlaceMap.load(tmp_path / "one").ids.tolist() == [i for i in kept if i % 3 == 1]


def test_prune_keeps_both_ways_of_a_street(tmp_path: Path) -> None:
    place_map = PlaceMap(DIM, STUDENT, "map")
    row = np.eye(DIM, dtype=np.float32)[0]
    out_and_back = [(2.0 * i, 0.0) for i in range(10)] + [(18.0 - 2.0 * i, math.pi) for i in range(10)]
    # A turn of less than 30 degrees shows the same view, about whichever sign of pi.
    again = [(5.0, math.radians(29.0)), (5.0, math.radians(31.0)), (12.1, math.radians(-151.0))]
    for i, (x, yaw) in enumerate(out_and_back + again):
        place_map.add(row, Pose.planar(x, 0.5 * (yaw == math.pi), yaw), i, "drive")
    place_map.save(tmp_path / "m")
    small = tmp_path / "small"
    assert map_tool.main(["prune", str(tmp_path / "m"), "--min-distance", "1.9", "--output", str(small)]) == 0
    assert PlaceMap.load(small).ids.tolist() == [*range(20), 21]


def test_exported_poses_are_the_poses(tmp_path: Path) -> None:
    place_map = save_map(tmp_path / "m", 9, "drive, with a comma", 2)
    for form in ("tum", "csv"):
        assert map_tool.main(["export", str(tmp_path / "m"), "--format", form, "--output", str(tmp_path / form)]) == 0
    lines = (tmp_path / "tum").read_text().splitlines()
    assert len(lines) == 8
    for line, i in zip(lines, place_map.ids.tolist(), strict=True):
        stamp, *numbers = line.split()
        assert int(stamp.replace(".", "")) == place_map.stamp_ns(i)
        np.testing.assert_allclose(
            [float(n) for n in numbers], [*place_map.pose(i).position, *place_map.pose(i).quaternion], atol=1e-9
        )
    stamps = [float(line.split()[0]) for line in lines]
    assert all(a <= b for a, b in itertools.pairwise(stamps))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "csv").read_text())))
    assert [int(row["id"]) for row in rows] == place_map.ids.tolist()
    assert {row["session"] for row in rows} == {"drive, with a comma"}
    for row in rows:
        pose = place_map.pose(int(row["id"]))
        assert [float(row[key]) for key in ("x", "y", "z")] == pose.position.tolist()
        assert [float(row[key]) for key in ("qx", "qy", "qz", "qw")] == pose.quaternion.tolist()


def test_the_picture_shows_the_places_where_they_are(tmp_path: Path) -> None:
    place_map = PlaceMap(DIM, STUDENT, "map")
    row = np.eye(DIM, dtype=np.float32)[0]
    for x, y in ((0.0, 0.0), (100.0, 0.0), (100.0, 50.0)):
        place_map.add(row, Pose.planar(x, y, 0), 0, "s")
    place_map.save(tmp_path / "m")
    assert map_tool.main(["picture", str(tmp_path / "m"), "--size", "400", "--output", str(tmp_path / "m.png")]) == 0
    image = cv2.imread(str(tmp_path / "m.png"))
    assert image.shape[1] == 400 + 60
    blue = np.array(map_tool.map_operations.PALETTE[0])[::-1]
    # 4 pixels a metre, a margin of 30; y is up.
    bottom = 200 + 60 - 1 - 30
    for x, y in ((30, bottom), (430, bottom), (430, bottom - 200)):
        np.testing.assert_array_equal(image[y, x], blue)
    assert (image[bottom - 200, 30] == 255).all()


def test_info_and_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny_student(tmp_path / "student.pt2")
    save_tiny_student(tmp_path / "other.pt2", seed=4)
    fingerprint = Student.load(tmp_path / "student.pt2").metadata.fingerprint
    save_map(tmp_path / "m", 6, "drive", 1, student=fingerprint, step=2.5)
    assert map_tool.main(["info", str(tmp_path / "m")]) == 0
    said = capsys.readouterr().out
    for fact in (fingerprint, "places      5, descriptors of 16", "12.5 x 0.0 x 0.0 m", "drive: 5 places"):
        assert fact in said
    assert map_tool.main(["verify", str(tmp_path / "m"), "--student", str(tmp_path / "student.pt2")]) == 0
    assert map_tool.main(["verify", str(tmp_path / "m"), "--student", str(tmp_path / "other.pt2")]) == 1
    assert "rebuild the map" in capsys.readouterr().err
    data = bytearray((tmp_path / "m" / "keyframes.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "m" / "keyframes.parquet").write_bytes(data)
    assert map_tool.main(["verify", str(tmp_path / "m")]) == 1
    assert "keyframes.parquet: damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["info", "{}/nowhere"], "there is no place map"),
        (["prune", "{}/m", "--output", "{}/new"], "--min-distance"),
        (["prune", "{}/m", "--min-distance", "-1", "--output", "{}/new"], "wants more than 0"),
        (["prune", "{}/m", "--session", "mondy", "--output", "{}/new"], "did you mean 'monday'?"),
        (["prune", "{}/m", "--session", "monday", "--output", "{}/m"], "exists; name another folder"),
        (["picture", "{}/m", "--size", "1", "--output", "{}/p.png"], "--size: 1"),
        (["picture", "{}/empty", "--output", "{}/p.png"], "the map is empty"),
        (["export", "{}/m", "--output", "{}/no/file"], "cannot be written"),
    ],
)
def test_errors_name_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    save_map(tmp_path / "m", 3, "monday", 0)
    PlaceMap(DIM, STUDENT, "map").save(tmp_path / "empty")
    assert map_tool.main([argument.format(tmp_path) for argument in arguments]) == 1
    said = capsys.readouterr().err
    assert said.startswith("map_tool: ")
    assert text in said


def test_it_is_a_command(tmp_path: Path) -> None:
    save_map(tmp_path / "m", 3, "monday", 0)
    command = [sys.executable, "-m", "vpr_kd_ros.map_tool", "info", str(tmp_path / "m")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert "monday: 2 places" in done.stdout
