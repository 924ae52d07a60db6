"""Public data sets as sessions, from small folders in their formats."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from training.__main__ import main
from training.ingest.dataset_frames import DatasetConfig
from training.ingest.datasets import ingest_dataset
from training.ingest.submap_lists import submaps_of
from training.sessions import Session
from vpr_kd_ros.errors import ConfigError, DataError

START_US = 1_400_000_000_000_000


def utm_folder(path: Path) -> Path:
    path.mkdir()
    for i in range(4):
        name = f"@{500000.5 + i:.2f}@{4000000.25:.2f}@10@S@37.0@-122.0@pano@0@{90.0 * i}@0@0@2@201401@note@.jpg"
        cv2.imwrite(str(path / name), np.full((32, 48, 3), (10, 100, 50 * i), dtype=np.uint8))  # BGR
    return path


def test_images_named_by_their_utm_position(tmp_path: Path) -> None:
    folder = utm_folder(tmp_path / "database")
    bare = "@1.5@2.5@.jpg"
    cv2.imwrite(str(folder / bare), np.zeros((32, 48, 3), dtype=np.uint8))
    (folder / "@3.5@4.5@.png").write_bytes(b"no image")
    (folder / "@east@north@.jpg").write_bytes(b"")
    (written,) = ingest_dataset("utm-images", folder, tmp_path / "out", DatasetConfig("sf", "day"))
    session, notices = Session(written.path), written.notices
    assert (written.keyframes, session.name, session.region, session.condition) == (5, "database", "sf", "day")
    assert session.info.drops == {"no UTM position in the name": 1, "unreadable": 1}
    assert any("2 images have no heading" in notice for notice in notices)
    order = {tuple(p[:2]): i for i, p in enumerate(session.positions.tolist())}
    for i in range(4):
        k = order[(500000.5 + i, 4000000.25)]
        assert np.exp(1j * session.yaws[k]) == pytest.approx(np.exp(1j * np.deg2rad(90 - 90 * i)))
        assert np.abs(session.image(k)[16, 24].astype(int) - [50 * i, 100, 10]).max() <= 4
    assert (1.5, 2.5) in order
    assert not session.has_clouds


def robotcar_folder(path: Path, count: int = 5) -> Path:
    """A run to the north; a submap each 10 m and second, an image 30 ms after each."""
    camera, clouds = path / "stereo" / "centre", path / "pointcloud_20m"
    camera.mkdir(parents=True)
    clouds.mkdir()
    lines = ["timestamp,northing,easting"]
    for i in range(count):
        stamp = START_US + i * 1_000_000
        lines.append(f"{stamp},{5_735_000 + 10 * i},620000.5")
        np.random.default_rng(i).uniform(-1, 1, (4096, 3)).tofile(clouds / f"{stamp}.bin")
        mosaic = np.zeros((32, 48), dtype=np.uint8)  # G B over R G
        mosaic[::2, ::2] = mosaic[1::2, 1::2] = 100
        mosaic[::2, 1::2], mosaic[1::2, ::2] = 30, 200
        cv2.imwrite(str(camera / f"{stamp + 30_000}.png"), mosaic)
    (path / "pointcloud_locations_20m.csv").write_text("\n".join(lines) + "\n")
    (path / "oxford_evaluation_database.pickle").write_bytes(pickle.dumps({"never": "read"}))
    return path


def test_robotcar_with_submaps(tmp_path: Path) -> None:
    folder = robotcar_folder(tmp_path / "2014-05-19")
    (folder / "stereo" / "centre" / f"{START_US + 2_030_000}.png").unlink()
    (folder / "pointcloud_20m" / f"{START_US + 3_000_000}.bin").write_bytes(bytes(20))
    arguments = ["ingest-dataset", "--format", "robotcar", str(folder), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--region", "oxford", "--cloud_scale", "25"]) == 0
    session = Session(tmp_path / "out" / "2014-05-19")
    assert session.stamps_ns.tolist() == [(START_US + i * 1_000_000 + 30_000) * 1000 for i in (0, 1, 4)]
    assert session.positions.tolist() == [[620000.5, 5_735_000 + 10 * i, 0] for i in (0, 1, 4)]
    assert np.allclose(session.yaws, np.pi / 2)
    expected = 25 * np.random.default_rng(4).uniform(-1, 1, (4096, 3))
    assert np.allclose(session.cloud(2), expected, atol=1e-5)
    assert np.abs(session.image(0)[16, 24].astype(int) - [200, 100, 30]).max() <= 5
    assert session.info.drops == {"no image near the submap in time": 1, "unreadable": 1}
    assert max(map(abs, session.info.offsets_ms)) > 900


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("touch /tmp/vpr_kd_ros_evil",))


def test_a_pickle_of_pointnetvlad_chooses_submaps_and_runs_no_code(tmp_path: Path) -> None:
    folder = robotcar_folder(tmp_path / "2014-05-19")
    position = {"northing": np.float64(1.5), "easting": np.float64(2.5)}
    database = [
        {i: {"query": f"oxford/{run}/pointcloud_20m/{START_US + i * 1_000_000}.bin", **position} for i in (1, 3)}
        for run in ("2014-05-19", "2015-01-01")
    ]
    pickles = tmp_path / "database.pickle"
    pickles.write_bytes(pickle.dumps(database))
    (written,) = ingest_dataset("robotcar", folder, tmp_path / "out", DatasetConfig("oxford", submaps=str(pickles)))
    assert ((Session(written.path).positions[:, 1] - 5_735_000) / 10).tolist() == [1, 3]
    assert "dropped, not in the list: 3" in written.notices
    (tmp_path / "runs.pickle").write_bytes(pickle.dumps({0: database[1][1]}))
    with pytest.raises(DataError, match="lists 1 submaps, none of the run 2014-05-19"):
        submaps_of(tmp_path / "runs.pickle", "2014-05-19")
    for content, words in (
        (pickle.dumps({0: {"query": Evil()}}), "it holds a posix.system"),
        (pickle.dumps(database)[:-20], "not a readable pickle"),
        (b"", "not a readable pickle"),
        (pickle.dumps({0: {"file": "a"}}), "wants entries with the submap's file as query"),
        (pickle.dumps(7), "wants entries"),
    ):
        pickles.write_bytes(content)
        with pytest.raises(DataError, match=words):
            submaps_of(pickles, "2014-05-19")
    assert not Path("/tmp/vpr_kd_ros_evil").exists()


def whole_download(path: Path) -> Path:
    """A run as PointNetVLAD's download has it: submaps to test on, and half a metre beside them those to train on."""
    folder = robotcar_folder(path)
    (folder / "pointcloud_20m_10overlap").mkdir()
    lines = ["timestamp,northing,easting"]
    for i in range(9):
        stamp = START_US + i * 500_000 + 7
        lines.append(f"{stamp},{5_735_000 + 5 * i},620001.0")
        np.random.default_rng(i).uniform(-1, 1, (4096, 3)).tofile(folder / "pointcloud_20m_10overlap" / f"{stamp}.bin")
    (folder / "pointcloud_locations_20m_10overlap.csv").write_text("\n".join(lines) + "\n")
    return folder


