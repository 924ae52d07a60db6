"""Bags to sessions: what comes out is what was recorded, and what is wrong with a bag is said."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter
from numpy.typing import NDArray

from support import bags
from support.bags import START_NS, Record
from support.ingested import ingest
from training.__main__ import main
from training.ingest.bag import Bag
from training.ingest.config import IngestConfig
from training.ingest.frames import find_extrinsic
from training.ingest.ingest import Outcome
from training.ingest.report import report
from training.ingest.select import nearest, spaced_in_place, spaced_in_time
from training.sessions import Session
from vpr_kd_ros.errors import ConfigError, DataError, VprError
from vpr_kd_ros.mcap_file import McapFile
from vpr_kd_ros.recording import BagWriter, TypeDefinition

MS = 1_000_000
ROOT = Path(__file__).parent.parent
INSIDE = [i for i in range(32) if not 13 <= i < 19]


def at(seconds: float) -> tuple[float, float, float]:
    """Where the robot is: x, y in metres, yaw in radians; it drives and turns, through half a turn and past it."""
    return 1.5 * seconds, 4.0 * np.sin(seconds / 2.0), 0.9 * seconds


def colours(number: int) -> NDArray[np.uint8]:
    """A picture of four flat quadrants, which JPEG keeps, that tells its number."""
    blocks = np.array([[number, 255 - number], [50, 60 + number]], dtype=np.uint8)
    grey = blocks.repeat(16, axis=0).repeat(16, axis=1)
    return np.dstack([grey, 255 - grey, np.full_like(grey, 40 + number)])


def points(number: int) -> NDArray[np.float32]:
    return np.random.default_rng(number).normal(0, 10, (50, 3)).astype(np.float32)


def drive(frames: int = 40, lidar_frame: str = "base_link") -> list[Record]:
    """Odometry at 50 Hz, camera at 10 Hz, LiDAR at 10 Hz up to 30 ms before the camera, for ``frames`` images."""
    records: list[Record] = []
    for i in range(frames * 5 + 5):
        stamp = START_NS + i * 20 * MS
        records.append(("/odom", stamp, bags.odometry(stamp, *at(i * 0.02))))
    for i in range(frames):
        stamp = START_NS + (50 + 100 * i) * MS
        lidar_stamp = stamp - (i % 4) * 10 * MS
        records.append(("/camera", stamp + 2 * MS, bags.image(stamp, colours(i))))
        records.append(("/points", lidar_stamp + 5 * MS, bags.cloud(lidar_stamp, points(i), lidar_frame)))
    return sorted(records, key=lambda r: r[1])


def without(records: list[Record], topic: str) -> list[Record]:
    return [r for r in records if r[0] != topic]


def config(**values: Any) -> IngestConfig:
    return IngestConfig(**{"region": "town", **values})


def expected_keyframes(frames: int = 40) -> list[int]:
    """Images that are a metre or 15 degrees from the last chosen one, walked by hand."""
    chosen: list[int] = []
    for i in range(frames):
        x, y, yaw = at(0.05 + 0.1 * i)
        if chosen:
            lx, ly, lyaw = at(0.05 + 0.1 * chosen[-1])
            if np.hypot(x - lx, y - ly) < 1.0 and abs(yaw - lyaw) < np.deg2rad(15.0):
                continue
        chosen.append(i)
    return chosen


def check_drive(session: Session, chosen: list[int], labelled: bool = True) -> None:
    """The session holds these images of ``drive``, each with its cloud and its interpolated pose."""
    stamps = START_NS + (50 + 100 * np.array(chosen)) * MS
    assert session.stamps_ns.tolist() == stamps.tolist()
    for k, i in enumerate(chosen):
        difference = np.abs(session.image(k).astype(int) - colours(i))
        # JPEG blurs colour where the quadrants meet.
        assert difference[INSIDE][:, INSIDE].max() <= 4
        assert np.array_equal(session.cloud(k), points(i))
    assert session.labelled is labelled
    if labelled:
        ticks = np.arange(500) * 0.02
        path = np.array([at(t) for t in ticks])
        seconds = (stamps - START_NS) / 1e9
        for axis in (0, 1):
            assert np.allclose(session.positions[:, axis], np.interp(seconds, ticks, path[:, axis]), atol=1e-9)
        assert np.allclose(session.positions[:, 2], 0.5)
        yaws = np.interp(seconds, ticks, path[:, 2])
        assert np.allclose(np.exp(1j * session.yaws), np.exp(1j * yaws), atol=1e-6)


def bag1(path: Path, records: list[Record]) -> Path:
    """The records as a rosbag1 file: the messages are those of ROS 1, whose header has a number."""

    def converted(item: Any) -> Any:
        if isinstance(item, list):
            return [converted(x) for x in item]
        kind = getattr(item, "__msgtype__", None)
        if kind is None:
            return item
        values = {name: converted(getattr(item, name)) for name in type(item).__dataclass_fields__ if name[0] != "_"}
        if kind == "std_msgs/msg/Header":
            values["seq"] = 7
        return bags.STORE1.types[kind](**values)

    return bags.write_bag1(path, [(topic, stamp, converted(item)) for topic, stamp, item in records])


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole bag of ``drive()``; not to be written to."""
    return bags.write_bag(tmp_path_factory.mktemp("recorded") / "drive", drive())


