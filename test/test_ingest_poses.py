"""Poses for sessions from satellite fixes, transforms and trajectory files, each against numbers made by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from support import bags
from support.bags import START_NS, Record, fix
from support.ingested import ingest
from training.ingest.bag import Bag
from training.ingest.config import IngestConfig
from training.ingest.inspect import inspect
from training.ingest.many import plan_jobs
from training.ingest.trajectory_files import read_trajectory
from training.sessions import Session
from vpr_kd_ros.errors import ConfigError, DataError
from vpr_kd_ros.geodesy import course, east_north_up
from vpr_kd_ros.geometry import Floats

MS = 1_000_000
PICTURE = np.full((24, 32, 3), 99, dtype=np.uint8)
HOME = (48.0, 11.0, 500.0)


def images(count: int = 20) -> list[Record]:
    """Ten a second, the first 100 ms after the start."""
    stamps = [START_NS + (i + 1) * 100 * MS for i in range(count)]
    return [("/camera", stamp, bags.image(stamp, PICTURE)) for stamp in stamps]


def radii(latitude_deg: float) -> tuple[float, float]:
    """Radii of curvature of WGS 84, metres: along the meridian and across it."""
    a, e2 = 6378137.0, 0.00669437999014
    w = np.sqrt(1 - e2 * np.sin(np.deg2rad(latitude_deg)) ** 2)
    return a * (1 - e2) / w**3, a / w


def fixes_at(east: Floats, north: Floats) -> list[tuple[float, float]]:
    """Latitude and longitude of places near HOME, by the radii of curvature (good to millimetres over 100 m)."""
    meridian, across = radii(HOME[0])
    latitudes = HOME[0] + np.rad2deg(north / (meridian + HOME[2]))
    longitudes = HOME[1] + np.rad2deg(east / ((across + HOME[2]) * np.cos(np.deg2rad(HOME[0]))))
    return list(zip(latitudes.tolist(), longitudes.tolist(), strict=True))


def drive_of_fixes() -> list[Record]:
    """East at 5 m/s for a second, then north; a fix each 50 ms."""
    t = np.arange(45) * 0.05
    east, north = 5.0 * np.minimum(t, 1.0), 5.0 * np.maximum(t - 1.0, 0.0)
    records = images()
    for i, (latitude, longitude) in enumerate(fixes_at(east, north)):
        stamp = START_NS + i * 50 * MS
        records.append(("/gps", stamp, fix(stamp, latitude, longitude, HOME[2])))
    return sorted(records, key=lambda r: r[1])


def settings(**values: Any) -> IngestConfig:
    return IngestConfig(**{"region": "town", "lidar_topic": "none", "keyframe_distance_m": 0.01, **values})


def session_of(tmp_path: Path, records: list[Record], **values: Any) -> Session:
    path = bags.write_bag(tmp_path / "drive", records)
    return Session(ingest(path, tmp_path / "out", settings(**values)).session)


def test_fixes_become_metres_east_and_north_of_the_first(tmp_path: Path) -> None:
    session = session_of(tmp_path, drive_of_fixes())
    seconds = (session.stamps_ns - START_NS) / 1e9
    expected = np.stack([5 * np.minimum(seconds, 1), 5 * np.maximum(seconds - 1, 0), 0 * seconds], axis=1)
    assert len(session) == 20
    assert np.allclose(session.positions, expected, atol=2e-3)
    assert np.allclose(session.yaws[seconds < 0.5], 0.0, atol=1e-3)
    assert np.allclose(session.yaws[seconds > 1.5], np.pi / 2, atol=1e-3)
    assert session.info.frame_id == "enu"
    assert session.info.calibration["nav_origin"] == pytest.approx(HOME)


def test_sessions_with_one_origin_share_a_frame(tmp_path: Path) -> None:
    (latitude, longitude), *_ = fixes_at(np.array([-30.0]), np.array([40.0]))
    session = session_of(tmp_path, drive_of_fixes(), nav_origin=[latitude, longitude, 490.0])
    assert np.allclose(session.positions[9], [35.0, -40.0, 10.0], atol=5e-3)  # a second's drive from HOME
    assert session.info.calibration["nav_origin"] == [latitude, longitude, 490.0]


@pytest.mark.parametrize("origin", [(0.0, 0.0, 0.0), (-33.9, 151.2, 20.0), (70.0, -179.9999, 0.0), (89.0, 10.0, 5.0)])
def test_the_plane_is_tangent_everywhere(origin: tuple[float, float, float]) -> None:
    step = 1e-4
    fixes = np.array(origin) + np.array([[step, 0, 0], [0, step, 0], [0, 0, 7.0], [0, 0, np.nan]])
    found = east_north_up(fixes, origin)
    meridian, across = radii(origin[0])
    north = np.deg2rad(step) * (meridian + origin[2])
    east = np.deg2rad(step) * (across + origin[2]) * np.cos(np.deg2rad(origin[0]))
    assert np.allclose(found, [[0, north, 0], [east, 0, 0], [0, 0, 7], [0, 0, 0]], atol=2e-3)


def test_the_course_ignores_noise_at_a_standstill() -> None:
    rng = np.random.default_rng(0)
    straight = np.stack([np.linspace(0, -20, 200), np.zeros(200), np.zeros(200)], axis=1)
    stand = np.tile([-20.0, 0.0, 0.0], (300, 1))
    drive = np.concatenate([straight, stand]) + rng.normal(0, 0.02, (500, 3))
    assert np.abs(np.exp(1j * course(drive)) + 1).max() < 0.15
    assert course(stand + rng.normal(0, 0.02, stand.shape)).tolist() == [0.0] * 300


def test_without_a_fix_there_is_no_pose_and_poses_are_preferred(tmp_path: Path) -> None:
    records = drive_of_fixes()
    gps = [item for topic, _, item in records if topic == "/gps"]
    for item in gps[10:25]:
        item.status.status = -1
    path = bags.write_bag(tmp_path / "drive", records)
    outcome = ingest(path, tmp_path / "out", settings())
    assert outcome.info.drops == {"no pose": 8}
    assert any("15 poses are unusable, the first: fix: status.status" in notice for notice in outcome.notices)
    odometry = [("/odom", r[1], bags.odometry(r[1], 7.0, 7.0, 0.0)) for r in records]
    both = bags.write_bag(tmp_path / "both", sorted(records + odometry, key=lambda r: r[1]))
    assert ingest(both, tmp_path / "out", settings()).info.topics["pose"] == "/odom"
    named = ingest(both, tmp_path / "out", settings(pose_topic="/gps", name="named"))
    assert named.info.topics["pose"] == "/gps"
    with Bag(path) as bag:
        assert "/gps, latitude 48.000000, longitude 11.000000" in inspect(bag)


def test_drives_of_a_region_share_an_origin_or_are_refused(tmp_path: Path) -> None:
    """Two drives whose first fixes are 60 m apart would both begin at (0, 0)."""
    first, second = tmp_path / "first", tmp_path / "second"
    bags.write_bag(first, drive_of_fixes())
    moved = [(topic, stamp, item) for topic, stamp, item in drive_of_fixes()]
    for _, _, item in moved:
        if item.__msgtype__.endswith("NavSatFix"):
            item.latitude += 60.0 / 111_000
    moved[0][2].status.status = -1  # not the first fix
    bags.write_bag(second, moved)
    odometry = [("/odom", START_NS + i * 100 * MS, bags.odometry(START_NS, 0, 0, 0)) for i in range(20)]
    bags.write_bag(tmp_path / "third", sorted([*images(), *odometry], key=lambda r: r[1]))
    (tmp_path / "fourth.mcap").write_bytes(b"no bag at all")
    given = [first, second, tmp_path / "third", tmp_path / "fourth.mcap"]
    with pytest.raises(ConfigError, match=r"first and .*second are of the region 'town'.*from different") as refusal:
        plan_jobs(given, settings(), {})
    named = re.search(r"--nav_origin '(\[.*?\])'", str(refusal.value))
    assert named is not None
    origin = [float(number) for number in named[1].strip("[]").split(",")]
    assert origin == pytest.approx(HOME)
    jobs, _ = plan_jobs(given, settings(nav_origin=origin), {})
    begin = [Session(ingest(j.path, tmp_path / "out", j.config).session).positions[0, 1] for j in jobs[:2]]
    assert begin[1] - begin[0] == pytest.approx(60.0, abs=0.5)
    with pytest.raises(ConfigError, match=re.escape(f"second and {first} are of the region 'town'")):
        plan_jobs(given, settings(), {"second": {"nav_origin": origin}})
    # Regions that are not compared, and positions that are not written, may differ.
    assert len(plan_jobs(given, settings(), {"second": {"region": "harbour"}})[0]) == 4
    assert len(plan_jobs(given, settings(), {"second": {"labelled": False}})[0]) == 4


def slow_fixes(hertz: int, late_ms: int = 0) -> list[Record]:
    """To the north at 5 m/s."""
    records = images()
    for i in range(3 * hertz + 1):
        stamp = START_NS + i * 1000 * MS // hertz + late_ms * MS
        latitude, longitude = fixes_at(np.zeros(1), np.array([5.0 * i / hertz]))[0]
        records.append(("/gps", stamp, fix(stamp, latitude, longitude, HOME[2])))
    return sorted(records, key=lambda r: r[1])


def test_a_slow_gps_is_told_with_the_gap_that_bridges_it(tmp_path: Path) -> None:
    every_second = bags.write_bag(tmp_path / "slow", slow_fixes(1, 7))
    with pytest.raises(DataError, match=r"poses come every 1\.000 s.* than 0\.5 s: give --max_pose_gap_s 1\.50"):
        ingest(every_second, tmp_path / "out", settings())
    session = Session(ingest(every_second, tmp_path / "out", settings(max_pose_gap_s=1.5)).session)
    assert np.allclose(session.positions[:, 1], 5e-9 * (session.stamps_ns - START_NS - 7 * MS), atol=2e-3)
    # Where some are lost, those who go on are told too.
    uneven = bags.write_bag(tmp_path / "uneven", [r for r in slow_fixes(2) if r[1] != START_NS + 1000 * MS])
    outcome = ingest(uneven, tmp_path / "out", settings())
    assert outcome.info.drops["no pose"] > 3
    assert any("give --max_pose_gap_s 0.75" in notice for notice in outcome.notices)


@pytest.mark.parametrize(
    ("late_ms", "words"), [(60_000, r"begin 58\.000 s after the last"), (-60_000, r"end 57\.100 s before the first")]
)
def test_poses_of_another_time_are_told(late_ms: int, words: str, tmp_path: Path) -> None:
    path = bags.write_bag(tmp_path / "drive", slow_fixes(5, late_ms))
    with pytest.raises(DataError, match=f"20 images: no pose; the poses {words} image: their clocks disagree"):
        ingest(path, tmp_path / "out", settings())


def stamped(stamp_ns: int, parent: str, child: str, translation: tuple[float, float, float], yaw: float) -> Any:
    message = bags.static_transform(parent, child, translation, yaw)
    message.transforms[0].header = bags.header(stamp_ns, parent)
    return message


def tf_drive() -> list[Record]:
    """map -> odom every 250 ms, odom -> base_footprint every 20 ms, and base_footprint -> base_link once."""
    records = images()
    records.append(("/tf_static", START_NS, bags.static_transform("base_footprint", "base_link", (0.0, 0.0, 0.3), 0.0)))
    for i in range(10):
        stamp = START_NS + i * 250 * MS
        records.append(("/tf", stamp, stamped(stamp, "map", "odom", (100.0, 0.2 * i, 0.0), np.pi / 2)))
    for i in range(120):
        stamp = START_NS + i * 20 * MS
        records.append(("/tf", stamp, stamped(stamp, "odom", "base_footprint", (0.1 * i, 0.0, 0.0), 0.01 * i)))
    return sorted(records, key=lambda r: r[1])


def test_the_chain_of_transforms_is_composed(tmp_path: Path) -> None:
    session = session_of(tmp_path, tf_drive(), pose_topic="tf")
    t = (session.stamps_ns - START_NS) / 1e9
    # By hand: odom is turned by a quarter, so that what is ahead in it is to the left in the map.
    assert np.allclose(session.positions, np.stack([100 + 0 * t, 0.8 * t + 5.0 * t, 0.3 + 0 * t], axis=1), atol=1e-6)
    assert np.allclose(np.exp(1j * session.yaws), np.exp(1j * (np.pi / 2 + 0.5 * t)), atol=1e-6)
    assert (len(session), session.info.frame_id, session.info.topics["pose"]) == (20, "map", "tf")


def test_a_chain_is_walked_backwards_too(tmp_path: Path) -> None:
    session = session_of(tmp_path, tf_drive(), pose_topic="tf", map_frame="base_footprint", base_frame="/odom")
    t = (session.stamps_ns - START_NS) / 1e9
    yaw = 0.5 * t
    assert np.allclose(session.positions[:, :2], np.stack([-5 * t * np.cos(yaw), 5 * t * np.sin(yaw)], axis=1))


def test_transforms_that_do_not_join_or_come_seldom_are_told(tmp_path: Path) -> None:
    path = bags.write_bag(tmp_path / "drive", tf_drive())
    with pytest.raises(
        DataError, match=r"'earth' to 'base_link'; the bag has base_footprint -> base_link, map -> odom"
    ):
        ingest(path, tmp_path / "out", settings(pose_topic="tf", map_frame="earth"))
    with pytest.raises(DataError, match="all static"):
        ingest(path, tmp_path / "out", settings(pose_topic="tf", map_frame="base_footprint"))
    once = [r for r in tf_drive() if r[0] != "/tf" or r[2].transforms[0].header.frame_id != "map" or r[1] == START_NS]
    path = bags.write_bag(tmp_path / "once", once)
    with pytest.raises(DataError, match="no keyframe is left: 20 images: no pose"):
        ingest(path, tmp_path / "out", settings(pose_topic="tf"))


def write_tum(path: Path) -> Path:
    lines = ["# time x y z qx qy qz qw"]
    for i in range(50):
        ns = START_NS + i * 50 * MS + 1
        half = 0.01 * i
        lines.append(f"{ns // 10**9}.{ns % 10**9:09d} {0.5 * i} 2 -1 0 0 {np.sin(half):.12f} {np.cos(half):.12f}")
    path.write_text("\n".join(lines) + "\n")
    return path


def write_kitti(path: Path, stamps: Path) -> Path:
    rows = []
    for i in range(50):
        turned = Rotation.from_euler("z", 0.02 * i).as_matrix()
        rows.append(" ".join(f"{v:.9f}" for v in np.column_stack([turned, [0.5 * i, 2, -1]]).ravel()))
    path.write_text("\n".join(rows))
    times = [START_NS + i * 50 * MS + 1 for i in range(50)]
    stamps.write_text("\n".join(f"{ns // 10**9}.{ns % 10**9:09d}" for ns in times))
    return path


@pytest.mark.parametrize("kind", ["tum", "kitti"])
def test_trajectory_files(kind: str, tmp_path: Path) -> None:
    stamps = tmp_path / "times.txt"
    file = write_tum(tmp_path / "a.txt") if kind == "tum" else write_kitti(tmp_path / "a.txt", stamps)
    values = {"trajectory": str(file), "trajectory_format": kind, "map_frame": "site"}
    if kind == "kitti":
        with pytest.raises(ConfigError, match="--trajectory_stamps"):
            session_of(tmp_path / "without", images(), **values)
        values["trajectory_stamps"] = str(stamps)
    assert read_trajectory(file, kind, stamps).stamps_ns[3] == START_NS + 150 * MS + 1  # to the nanosecond
    session = session_of(tmp_path, images(), **values)
    t = (session.stamps_ns - START_NS) / 1e9
    assert np.allclose(session.positions, np.stack([10 * t, 2 + 0 * t, -1 + 0 * t], axis=1), atol=1e-6)
    assert np.allclose(session.yaws, 0.4 * t, atol=1e-6)
    assert (len(session), session.info.frame_id, session.info.topics["pose"]) == (20, "site", str(file))
    assert str(file.name) in [entry["name"] for entry in session.info.sources[0]["files"]]


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("tum", "1.0 2 3 4 0 0 0", "line 1 is not 8"),
        ("tum", "# a\n1.0 2 3 4 0 0 0 one", "line 2 is not 8"),
        ("tum", "1.0 2 3 nan 0 0 0 1", "line 1 is not 8"),
        ("tum", "\n", "no line with numbers"),
        ("tum", "1.0 2 3 4 0 0 0 0", "quaternion is zero"),
        ("kitti", "1 0 0 0 0 2 0 0 0 0 1 0", "pose 1 is no rotation"),
        ("kitti", "1 0 0 0 0 1 0 0 0 0 1 0\n1 0 0 0 0 1 0 0 0 0 1 0", "1 times for the 2 poses"),
    ],
)
def test_broken_trajectory_files_are_told_by_line(kind: str, text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(text)
    (tmp_path / "times.txt").write_text("1.5\n")
    with pytest.raises(DataError, match=words):
        read_trajectory(tmp_path / "t.txt", kind, tmp_path / "times.txt")


def test_options_that_contradict_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give one"):
        settings(trajectory="a.txt", pose_topic="/odom")
    with pytest.raises(ConfigError, match="nav_origin"):
        settings(nav_origin=[48.0, 11.0])
    with pytest.raises(ConfigError, match="known: tum, kitti"):
        settings(trajectory_format="euroc")
    with pytest.raises(DataError, match=r"nowhere\.txt: there is no such file"):
        session_of(tmp_path, images(), trajectory="nowhere.txt")