TEST_TABLE, TRAINING_TABLE = "pointcloud_locations_20m.csv", "pointcloud_locations_20m_10overlap.csv"


def test_of_two_lists_of_submaps_one_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = whole_download(tmp_path / "2014-05-19")
    with pytest.raises(DataError, match=rf"give --locations {TEST_TABLE} .* or --locations {TRAINING_TABLE}"):
        ingest_dataset("robotcar", folder, tmp_path / "out", DatasetConfig("oxford"))
    arguments = ["ingest-dataset", "--format", "robotcar", str(folder), "--region", "oxford", "--locations"]
    for table, east, count, clouds in (
        (TEST_TABLE, 620000.5, 5, "pointcloud_20m/"),
        (TRAINING_TABLE, 620001.0, 9, "pointcloud_20m_10overlap/"),
    ):
        words = [*arguments, table, "--time_tolerance_s", "1", "--out", str(tmp_path / table)]
        assert main(words) == 0
        session = Session(tmp_path / table / "2014-05-19")
        assert session.positions[:, 0].tolist() == [east] * count
        assert f"NOTICE the submaps are those of {table}, {count} in {clouds}" in capsys.readouterr().out
    (folder / TRAINING_TABLE).unlink()
    with pytest.raises(DataError, match=f"holds no {TRAINING_TABLE}, but {TEST_TABLE}"):
        ingest_dataset("robotcar", folder, tmp_path / "out", DatasetConfig("oxford", locations=TRAINING_TABLE))
    with pytest.raises(ConfigError, match=f"locations is 'pointcloud_20m'; known: {TEST_TABLE}"):
        DatasetConfig("oxford", locations="pointcloud_20m")