@pytest.mark.parametrize("kind", ["mcap", "sqlite3", "file.mcap", "file.db3", "file.bag"])
def test_every_kind_of_bag_gives_the_same_session(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "drive"
    if kind == "file.bag":
        path = bag1(tmp_path / "drive.bag", drive())
    else:
        bags.write_bag(path, drive(), "mcap" if "mcap" in kind else "sqlite3")
        if kind.startswith("file"):
            path = next(path.glob("*.mcap" if "mcap" in kind else "*.db3"))
    outcome = ingest(path, tmp_path / "out", config(condition="rain"))
    chosen = expected_keyframes()
    assert 5 < len(chosen) < 40
    session = Session(outcome.session)
    check_drive(session, chosen)
    assert session.name == "drive"
    assert (session.region, session.condition, session.info.frame_id) == ("town", "rain", "map")
    assert session.info.topics == {"camera": "/camera", "lidar": "/points", "pose": "/odom"}
    assert session.info.drops == {"near the last keyframe": 40 - len(chosen)}
    assert sorted(set(session.info.offsets_ms)) == [0.0, 10.0, 20.0, 30.0]
    files = session.info.sources[0]["files"]
    assert [f["bytes"] for f in files] == [
        p.stat().st_size for p in ([path] if path.is_file() else path.glob("*.*[b3p]"))
    ]


@pytest.mark.parametrize(
    ("storage", "compression"),
    [("mcap", "file"), ("mcap", "message"), ("mcap", "storage"), ("sqlite3", "file"), ("sqlite3", "message")],
)
def test_compressed_bags_give_the_same_session(storage: str, compression: str, tmp_path: Path) -> None:
    path = bags.write_bag(tmp_path / "drive", drive(), storage, compression)
    outcome = ingest(path, tmp_path / "out", config())
    check_drive(Session(outcome.session), expected_keyframes())
    (path / "metadata.yaml").unlink()
    if compression == "file":
        with pytest.raises(DataError, match=r"cannot be opened without metadata\.yaml; unpack with zstd -d"):
            ingest(path, tmp_path / "without", config())


@pytest.mark.parametrize("kind", ["mcap", "bag"])
def test_heads_of_messages_tell_stamp_and_frame(kind: str, tmp_path: Path) -> None:
    records = drive(6, lidar_frame="roof/lidar")
    path = bag1(tmp_path / "d.bag", records) if kind == "bag" else bags.write_bag(tmp_path / "d", records)
    with Bag(path) as bag:
        whole = list(bag.messages({"/points", "/camera"}))
        heads = list(bag.messages({"/points", "/camera"}, heads={"/points"}))
        assert [message[:2] for message in heads] == [message[:2] for message in whole]
        for (topic, _, head), (_, _, data) in zip(heads, whole, strict=True):
            header = bag.decode(topic, data).header
            assert data.startswith(head)
            assert (len(head) == len(data)) == (topic == "/camera" or kind == "bag")
            assert bag.frame_id(topic, head) == header.frame_id
            assert bag.stamp_ns(topic, head) == header.stamp.sec * 10**9 + header.stamp.nanosec
        with pytest.raises(DataError, match="has no header"):
            bag.frame_id("/points", whole[0][2][:18])


def test_the_report_says_counts_offsets_and_notices(recorded: Path, tmp_path: Path) -> None:
    text = report(ingest(recorded, tmp_path, config(time_tolerance_s=0.015)))
    assert "of 40 images" in text
    assert "20 no cloud in tolerance" in text
    assert "median 15.0" in text
    assert "#" * 10 in text
    assert "NOTICE the positions of /odom are written as surveyed" in text


def test_images_without_a_cloud_in_tolerance_are_dropped_or_kept(recorded: Path, tmp_path: Path) -> None:
    fine = config(time_tolerance_s=0.005, keyframe_distance_m=0.01)
    strict = Session(ingest(recorded, tmp_path / "strict", fine).session)
    assert strict.info.drops == {"no cloud in tolerance": 30}
    check_drive(strict, list(range(0, 40, 4)))
    loose = config(time_tolerance_s=0.005, keyframe_distance_m=0.01, require_lidar=False)
    kept = Session(ingest(recorded, tmp_path / "loose", loose).session)
    assert len(kept) == 40
    assert not kept.has_clouds
    assert np.array_equal(kept.cloud(4), points(4))
    with pytest.raises(DataError, match="no LiDAR cloud"):
        kept.cloud(1)


def test_one_cloud_serves_every_image_near_it(tmp_path: Path) -> None:
    records = [r for r in drive() if r[0] != "/points" or np.abs(r[1] - START_NS - 55 * MS) % (200 * MS) == 0]
    path = bags.write_bag(tmp_path / "slow", records)
    session = Session(ingest(path, tmp_path / "out", config(time_tolerance_s=0.3, keyframe_distance_m=0.01)).session)
    clouds = [session.cloud(i).tobytes() for i in range(len(session))]
    assert len(session) == 40
    assert len(set(clouds)) == 10
    assert session.cloud(0).tobytes() == session.cloud(1).tobytes() == points(0).tobytes()


def test_a_drive_without_survey_is_spaced_by_its_odometry_and_has_no_poses(recorded: Path, tmp_path: Path) -> None:
    outcome = ingest(recorded, tmp_path, config(labelled=False))
    session = Session(outcome.session)
    check_drive(session, expected_keyframes(), labelled=False)
    assert session.info.frame_id == ""
    assert any("only spaces the keyframes" in notice for notice in outcome.notices)


@pytest.mark.parametrize("how", ["absent", "none"])
def test_without_poses_keyframes_are_spaced_in_time(how: str, tmp_path: Path) -> None:
    records = without(drive(), "/odom") if how == "absent" else drive()
    path = bags.write_bag(tmp_path / "drive", records)
    values = {} if how == "absent" else {"pose_topic": "none"}
    session = Session(ingest(path, tmp_path / "out", config(keyframe_interval_s=0.3, **values)).session)
    check_drive(session, list(range(0, 40, 3)), labelled=False)


def test_images_in_a_hole_of_the_poses_are_dropped(tmp_path: Path) -> None:
    hole = (START_NS + 1010 * MS, START_NS + 2010 * MS)
    records = [r for r in drive() if r[0] != "/odom" or not hole[0] < r[1] < hole[1]]
    path = bags.write_bag(tmp_path / "drive", records)
    session = Session(ingest(path, tmp_path / "out", config(keyframe_distance_m=0.01)).session)
    check_drive(session, [i for i in range(40) if not 10 <= i < 20])
    assert session.info.drops == {"no pose": 10}
    patient = config(keyframe_distance_m=0.01, max_pose_gap_s=1.5)
    assert len(Session(ingest(path, tmp_path / "patient", patient).session)) == 40


def test_poses_are_not_extrapolated(tmp_path: Path) -> None:
    records = [r for r in drive() if r[0] != "/odom" or 1000 <= (r[1] - START_NS) / MS <= 2000]
    session = Session(
        ingest(bags.write_bag(tmp_path / "d", records), tmp_path / "out", config(keyframe_distance_m=0.01)).session
    )
    check_drive(session, list(range(10, 20)))


def test_stamps_out_of_order_are_sorted(tmp_path: Path) -> None:
    records = drive()
    order = np.random.default_rng(3).permutation(len(records))
    shuffled = [(records[j][0], START_NS + k * MS, records[j][2]) for k, j in enumerate(order)]
    outcome = ingest(bags.write_bag(tmp_path / "drive", shuffled), tmp_path / "out", config())
    check_drive(Session(outcome.session), expected_keyframes())
    assert any("/camera: stamps go backwards" in notice for notice in outcome.notices)


def test_messages_without_stamp_take_the_time_of_their_recording(tmp_path: Path) -> None:
    records = drive()
    for topic, _, item in records:
        if topic == "/camera":
            item.header.stamp.sec = item.header.stamp.nanosec = 0
    outcome = ingest(bags.write_bag(tmp_path / "drive", records), tmp_path / "out", config(keyframe_distance_m=0.01))
    assert Session(outcome.session).stamps_ns.tolist() == [START_NS + (52 + 100 * i) * MS for i in range(40)]
    assert any("40 messages have no stamp" in notice for notice in outcome.notices)


def test_what_cannot_be_decoded_is_dropped_and_counted_by_reason(tmp_path: Path) -> None:
    records = drive()
    images = [r[2] for r in records if r[0] == "/camera"]
    clouds = [r[2] for r in records if r[0] == "/points"]
    images[3].encoding = images[5].encoding = "thermal7"
    images[4].height = 77
    clouds[10].data = np.full(50 * 16 // 4, np.nan, dtype=np.float32).view(np.uint8)
    clouds[11].fields[2].name = "height"
    clouds[12].data = np.zeros(50 * 16, dtype=np.uint8)
    padded = bags.image(0, colours(20), pad=13)
    images[20].step, images[20].data = padded.step, padded.data
    outcome = ingest(bags.write_bag(tmp_path / "drive", records), tmp_path / "out", config(keyframe_distance_m=0.01))
    session = Session(outcome.session)
    check_drive(session, [i for i in range(40) if i not in (3, 4, 5, 10, 11, 12)])
    assert session.info.drops == {"undecodable image": 3, "undecodable cloud": 1, "cloud without a finite point": 2}
    assert any("3 times" in n and "unknown encoding 'thermal7'" in n for n in outcome.notices)
    assert any("no field 'z'" in n for n in outcome.notices)


def test_images_alone_stay_where_a_cloud_is_not_required(tmp_path: Path) -> None:
    records = drive()
    for topic, _, item in records:
        if topic == "/points":
            item.data = np.full(50 * 16 // 4, np.nan, dtype=np.float32).view(np.uint8)
    path = bags.write_bag(tmp_path / "drive", records)
    with pytest.raises(DataError, match=r"no keyframe could be read.*nothing but non-finite"):
        ingest(path, tmp_path / "out", config())
    assert not any((tmp_path / "out").iterdir())
    session = Session(ingest(path, tmp_path / "out", config(require_lidar=False)).session)
    assert len(session) == len(expected_keyframes())
    assert not session.has_clouds


def test_no_returns_at_the_sensor_are_removed(tmp_path: Path) -> None:
    records = drive()
    for topic, _, item in records:
        if topic == "/points":
            item.data = np.concatenate([item.data, np.zeros(160, dtype=np.uint8)])
            item.width, item.row_step = 60, 960
    session = Session(ingest(bags.write_bag(tmp_path / "drive", records), tmp_path / "out", config()).session)
    check_drive(session, expected_keyframes())


def test_compressed_images_are_read_and_large_ones_shrunk(tmp_path: Path) -> None:
    import cv2

    records: list[Record] = []
    for topic, stamp, item in drive():
        if topic == "/camera":
            bgr = item.data.reshape(32, 32, 3)[:, :, ::-1]
            data = cv2.imencode(".png", bgr)[1].tobytes()
            records.append((topic, stamp, bags.compressed(stamp - 2 * MS, data, "rgb8; png compressed bgr8")))
        else:
            records.append((topic, stamp, item))
    path = bags.write_bag(tmp_path / "drive", records)
    check_drive(Session(ingest(path, tmp_path / "full", config()).session), expected_keyframes())
    small = Session(ingest(path, tmp_path / "small", config(max_image_side_px=16)).session)
    assert small.image(0).shape == (16, 16, 3)
    assert np.abs(small.image(0).astype(int) - colours(0)[::2, ::2])[:5, :5].max() <= 6


def test_static_transforms_bring_clouds_into_the_base_frame(tmp_path: Path) -> None:
    chain = [
        ("/tf_static", START_NS, bags.static_transform("base_link", "mast", (1.0, 0.0, 2.0), np.pi / 2)),
        ("/tf_static", START_NS, bags.static_transform("mast", "lidar", (0.5, 0.0, 0.0), 0.0)),
    ]
    path = bags.write_bag(tmp_path / "drive", chain + drive(lidar_frame="lidar"))
    session = Session(ingest(path, tmp_path / "out", config()).session)
    # By hand: the mast turns x to y, so that half a metre ahead on it is half a metre to the left of the base.
    x, y, z = points(0).T
    assert np.allclose(session.cloud(0), np.stack([1.0 - y, x + 0.5, z + 2.0], axis=1), atol=1e-5)
    given = Session(ingest(path, tmp_path / "given", config(base_from_lidar=[0, 0, 3, 0, 0, np.pi])).session)
    assert np.allclose(given.cloud(0), np.stack([-x, -y, z + 3.0], axis=1), atol=1e-5)


def test_clouds_of_an_unknown_place_are_refused(tmp_path: Path) -> None:
    path = bags.write_bag(tmp_path / "drive", drive(lidar_frame="lidar"))
    with pytest.raises(DataError, match=r"'lidar'.*'base_link'.*--base_from_lidar"):
        ingest(path, tmp_path / "out", config())


def test_roll_pitch_yaw_turn_about_fixed_axes() -> None:
    turned = find_extrinsic([0, 0, 0, np.pi / 2, 0, np.pi / 2], "a", "b", {}).base_from_lidar[:3, :3]
    assert np.allclose(turned @ [0, 1, 0], [0, 0, 1])  # rolled up, and yaw leaves z
    assert np.allclose(turned @ [1, 0, 0], [0, 1, 0])


def test_topics_that_do_not_fit_are_answered_with_those_that_do(tmp_path: Path) -> None:
    extra = [
        ("/rear", START_NS, bags.image(START_NS, colours(1))),
        ("/survey", START_NS, bags.odometry(START_NS, 0, 0, 0)),
    ]
    path = bags.write_bag(tmp_path / "drive", extra + drive())
    cases = {
        r"2 topics could be the camera: give --camera_topic /camera or --camera_topic /rear": {},
        r"no topic '/camra' \(did you mean '/camera'\?\) in the bag; give --camera_topic /camera": {
            "camera_topic": "/camra"
        },
        r"'/odom' cannot be the lidar: its type is nav_msgs/msg/Odometry; give --lidar_topic /points": {
            "camera_topic": "/camera",
            "lidar_topic": "/odom",
        },
        r"2 topics could be the pose: give --pose_topic /odom or --pose_topic /survey": {"camera_topic": "/camera"},
    }
    for words, values in cases.items():
        with pytest.raises(DataError, match=words):
            ingest(path, tmp_path / "out", config(**values))
    session = Session(ingest(path, tmp_path / "out", config(camera_topic="/camera", pose_topic="/odom")).session)
    check_drive(session, expected_keyframes())


def test_a_bag_without_lidar_needs_to_be_told(tmp_path: Path) -> None:
    path = bags.write_bag(tmp_path / "drive", without(drive(), "/points"))
    with pytest.raises(DataError, match=r"could be the lidar.*--lidar_topic none; the bag has /camera"):
        ingest(path, tmp_path / "out", config())
    session = Session(ingest(path, tmp_path / "out", config(lidar_topic="none")).session)
    assert len(session) == len(expected_keyframes())
    assert not session.has_clouds


def test_clocks_that_disagree_are_told_with_their_distance(tmp_path: Path) -> None:
    records = drive()
    for topic, _, item in records:
        if topic == "/points":
            item.header.stamp.sec -= 1000
    with pytest.raises(DataError, match=r"40 images: no cloud in tolerance; the nearest cloud is 99\d\.\d+ s"):
        ingest(bags.write_bag(tmp_path / "drive", records), tmp_path / "out", config())


def test_poses_that_are_all_unusable_are_told(tmp_path: Path) -> None:
    records = drive()
    for topic, _, item in records:
        if topic == "/odom":
            item.pose.pose.orientation.z = item.pose.pose.orientation.w = 0.0
    with pytest.raises(DataError, match=r"/odom: none of its 205 poses is usable.*quaternion is zero"):
        ingest(bags.write_bag(tmp_path / "drive", records), tmp_path / "out", config())


def test_the_same_bag_again_is_skipped_and_another_is_refused(recorded: Path, tmp_path: Path) -> None:
    first = ingest(recorded, tmp_path, config())
    written = (first.session / "session.json").stat().st_mtime_ns
    again = ingest(recorded, tmp_path, config())
    assert (first.written, again.written) == (True, False)
    assert again.keyframes == first.keyframes
    assert "left as it is" in again.notices[0]
    assert (first.session / "session.json").stat().st_mtime_ns == written
    with pytest.raises(DataError, match="with other settings; remove it, or give another --name"):
        ingest(recorded, tmp_path, config(keyframe_distance_m=2.0))
    other = bags.write_bag(tmp_path / "bags" / "drive", drive(frames=12))
    with pytest.raises(DataError, match="from other files"):
        ingest(other, tmp_path, config())


def test_parts_of_a_bag_are_read_in_their_order_without_metadata(tmp_path: Path) -> None:
    records = drive()
    folder = tmp_path / "drive"
    folder.mkdir()
    bounds = np.linspace(0, len(records), 12).astype(int)
    for i, (start, stop) in enumerate(pairwise(bounds)):
        part = bags.write_bag(tmp_path / f"part{i}", records[start:stop])
        shutil.move(part / f"part{i}.mcap", folder / f"drive_{i}.mcap")
    with Bag(folder) as bag:
        assert [p.name for p in bag.files][-2:] == ["drive_9.mcap", "drive_10.mcap"]
        times = [time for _, time, _ in bag.messages()]
        assert times == sorted(times)
    outcome = ingest(folder, tmp_path / "out", config())
    check_drive(Session(outcome.session), expected_keyframes())
    assert any("no metadata.yaml" in notice for notice in outcome.notices)


def split_bag(path: Path, parts: list[list[Record]], storage: str) -> Path:
    """A bag in several files, as rosbag2 splits one: one folder, one metadata.yaml that names them all."""
    suffix = "mcap" if storage == "mcap" else "db3"
    path.mkdir(parents=True)
    names, topics = [], {}
    for i, records in enumerate(parts):
        part = bags.write_bag(path / f"part{i}", records, storage)
        names.append(f"{path.name}_{i}.{suffix}")
        shutil.move(part / f"part{i}.{suffix}", path / names[-1])
        information = yaml.safe_load((part / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
        for row in information["topics_with_message_count"]:
            known = topics.setdefault(row["topic_metadata"]["name"], {**row, "message_count": 0})
            known["message_count"] += row["message_count"]
        shutil.rmtree(part)
    information["relative_file_paths"] = names
    information["message_count"] = sum(map(len, parts))
    information["topics_with_message_count"] = list(topics.values())
    (path / "metadata.yaml").write_text(yaml.safe_dump({"rosbag2_bagfile_information": information}))
    return path


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("how", ["one after the other", "overlapping", "by topic"])
def test_a_split_bag_is_one_drive(storage: str, how: str, tmp_path: Path) -> None:
    records = drive()
    parts = {
        "one after the other": [records[i : i + 25] for i in range(0, len(records), 25)],
        "overlapping": [records[::2], records[1::2]],
        "by topic": [[r for r in records if r[0] == topic] for topic in ("/points", "/camera", "/odom")],
    }[how]
    path = split_bag(tmp_path / "drive", parts, storage)
    with Bag(path) as bag:
        assert len(bag.files) == len(parts)
        assert bag.message_count == len(records)
        assert [(topic, time) for topic, time, _ in bag.messages()] == sorted(
            ((topic, time) for topic, time, _ in records), key=lambda r: r[1]
        ) or how != "one after the other"
    outcome = ingest(path, tmp_path / "out", config())
    check_drive(Session(outcome.session), expected_keyframes())
    assert [f["name"] for f in outcome.info.sources[0]["files"]] == [p.name for p in bag.files]
    assert not any("metadata" in notice for notice in outcome.notices)
    # What the last files held is lost with them, and said.
    bag.files[-1].unlink()
    notices = ingest_or_error(path, tmp_path / "less")
    assert bag.files[-1].name in notices


def ingest_or_error(path: Path, out: Path) -> str:
    try:
        return " ".join(ingest(path, out, config()).notices)
    except DataError as error:
        with Bag(path) as bag:
            return " ".join([str(error), *bag.notices])


def test_of_a_split_bag_one_file_is_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = drive()
    path = split_bag(tmp_path / "drive", [records[i : i + 25] for i in range(0, len(records), 25)], "mcap")
    open_files: list[Path] = []
    most = 0
    original = McapFile.messages

    def counted(self: McapFile, *arguments: Any) -> Any:
        nonlocal most
        open_files.append(self.path)
        most = max(most, len(open_files))
        yield from original(self, *arguments)
        open_files.remove(self.path)

    monkeypatch.setattr(McapFile, "messages", counted)
    with Bag(path) as bag:
        assert len(list(bag.messages())) == len(records)
        assert len(bag.files) == 12
    assert most <= 2


def test_the_recorders_split_bag_is_one_drive(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "drive", max_file_seconds=1.0) as writer:
        for topic, stamp, item in drive():
            kind = item.__msgtype__
            writer.declare_topic(topic, kind, definition=TypeDefinition(""))
            writer.write(topic, kind, stamp, bytes(bags.STORE.serialize_cdr(item, kind)))
    outcome = ingest(tmp_path / "drive", tmp_path / "out", config())
    assert len(outcome.info.sources[0]["files"]) > 3
    check_drive(Session(outcome.session), expected_keyframes())


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("damage", ["missing", "empty", "not yaml", "of another kind"])
def test_a_bag_with_broken_metadata_is_opened_through_its_file(storage: str, damage: str, tmp_path: Path) -> None:
    path = bags.write_bag(tmp_path / "drive", drive(), storage)
    metadata = path / "metadata.yaml"
    metadata.unlink()
    if damage != "missing":
        metadata.write_text(
            {"empty": "", "not yaml": "a: [", "of another kind": "rosbag2_bagfile_information: 3"}[damage]
        )
    outcome = ingest(path, tmp_path / "out", config())
    check_drive(Session(outcome.session), expected_keyframes())
    assert any("metadata.yaml" in notice for notice in outcome.notices)


def large_drive() -> list[Record]:
    """A drive whose messages fill several chunks."""
    return [
        (topic, stamp, bags.cloud(stamp - 5 * MS, np.tile(item.data.view("<f4").reshape(-1, 4)[:, :3], (200, 1))))
        if topic == "/points"
        else (topic, stamp, item)
        for topic, stamp, item in drive()
    ]


def test_a_truncated_mcap_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = bags.write_bag(tmp_path / "drive", large_drive())
    whole = Session(ingest(path, tmp_path / "whole", config()).session)
    file = path / "drive.mcap"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) * 6 // 10])
    outcome = ingest(path, tmp_path / "cut", config())
    cut = Session(outcome.session)
    assert 0.3 * len(whole) < len(cut) < 0.7 * len(whole)
    assert cut.stamps_ns.tolist() == whole.stamps_ns[: len(cut)].tolist()
    assert all(np.array_equal(cut.cloud(i), whole.cloud(i)) for i in range(len(cut)))
    with Bag(file) as bag:
        readable = bag.message_count
        assert readable == sum(1 for _ in bag.messages())
    notice = next(n for n in outcome.notices if "TRUNCATED" in n)
    assert f"{285 - readable} of 285 messages are lost" in notice
    assert notice in cut.info.sources[0]["notices"]


KILLED_RECORDER = """
import os, signal, sys, time
sys.path[:0] = ["test", "."]
from support.bags import STORE
from test_ingest import drive
from vpr_kd_ros.recording import BagWriter
writer = BagWriter(sys.argv[1], flush_seconds=0.01)
for number, (topic, stamp, item) in enumerate(drive()):
    writer.write(topic, item.__msgtype__, stamp, bytes(STORE.serialize_cdr(item, item.__msgtype__)))
    time.sleep(0.002)
    if number == 200:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_bag_of_a_killed_recorder_is_read(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_RECORDER, str(tmp_path / "drive")]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    outcome = ingest(tmp_path / "drive", tmp_path / "out", config())
    notices = " ".join(outcome.notices)
    assert "no metadata.yaml" in notices
    assert "TRUNCATED MCAP" in notices
    session = Session(outcome.session)
    assert len(session) > 3
    check_drive(session, expected_keyframes()[: len(session)])


def with_checksums(source: Path, target: Path) -> Path:
    """Write the messages of an MCAP file anew, in small chunks with checksums."""
    with target.open("wb") as stream:
        writer = McapWriter(stream, chunk_size=20_000, compression=CompressionType.NONE, enable_crcs=True)
        writer.start(profile="ros2", library="test")
        original = McapFile(source)
        channels = {
            name: writer.register_channel(name, topic.encoding, writer.register_schema(topic.type_name, "ros2msg", b""))
            for name, topic in original.topics.items()
        }
        for topic, time, data in original.messages():
            writer.add_message(channels[topic], time, data, time)
        writer.finish()
    return target


@pytest.mark.parametrize("where", [0.001, 0.5])
def test_a_chunk_with_a_wrong_checksum_is_left_out(where: float, recorded: Path, tmp_path: Path) -> None:
    file = with_checksums(recorded / "drive.mcap", tmp_path / "drive.mcap")
    before = list(McapFile(file).messages())
    assert len(before) == 285
    data = bytearray(file.read_bytes())
    place = data.index(before[int(where * len(before))][2])
    data[place + 20] ^= 0xFF
    file.write_bytes(data)
    damaged = McapFile(file)
    after = list(damaged.messages())
    assert damaged.damage.chunks == 1
    assert damaged.damage.cut_at is None
    lost = [m for m in before if m not in after]
    assert after == [m for m in before if m not in lost]
    assert 0 < sum(len(m[2]) for m in lost) < 40_000
    outcome = ingest(file, tmp_path / "out", config())
    assert any("1 chunk(s) with a wrong checksum" in notice for notice in outcome.notices)


def test_an_empty_mcap_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="an empty bag"):
        ingest(bags.write_bag(tmp_path / "drive", []), tmp_path / "out", config())


def test_a_half_written_sqlite_bag_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sqlite3 bag with 0 messages: half-written.*record to MCAP"):
        ingest(bags.write_bag(tmp_path / "drive", [], "sqlite3"), tmp_path / "out", config())


@pytest.mark.parametrize("how", ["no messages", "empty file", "cut in half", "a log beside it"])
def test_what_is_left_of_a_sqlite_bag_whose_recorder_was_killed_is_named(how: str, tmp_path: Path) -> None:
    path = bags.write_bag(tmp_path / "drive", drive() if how == "cut in half" else [], "sqlite3")
    (path / "metadata.yaml").unlink()
    file = path / "drive.db3"
    if how == "empty file":
        file.write_bytes(b"")
    elif how == "cut in half":
        file.write_bytes(file.read_bytes()[:5000])
    elif how == "a log beside it":
        (path / "drive.db3-wal").write_bytes(b"\x37\x7f\x06\x82" + bytes(5000))
    with pytest.raises(DataError, match=r"half-written.*record to MCAP") as refused:
        ingest(path, tmp_path / "out", config())
    assert ("drive.db3-wal beside it may hold them" in str(refused.value)) == (how == "a log beside it")


def test_what_is_no_bag_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("notes")
    for name in ("rubbish.mcap", "rubbish.db3", "rubbish.bag", "empty.mcap", "empty.db3", "empty.bag"):
        (tmp_path / name).write_bytes(b"" if "empty" in name else b"no bag at all" * 20)
    cases = {
        "nowhere": "there is no such bag",
        "folder": "not a bag; it holds no .mcap",
        "notes.txt": "not a bag; wants a folder of rosbag2 or a file",
        "rubbish.mcap": "not an MCAP file",
        "empty.mcap": "an empty bag",
        "rubbish.db3": "not a readable bag",
        "empty.db3": "not a readable bag",
        "rubbish.bag": "not a readable bag",
        "empty.bag": "not a readable bag",
    }
    for name, words in cases.items():
        with pytest.raises(DataError, match=f"{name}: {words}"):
            ingest(tmp_path / name, tmp_path / "out", config())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["mcap", "db3", "bag"])
def test_damage_anywhere_ends_in_a_session_or_in_an_error_that_says_why(kind: str, tmp_path: Path) -> None:
    if kind == "bag":
        file = bag1(tmp_path / "drive.bag", drive(8))
    else:
        folder = bags.write_bag(tmp_path / "drive", drive(8), "mcap" if kind == "mcap" else "sqlite3")
        file = next(folder.glob(f"*.{kind}"))
    whole = file.read_bytes()
    rng = np.random.default_rng(11)
    read = 0
    for trial in range(40):
        data = bytearray(whole)
        if trial % 2:
            data = data[: rng.integers(0, len(data))]
        else:
            for place in rng.integers(0, len(data), 1 + trial):
                data[place] = rng.integers(0, 256)
        damaged = tmp_path / f"damaged{trial}.{kind}"
        damaged.write_bytes(data)
        try:
            outcome = ingest(damaged, tmp_path / "out", config(keyframe_distance_m=0.01))
        except VprError:
            continue
        else:
            assert len(Session(outcome.session)) == outcome.keyframes > 0
            read += 1
    assert not list((tmp_path / "out").glob(".*"))
    assert read >= 3


def test_memory_does_not_grow_with_the_bag(tmp_path: Path) -> None:
    def peak_mb(frames: int) -> float:
        records = drive(frames)
        picture = np.zeros((200, 300, 3), dtype=np.uint8)
        large: list[Record] = [
            (t, s, bags.image(s - 2 * MS, picture) if t == "/camera" else item) for t, s, item in records
        ]
        path = bags.write_bag(tmp_path / f"bag{frames}", large)
        del records, large
        tracemalloc.start()
        ingest(path, tmp_path / "out", config(keyframe_distance_m=0.01))
        peak = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        return peak

    peak_mb(10)  # imports
    short, long = peak_mb(60), peak_mb(150)
    assert long < short + 2.0  # 90 more images are 16 MB


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "training", "ingest", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_command_reads_a_configuration_and_prints_the_report(recorded: Path, tmp_path: Path) -> None:
    settings_file = tmp_path / "ingest.yaml"
    settings_file.write_text("region: town\nkeyframe_distance_m: 0.01\nlabelled: false\n")
    done = run("--config", str(settings_file), "--out", str(tmp_path / "out"), "--name", "first", str(recorded))
    assert done.returncode == 0, done.stderr
    assert "first: 40 keyframes" in done.stdout
    assert len(Session(tmp_path / "out" / "first")) == 40


def test_the_command_tells_errors_without_a_traceback(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["ingest", str(recorded), "--out", str(tmp_path), "--region", "town"]
    assert main([*arguments, "--camera_topic", "/front"]) == 1
    assert "give --camera_topic /camera" in capsys.readouterr().err
    assert main(["ingest", str(recorded), *arguments[1:], "--name", "one"]) == 1
    assert "--name one is given for 2 bags" in capsys.readouterr().err


def test_the_example_configuration_is_the_defaults() -> None:
    example = yaml.safe_load((ROOT / "config" / "ingest.yaml").read_text())
    assert example.pop("per_bag") == {}
    assert IngestConfig(**example) == IngestConfig(region=example["region"])
    assert set(example) == set(IngestConfig.__dataclass_fields__)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"keyframe_distance_m": 0.0}, "keyframe_distance_m is 0.0"),
        ({"max_pose_gap_s": float("nan")}, "max_pose_gap_s is nan"),
        ({"time_tolerance_s": -1.0}, "time_tolerance_s is -1.0"),
        ({"base_from_lidar": [0.0, 1.0]}, "base_from_lidar has 2 numbers"),
        ({"max_image_side_px": 3}, "max_image_side_px is 3"),
        ({"region": " "}, "region is empty"),
        ({"name": "a/b"}, "name 'a/b'"),
        ({"camera_topic": "none"}, "camera_topic is none"),
    ],
)
def test_values_out_of_range_are_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config(**values)


@settings(max_examples=100, deadline=None)
@given(
    times=st.lists(st.integers(-50, 50), max_size=10),
    stamps=st.lists(st.integers(-50, 50), min_size=1, max_size=10),
)
def test_nearest_is_the_nearest(times: list[int], stamps: list[int]) -> None:
    ordered = sorted(stamps)
    found = nearest(np.array(times, dtype=np.int64), np.array(ordered, dtype=np.int64))
    for time, index in zip(times, found.tolist(), strict=True):
        assert abs(time - ordered[index]) == min(abs(time - s) for s in ordered)


@settings(max_examples=100, deadline=None)
@given(steps=st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1), st.floats(-2, 2)), max_size=30))
def test_keyframes_are_apart_and_nothing_far_is_left_out(steps: list[tuple[float, float, float]]) -> None:
    path = np.cumsum(np.array(steps).reshape(-1, 3), axis=0)
    positions, yaws = path * [1, 1, 0], path[:, 2]
    kept = set(spaced_in_place(positions, yaws, 0.8, 0.5).tolist())
    last = None
    for i in range(len(path)):
        turned = 0.0 if last is None else abs(np.angle(np.exp(1j * (yaws[i] - yaws[last]))))
        moved = 0.0 if last is None else np.hypot(*(positions[i] - positions[last])[:2])
        if abs(moved - 0.8) < 1e-9 or abs(turned - 0.5) < 1e-9:
            return  # on the border rounding decides
        assert (i in kept) == (last is None or moved > 0.8 or turned > 0.5)
        last = i if i in kept else last


@settings(max_examples=100, deadline=None)
@given(stamps=st.lists(st.integers(0, 100), max_size=30), interval=st.integers(1, 20))
def test_keyframes_in_time_are_as_a_loop_takes_them(stamps: list[int], interval: int) -> None:
    ordered = sorted(stamps)
    taken: list[int] = []
    for i, stamp in enumerate(ordered):
        if not taken or stamp - ordered[taken[-1]] >= interval:
            taken.append(i)
    assert spaced_in_time(np.array(ordered, dtype=np.int64), interval).tolist() == taken


def test_outcomes_hold_plain_json(recorded: Path, tmp_path: Path) -> None:
    outcome: Outcome = ingest(recorded, tmp_path, config())
    values = json.loads((outcome.session / "session.json").read_text())
    assert values["calibration"]["base_from_lidar"] == np.eye(4).tolist()
    assert values["sources"][0]["settings"]["keyframe_distance_m"] == 1.0
