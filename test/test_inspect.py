"""What inspect says of a bag is so, and the command that it gives works."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest

from support import bags
from support.bags import START_NS, Record, fix
from training.__main__ import main
from training.ingest.bag import Bag
from training.ingest.inspect import inspect
from training.sessions import Session
from vpr_kd_ros.recording import BagWriter

MS = 1_000_000


def records(lidar_frame: str = "base_link", lidar_delay_ms: int = 5) -> list[Record]:
    """Three seconds at 10 Hz, recorded 2 ms after the stamp, one second of LiDAR missing."""
    found: list[Record] = []
    picture = np.full((24, 32, 3), 99, dtype=np.uint8)
    points = np.ones((7, 3), dtype=np.float32)
    for i in range(30):
        stamp = START_NS + i * 100 * MS
        late = stamp + lidar_delay_ms * MS
        found.append(("/camera", stamp + 2 * MS, bags.image(stamp, picture)))
        found.append(("/odom", stamp + 2 * MS, bags.odometry(stamp, 2.0 * i, 0.0, 0.0)))
        if not 10 <= i < 20:
            found.append(("/points", late + 2 * MS, bags.cloud(late, points, lidar_frame)))
    return sorted(found, key=lambda r: r[1])


def text_of(path: Path) -> str:
    with Bag(path) as bag:
        return inspect(bag)


def follow(text: str, output: Path, **replaced: str) -> int:
    """Run the command that the text ends with, its blanks filled in."""
    words = shlex.split(text.splitlines()[-1])
    assert words[:4] == ["python", "-m", "training", "ingest"]
    filled = {"REGION": "town", "CONDITION": "rain", "sessions/train": str(output), **replaced}
    return main([filled.get(word, word) for word in words[3:]])


def test_a_bag_that_is_fit_for_training(tmp_path: Path) -> None:
    text = text_of(bags.write_bag(tmp_path / "drive", records()))
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith("  /")}
    assert rows["/camera"] == ["sensor_msgs/msg/Image", "30", "10.0", "0.10", "-0.002"]
    assert rows["/points"] == ["sensor_msgs/msg/PointCloud2", "20", "10.0", "1.10", "-0.002"]
    assert "/camera, 32x24 rgb8, frame 'camera'" in text
    assert "/points, 7 points of x y z intensity, frame 'base_link'" in text
    assert "/odom, frame 'map', of 'base_link'" in text
    assert "if /odom is not surveyed but drifts, add --labelled false" in text
    assert ", 2.9 s, 80 messages" in text
    assert follow(text, tmp_path / "out") == 0
    session = Session(tmp_path / "out" / "drive")
    assert (len(session), session.labelled, session.condition) == (20, True, "rain")


def test_what_the_recorder_noted_is_told(tmp_path: Path) -> None:
    image = bags.image(START_NS, np.full((24, 32, 3), 99, dtype=np.uint8))
    with BagWriter(tmp_path / "drive") as writer:
        writer.custom["lost /camera"] = "17"
        writer.write("/camera", image.__msgtype__, START_NS, bytes(bags.STORE.serialize_cdr(image, image.__msgtype__)))
    assert "the recorder noted: lost /camera: 17" in text_of(tmp_path / "drive").splitlines()
    metadata = tmp_path / "drive" / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace("custom_data:", "custom_data: nothing\n  other:"))
    assert "the recorder noted" not in text_of(tmp_path / "drive")


def test_a_bag_without_lidar_and_poses(tmp_path: Path) -> None:
    text = text_of(bags.write_bag(tmp_path / "drive", [r for r in records() if r[0] == "/camera"]))
    assert "no LiDAR topic" in text
    assert "no pose topic" in text
    assert follow(text, tmp_path / "out") == 0
    assert len(Session(tmp_path / "out" / "drive")) == 6


def test_several_topics_and_a_slow_lidar(tmp_path: Path) -> None:
    rear = [("/rear", stamp, item) for topic, stamp, item in records()[:9] if topic == "/camera"]
    slow = [r for r in records() if r[0] != "/points" or (r[1] - START_NS) // (100 * MS) % 4 == 0]
    text = text_of(bags.write_bag(tmp_path / "drive", rear + slow))
    assert "/camera is taken as the camera; there is also /rear" in text
    assert "--camera_topic /camera --time_tolerance_s 0.24" in text
    assert follow(text, tmp_path / "out") == 0
    session = Session(tmp_path / "out" / "drive")
    assert session.info.topics["camera"] == "/camera"
    assert max(map(abs, session.info.offsets_ms)) > 200


def test_a_lidar_of_an_unknown_place(tmp_path: Path) -> None:
    text = text_of(bags.write_bag(tmp_path / "drive", records(lidar_frame="lidar")))
    assert "do not join them" in text
    assert follow(text, tmp_path / "out", **{"[X, Y, Z, ROLL, PITCH, YAW]": "[0, 0, 1, 0, 0, 0]"}) == 0
    assert np.allclose(Session(tmp_path / "out" / "drive").cloud(0), [1, 1, 2])


def test_clocks_that_disagree_and_pictures_that_cannot_be_read(tmp_path: Path) -> None:
    broken = records(lidar_delay_ms=100_000)
    for topic, _, item in broken:
        if topic == "/camera":
            item.encoding = "thermal7"
            item.header.stamp.sec = item.header.stamp.nanosec = 0
    text = text_of(bags.write_bag(tmp_path / "drive", broken))
    assert "the clocks disagree" in text
    assert "its first message cannot be used: image: unknown encoding 'thermal7'" in text
    assert "/camera: 30 messages have no stamp" in text


def test_a_bag_that_is_no_drive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = bags.write_bag(tmp_path / "drive", [("/odom", START_NS, bags.odometry(START_NS, 0, 0, 0))])
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert "no camera topic: nothing can be ingested" in text
    assert "python -m training ingest" not in text
    assert main(["inspect", str(tmp_path / "nowhere")]) == 1
    assert "there is no such bag" in capsys.readouterr().err


def test_a_truncated_bag(tmp_path: Path) -> None:
    long = [r for i in range(8) for r in [(t, s + i * 3000 * MS, m) for t, s, m in records()]]
    large = [
        (t, s, bags.image(s, np.zeros((200, 300, 3), dtype=np.uint8))) if t == "/camera" else (t, s, m)
        for t, s, m in long
    ]
    file = bags.write_bag(tmp_path / "drive", large) / "drive.mcap"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert "NOTICE" in (text := text_of(file))
    assert "TRUNCATED MCAP" in text


def moving(stamp_ns: int, parent: str, child: str, x: float) -> Record:
    item = bags.static_transform(parent, child, (x, 0.0, 0.0), 0.0)
    item.transforms[0].header = bags.header(stamp_ns, parent)
    return ("/tf", stamp_ns, item)


@pytest.mark.parametrize("map_frame", ["map", "odom"])
def test_poses_of_transforms_are_suggested_where_no_topic_has_them(map_frame: str, tmp_path: Path) -> None:
    found = [r for r in records() if r[0] != "/odom"]
    found += [moving(START_NS + i * 50 * MS, map_frame, "base_footprint", 1.0 * i) for i in range(60)]
    found.append(("/tf_static", START_NS, bags.static_transform("base_footprint", "base_link", (0.0, 0.0, 0.3), 0.0)))
    text = text_of(bags.write_bag(tmp_path / "drive", sorted(found, key=lambda r: r[1])))
    assert f"--pose_topic tf --map_frame {map_frame} --base_frame base_link" in text.splitlines()[-1]
    assert "no pose topic" not in text
    assert follow(text, tmp_path / "out") == 0
    session = Session(tmp_path / "out" / "drive")
    assert session.labelled is (map_frame == "map")
    assert len(session) == 20


def test_transforms_are_named_beside_odometry_and_not_where_they_stand_still(tmp_path: Path) -> None:
    moved = [moving(START_NS + i * 50 * MS, "map", "base_link", 1.0 * i) for i in range(60)]
    text = text_of(bags.write_bag(tmp_path / "drive", sorted(records() + moved, key=lambda r: r[1])))
    assert "the transforms lead from 'map' to 'base_link': --pose_topic tf" in text
    assert "--pose_topic" not in text.splitlines()[-1]
    still = [("/tf_static", START_NS, bags.static_transform("map", "base_link", (0.0, 0.0, 0.3), 0.0))]
    text = text_of(bags.write_bag(tmp_path / "still", still + [r for r in records() if r[0] != "/odom"]))
    assert "no pose topic" in text
    assert "tf" not in text.splitlines()[-1]


def test_a_half_written_sqlite_bag_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = bags.write_bag(tmp_path / "drive", [], "sqlite3")
    assert main(["inspect", str(path)]) == 1
    assert "an sqlite3 bag with 0 messages: half-written" in capsys.readouterr().err


@pytest.mark.parametrize(("hertz", "wider"), [(1, "1.50"), (2, "0.75"), (5, None)])
def test_a_slow_gps_is_bridged_by_the_command_that_follows(hertz: int, wider: str | None, tmp_path: Path) -> None:
    drive = [r for r in records() if r[0] != "/odom"]
    for i in range(3 * hertz + 1):
        stamp = START_NS - 50 * MS + i * 1000 * MS // hertz
        drive.append(("/fix", stamp, fix(stamp, 48.0 + 2e-4 * i / hertz, 11.0, 500.0)))
    text = text_of(bags.write_bag(tmp_path / "drive", sorted(drive, key=lambda r: r[1])))
    assert ("--max_pose_gap_s" in text.splitlines()[-1]) == (wider is not None)
    if wider is not None:
        assert f"--max_pose_gap_s {wider}" in text
        assert f"/fix comes every {1 / hertz:.2f} s" in text
    assert follow(text, tmp_path / "out") == 0
    assert len(Session(tmp_path / "out" / "drive")) == 20