def test_a_pickle_names_the_list_that_its_submaps_are_in(tmp_path: Path) -> None:
    folder = whole_download(tmp_path / "2014-05-19")
    entries = {
        "pointcloud_20m": [START_US + i * 1_000_000 for i in (1, 3)],
        "pointcloud_20m_10overlap": [START_US + i * 500_000 + 7 for i in (2, 4, 6)],
    }
    for clouds, stamps in entries.items():
        listed = {i: {"query": f"oxford/2014-05-19/{clouds}/{stamp}.bin"} for i, stamp in enumerate(stamps)}
        (tmp_path / "list.pickle").write_bytes(pickle.dumps(listed))
        config = DatasetConfig("oxford", submaps=str(tmp_path / "list.pickle"))
        (written,) = ingest_dataset("robotcar", folder, tmp_path / clouds, config)
        assert (written.keyframes, set(Session(written.path).positions[:, 0])) == (
            len(stamps),
            {620000.5 if clouds == "pointcloud_20m" else 620001.0},
        )
    (folder / TRAINING_TABLE).unlink()
    with pytest.raises(DataError, match=f"lists submaps in pointcloud_20m_10overlap/, and {TRAINING_TABLE} is not"):
        ingest_dataset("robotcar", folder, tmp_path / "out", config)
    mixed = {i: {"query": f"oxford/2014-05-19/{clouds}/1.bin"} for i, clouds in enumerate(entries)}
    (tmp_path / "list.pickle").write_bytes(pickle.dumps(mixed))
    with pytest.raises(DataError, match="in pointcloud_20m and pointcloud_20m_10overlap; wants those of one folder"):
        submaps_of(tmp_path / "list.pickle", "2014-05-19")
    with pytest.raises(ConfigError, match="both submaps and locations are given"):
        DatasetConfig("oxford", submaps="list.pickle", locations=TEST_TABLE)


def test_areas_are_cut_out_of_a_run_with_a_margin_around_them(tmp_path: Path) -> None:
    """Submaps stand every 10 m along a street to the north: 0 to 90."""
    folder = robotcar_folder(tmp_path / "2014-05-19", 10)
    box = "[620000.0, 5735040.0, 620001.0, 5735055.0, 620000.0, 5735090.0, 620001.0, 5735100.0]"
    arguments = ["ingest-dataset", "--format", "robotcar", str(folder), "--out", str(tmp_path / "out")]
    areas = ["--areas", f'{{"test": {box}, "nowhere": [0, 0, 1, 1]}}', "--area_margin_m", "12"]
    assert main([*arguments, "--region", "oxford", *areas]) == 0
    rest, test = Session(tmp_path / "out" / "2014-05-19"), Session(tmp_path / "out" / "test" / "2014-05-19-test")
    assert ((rest.positions[:, 1] - 5_735_000) / 10).tolist() == [0, 1, 2, 7]
    assert ((test.positions[:, 1] - 5_735_000) / 10).tolist() == [4, 5, 9]
    assert (rest.info.region, test.info.region) == ("oxford", "test")
    assert test.info.drops == {"in another area": 7}
    assert not (tmp_path / "out" / "nowhere").exists()
    with pytest.raises(ConfigError, match="wants x min, y min"):
        DatasetConfig("oxford", areas={"test": [1.0, 0.0, 0.0, 1.0]})


def test_the_same_command_again_goes_on_after_what_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [robotcar_folder(tmp_path / name, 10) for name in ("run1", "run2", "run3", "run4")]
    (runs[1] / TEST_TABLE).unlink()
    areas = '{"test": [620000.0, 5735040.0, 620001.0, 5735055.0]}'
    words = ["ingest-dataset", "--format", "robotcar", *map(str, runs), "--region", "oxford", "--areas", areas]
    words += ["--out", str(tmp_path / "out")]
    assert main(words) == 1
    told = capsys.readouterr()
    assert "run2: FAILED, see the end" in told.out
    assert "1 of 4 folders failed:" in told.err
    assert f"{runs[1]}: holds neither" in told.err
    sessions = sorted((tmp_path / "out").rglob("session.json"))
    assert len(sessions) == 6  # of three runs, and their areas
    before = {path: path.stat().st_mtime_ns for path in sessions}
    # As after an interruption: one of the sessions of a run is there, the other is not.
    shutil.rmtree(tmp_path / "out" / "test" / "run3-test")
    (runs[1] / TEST_TABLE).write_text((runs[0] / TEST_TABLE).read_text())
    assert main(words) == 0
    assert capsys.readouterr().out.count("left as it is") == 5
    after = {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "out").rglob("session.json"))}
    again = tmp_path / "out" / "test" / "run3-test" / "session.json"
    assert len(after) == 8
    assert {path for path in sessions if after[path] != before[path]} == {again}
    # Other settings, or another folder of the name, are not taken for the same.
    assert main([*words, "--cloud_scale", "25"]) == 1
    assert capsys.readouterr().err.count("was written with other settings; remove it, or give another --out") == 4
    with pytest.raises(DataError, match="was written from another folder"):
        ingest_dataset("robotcar", robotcar_folder(tmp_path / "more" / "run1"), tmp_path / "out", DatasetConfig("a"))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (None, "holds neither"),
        ("timestamp,north\n1,2\n", "lacks the columns easting, northing"),
        ("timestamp,northing,easting\n1,2,3\n4,5\n", "line 3 is not"),
        ("timestamp,northing,easting\nnow,2,3\n", "line 2 is not"),
        ("timestamp,northing,easting\n", "holds no submap"),
        ("timestamp,northing,easting\n1,2,3\n", "no keyframe could be read"),
    ],
)
def test_broken_runs_are_told(table: str | None, words: str, tmp_path: Path) -> None:
    folder = robotcar_folder(tmp_path / "run", 1)
    (folder / "pointcloud_locations_20m.csv").unlink()
    if table is not None:
        (folder / "pointcloud_locations_20m.csv").write_text(table)
    with pytest.raises(DataError, match=words):
        ingest_dataset("robotcar", folder, tmp_path / "out", DatasetConfig("oxford"))
    assert not list((tmp_path / "out").glob("*"))


