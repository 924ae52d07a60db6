"""Where a map is saved: behind links, on mount points and full disks, and after a save that was killed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vpr_kd_ros import map_tool
from vpr_kd_ros.errors import ConfigError, DataError
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.map_files import claim_map, find_map, maps_in
from vpr_kd_ros.map_lock import MapLock
from vpr_kd_ros.nodes.cameras import map_folders
from vpr_kd_ros.place_map import PlaceMap

DIM = 8
STUDENT = "ab" * 32


def add(place_map: PlaceMap, count: int) -> PlaceMap:
    """With so many places more."""
    for i in range(count):
        place_map.add(np.eye(DIM, dtype=np.float32)[i % DIM], Pose.planar(i, 0, 0), i, "drive")
    return place_map


def new_map(count: int) -> PlaceMap:
    return add(PlaceMap(DIM, STUDENT, "map"), count)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(path: Path) -> None:
    """Write a file until the disk is full."""
    with path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A link ``current`` to the map ``data/v3`` of 3 places."""
    new_map(3).save(tmp_path / "data" / "v3")
    (tmp_path / "current").symlink_to("data/v3")
    return tmp_path / "current"


@pytest.fixture
def bound_folder(tmp_path: Path) -> Iterator[Path]:
    """A mount point on the file system of its parent, as containers have them; skips where none can be made."""
    folder, source = tmp_path / "bound", tmp_path / "source"
    for made in (folder, source):
        made.mkdir()
    try:
        done = subprocess.run(["mount", "--bind", source, folder], capture_output=True, text=True)
        problem = done.stderr.strip()
    except OSError as error:
        problem = str(error)
    if problem:
        pytest.skip(f"a folder cannot be mounted here: {problem}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def killed_between_the_moves(path: Path) -> None:
    """Leave a map as a save does that is killed between its two moves."""
    path.rename(path.with_name(f".{path.name}.old"))


def test_every_save_through_a_link_replaces_what_it_points_to(tmp_path: Path, linked: Path) -> None:
    place_map = PlaceMap.load(linked, STUDENT)
    for count in (4, 5, 6):
        add(place_map, 1).save(linked)
        assert linked.is_symlink()
        assert len(PlaceMap.load(linked)) == len(PlaceMap.load(tmp_path / "data" / "v3")) == count
    assert names(tmp_path) == ["current", "data"]
    assert names(tmp_path / "data") == ["v3"]
    # The map that it points to need not be there yet.
    (tmp_path / "next").symlink_to("data/v4")
    place_map.save(tmp_path / "next")
    assert len(PlaceMap.load(tmp_path / "data" / "v4")) == 6


def test_a_link_and_what_it_points_to_have_one_lock(tmp_path: Path, linked: Path) -> None:
    with MapLock(linked):
        assert names(tmp_path / "data") == [".v3.lock", "v3"]
        assert names(tmp_path) == ["current", "data"]


def test_a_link_that_an_earlier_version_moved_aside_stops_no_save(tmp_path: Path) -> None:
    new_map(3).save(tmp_path / "data" / "v3")
    new_map(4).save(tmp_path / "current")
    (tmp_path / ".current.old").symlink_to("data/v3")
    new_map(5).save(tmp_path / "current")
    assert len(PlaceMap.load(tmp_path / "current")) == 5
    assert names(tmp_path) == ["current", "data"]
    assert len(PlaceMap.load(tmp_path / "data" / "v3")) == 3


@pytest.mark.parametrize("fixture", ["small_disk", "bound_folder"])
def test_a_mount_point_is_no_map_and_the_error_says_what_is(fixture: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(fixture)
    with pytest.raises(DataError, match=f"{folder}: is a mount point, .* name a folder in it: {folder}/map"):
        new_map(3).save(folder)
    assert names(folder.parent) == sorted({folder.name, "source"} & set(names(folder.parent)))
    new_map(3).save(folder / "map")
    new_map(4).save(folder / "map")
    assert len(PlaceMap.load(folder / "map")) == 4


def test_on_a_full_disk_the_old_map_stays_and_the_next_save_has_the_room(small_disk: Path) -> None:
    path, place_map = small_disk / "m", new_map(3)
    place_map.save(path)
    rest = small_disk / "rest"
    with pytest.raises(OSError, match="No space left"):
        fill(rest)
    for _ in range(2):
        with pytest.raises(DataError, match=f"{path}: the map cannot be written: .*No space left"):
            add(place_map, 1).save(path)
        assert ".m.new" not in names(small_disk)
    assert len(PlaceMap.load(path)) == 3
    rest.unlink()
    place_map.save(path)
    assert len(PlaceMap.load(path)) == 5
    assert names(small_disk) == ["m"]


@pytest.mark.parametrize("emptied", [False, True])
def test_the_map_of_a_killed_save_is_found_and_put_back(tmp_path: Path, emptied: bool) -> None:
    path = tmp_path / "m"
    new_map(3).save(path)
    killed_between_the_moves(path)
    if emptied:
        path.mkdir()
    assert find_map(path) == tmp_path / ".m.old"
    assert len(PlaceMap.load(path)) == 3
    with claim_map(path):
        assert find_map(path) == path
        assert names(tmp_path) == [".m.lock", "m"]
    assert len(PlaceMap.load(path)) == 3


def test_what_is_no_map_is_not_claimed(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    assert find_map(tmp_path / "home") is None
    with pytest.raises(DataError, match="exists and is not a place map"):
        claim_map(tmp_path / "home")
    assert names(tmp_path) == ["home"], "no lock is left"
    with pytest.raises(DataError, match="the map cannot be written"):
        claim_map(tmp_path / "home" / "thesis.tex" / "map")


def test_maps_of_killed_saves_count_where_cameras_and_the_map_tool_look(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    town = tmp_path / "town"
    for name in ("front", "rear"):
        new_map(3).save(town / name)
    killed_between_the_moves(town / "rear")
    (town / "notes").mkdir()
    assert maps_in(town) == ["front", "rear"]
    killed_between_the_moves(town / "front")
    with pytest.raises(ConfigError, match="holds the maps of front, rear; give front=TOPIC"):
        map_folders(town, [""])
    new_map(3).save(tmp_path / "single")
    killed_between_the_moves(tmp_path / "single")
    with pytest.raises(ConfigError, match="is the map of one camera"):
        map_folders(tmp_path / "single", ["front", "rear"])
    assert map_tool.main(["merge", str(town / "rear"), "--output", str(tmp_path / "single")]) == 1
    assert "exists; name another folder" in capsys.readouterr().err
    assert len(PlaceMap.load(tmp_path / "single")) == 3