def test_what_is_no_data_set_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="known: utm-images, robotcar, boreas"):
        ingest_dataset("nuscenes", tmp_path, tmp_path / "out", DatasetConfig("a"))
    with pytest.raises(DataError, match="no such folder"):
        ingest_dataset("robotcar", tmp_path / "nowhere", tmp_path / "out", DatasetConfig("a"))
    with pytest.raises(DataError, match="no image named @UTM"):
        ingest_dataset("utm-images", tmp_path, tmp_path / "out", DatasetConfig("a"))
    with pytest.raises(ConfigError, match="cloud_scale"):
        DatasetConfig("a", cloud_scale=0.0)


def turn(axis: int, angle: float) -> np.ndarray:
    """Right-handed rotation about an axis, written out."""
    c, s = np.cos(angle), np.sin(angle)
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(3)
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


def test_boreas_puts_the_scan_ahead_of_the_car(tmp_path: Path) -> None:
    folder = tmp_path / "boreas-2020"
    for name in ("camera", "lidar", "applanix"):
        (folder / name).mkdir(parents=True)
    # The car drives north-east; its scanner is turned anyhow. Roll, pitch, heading are of Boreas' devkit: the inverse
    # of a rotation about x is its matrix of roll, and so on.
    angles = (0.02, -0.03, 1.1)
    world_from_lidar = turn(0, -angles[0]) @ turn(1, -angles[1]) @ turn(2, -angles[2])
    mark = np.array([100.0, 100.0, 3.0])  # straight ahead in the world
    lines = ["GPSTime,easting,northing,altitude,vel_east,vel_north,vel_up,roll,pitch,heading,wz,wy,wx"]
    for i in range(30):
        stamp, place = START_US + i * 100_000, np.array([0.5 * i, 0.5 * i, 1.0])
        lines.append(",".join(map(str, [stamp, *place, 5, 5, 0, *angles, 0, 0, 0])))
        scan = np.zeros((2, 6), dtype="<f4")
        scan[0, :3], scan[1, :3] = world_from_lidar.T @ (mark - place), np.nan
        scan.tofile(folder / "lidar" / f"{stamp}.bin")
        picture = np.full((32, 48, 3), 7 * i, dtype=np.uint8)
        cv2.imwrite(str(folder / "camera" / f"{stamp + 20_000}.png"), picture)
    (folder / "applanix" / "lidar_poses.csv").write_text("\n".join(lines) + "\n")
    config = DatasetConfig("toronto", keyframe_distance_m=3.0)
    session = Session(ingest_dataset("boreas", folder, tmp_path / "out", config)[0].path)
    # 0.71 m a scan: every fifth is the first beyond 3 m; the last image lies after the last pose.
    numbers = [0, 5, 10, 15, 20, 25]
    assert session.stamps_ns.tolist() == [(START_US + i * 100_000 + 20_000) * 1000 for i in numbers]
    assert np.allclose(session.yaws, np.pi / 4)
    for k, i in enumerate(numbers):
        along = 0.5 * i + 0.1
        assert np.allclose(session.positions[k], [along, along, 1.0])
        assert np.allclose(session.cloud(k), [[np.sqrt(2) * (100 - along), 0.0, 2.0]], atol=1e-4)
        assert abs(int(session.image(k)[16, 24, 0]) - 7 * i) <= 2
    (folder / "applanix" / "lidar_poses.csv").write_text("GPSTime,easting\n1,2\n")
    with pytest.raises(DataError, match="line 2 is not"):
        ingest_dataset("boreas", folder, tmp_path / "again", config)
