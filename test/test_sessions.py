"""Sessions hold what was written, and what is broken about one is said."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.sessions import RADIUS_M, loop_session
from training.sessions import SCHEMA, Session, SessionInfo, SessionWriter, load_sessions
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.geometry import Pose

ROOT = Path(__file__).parent.parent
INFO = SessionInfo(
    name="harbour-rain",
    region="harbour",
    condition="rain",
    frame_id="map",
    sources=[{"bag": "drive", "bytes": 12}],
    topics={"camera": "/camera"},
    calibration={"k": [1.0, 2.0]},
)
GREY = np.full((8, 12, 3), 90, dtype=np.uint8)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return loop_session(tmp_path / "loop", "loop", "town", frames=5, seed=1)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    stamps = [1_700_000_000_123_456_789, 1_700_000_000_123_456_790, 5]
    clouds = [rng.normal(size=(m, 3)).astype(np.float32) for m in (4, 0, 9)]
    images = [np.kron(rng.integers(0, 256, (1, 2, 3)), np.ones((16, 16, 1))).astype(np.uint8) for _ in stamps]
    labels = rng.integers(0, 6, (16, 32), dtype=np.uint8)
    poses = [Pose.planar(1.5, -2.25, yaw, z=0.125) for yaw in (0.1, -3.0, 3.0)]
    with SessionWriter(tmp_path / "s", INFO) as writer:
        for i, stamp in enumerate(stamps):
            writer.add(stamp, images[i], clouds[i], stamp + 7, poses[i], labels if i == 1 else None)
        assert len(writer) == 3
        writer.note({"no cloud": 2}, [1.5, -0.25])
    session = Session(tmp_path / "s")
    assert session.stamps_ns.dtype == np.int64
    assert session.stamps_ns.tolist() == stamps
    assert pq.read_table(tmp_path / "s" / "keyframes.parquet")["cloud_stamp_ns"].to_pylist() == [s + 7 for s in stamps]
    for i, pose in enumerate(poses):
        assert np.array_equal(session.cloud(i), clouds[i])
        # Away from the seam of the two colours, which JPEG blurs.
        assert np.abs(session.image(i).astype(int) - images[i])[:, [*range(12), *range(20, 32)]].max() <= 4
        assert np.array_equal(session.pose(i).position, pose.position)
        assert np.array_equal(session.pose(i).quaternion, pose.quaternion)
    assert np.allclose(session.yaws, [0.1, -3.0, 3.0])
    assert session.semantics(0) is None
    assert np.array_equal(session.semantics(1), labels)
    assert session.labelled
    assert session.has_clouds
    assert session.info == SessionInfo(**{**vars(INFO), "drops": {"no cloud": 2}, "offsets_ms": [1.5, -0.25]})
    assert (session.name, session.region, session.condition, len(session)) == ("harbour-rain", "harbour", "rain", 3)


def test_images_are_rgb_and_contiguous(tmp_path: Path) -> None:
    red = np.zeros((16, 16, 3), dtype=np.uint8)
    red[:, :, 0] = 200
    with SessionWriter(tmp_path / "s", INFO) as writer:
        writer.add(1, red)
    stored = cv2.imread(str(tmp_path / "s" / "images" / "000000.jpg"))
    assert stored[0, 0, 2] > 190  # OpenCV's order is BGR
    image = Session(tmp_path / "s").image(0)
    assert image[0, 0, 0] > 190
    assert image.flags.c_contiguous


def test_a_session_without_poses_is_unlabelled(tmp_path: Path) -> None:
    session = loop_session(tmp_path / "s", "s", "town", frames=3, seed=0, labelled=False, clouds=False)
    assert not session.labelled
    assert not session.has_clouds
    assert session.pose(0) is None
    assert np.isnan(session.positions).all()
    assert np.isnan(session.yaws).all()
    assert session.info.frame_id == ""
    assert not (tmp_path / "s" / "clouds").exists()
    with pytest.raises(DataError, match="keyframe 1 has no LiDAR cloud"):
        session.cloud(1)


def test_a_labelled_session_has_positions_in_metres(session: Session) -> None:
    assert session.labelled
    assert np.allclose(np.linalg.norm(session.positions[:, :2], axis=1), RADIUS_M)


def test_an_empty_session_has_neither_poses_nor_clouds(tmp_path: Path) -> None:
    with SessionWriter(tmp_path / "s", INFO):
        pass
    session = Session(tmp_path / "s")
    assert len(session) == 0
    assert not session.labelled
    assert not session.has_clouds


def write(path: Path, poses: list[Pose | None], failure: type[Exception] | None = None) -> None:
    with SessionWriter(path, INFO) as writer:
        for i, pose in enumerate(poses):
            writer.add(i, GREY, pose=pose)
        if failure is not None:
            raise failure


def test_some_poses_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 of 2 keyframes have poses"):
        write(tmp_path / "out" / "s", [Pose.planar(0, 0, 0), None])
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("failure", [KeyError, KeyboardInterrupt])
def test_an_error_while_writing_leaves_nothing(failure: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(failure):
        write(tmp_path / "out" / "s", [None], failure)
    assert not list((tmp_path / "out").iterdir())


def test_poses_and_clouds_that_cannot_be_right_are_refused(tmp_path: Path) -> None:
    with SessionWriter(tmp_path / "s", INFO) as writer:
        with pytest.raises(DataError, match="pose of keyframe 000000 is not finite"):
            writer.add(1, GREY, pose=Pose.planar(np.nan, 0, 0))
        with pytest.raises(DataError, match=r"shape \(3, 4\)"):
            writer.add(1, GREY, cloud=np.zeros((3, 4), dtype=np.float32))


def test_an_existing_folder_is_not_touched(session: Session) -> None:
    with pytest.raises(DataError, match="exists already"):
        SessionWriter(session.path, INFO)
    assert len(Session(session.path)) == 5


def test_a_killed_writer_leaves_no_session(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, numpy as np\n"
        "from training.sessions import SessionInfo, SessionWriter\n"
        "with SessionWriter(sys.argv[1], SessionInfo('s', 'r')) as writer:\n"
        "    writer.add(1, np.zeros((8, 8, 3), np.uint8))\n"
        "    os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [p.name[:3] for p in tmp_path.iterdir()] == [".s."]
    with pytest.raises(DataError, match="holds no session"):
        load_sessions([tmp_path])
    loop_session(tmp_path / "s", "s", "r", frames=1, seed=0)
    assert [s.name for s in load_sessions([tmp_path])] == ["s"]


def test_sessions_are_found_one_by_one_and_by_folder(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        loop_session(tmp_path / "all" / name, name, "town", frames=1, seed=0)
    (tmp_path / "all" / "notes").mkdir()
    assert [s.name for s in load_sessions([tmp_path / "all"])] == ["a", "b", "c"]
    assert [s.name for s in load_sessions([tmp_path / "all" / "c", str(tmp_path / "all" / "a")])] == ["c", "a"]
    with pytest.raises(DataError, match="both sessions are named 'a'"):
        load_sessions([tmp_path / "all", tmp_path / "all" / "a"])
    with pytest.raises(DataError, match="nowhere: holds no session"):
        load_sessions([tmp_path / "nowhere"])


def rewrite_info(session: Session, **values: object) -> None:
    path = session.path / "session.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_what_is_no_session_is_named(session: Session, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no session\.json"):
        Session(tmp_path)
    rewrite_info(session, schema=SCHEMA + 1)
    with pytest.raises(DataError, match=f"schema {SCHEMA + 1}; this version reads up to {SCHEMA}"):
        Session(session.path)
    rewrite_info(session, schema=SCHEMA, colour="red")
    with pytest.raises(DataError, match="wants the keys"):
        Session(session.path)
    for text in ("[]", "{", "\xff", ""):
        (session.path / "session.json").write_text(text, encoding="latin-1")
        with pytest.raises(DataError, match=r"session\.json"):
            Session(session.path)


def test_broken_tables_are_named(session: Session) -> None:
    path = session.path / "keyframes.parquet"
    table = pq.read_table(path)
    names = pa.array(["x"] * len(table))
    cases = {
        r"lacks the columns \['x', 'cloud'\]": table.drop_columns(["x", "cloud"]),
        "no stamp or no image": table.set_column(10 - 1, "image", pa.array([None] * len(table), pa.string())),
        "not a readable keyframe table": table.set_column(2, "x", names),
    }
    for words, broken in cases.items():
        pq.write_table(broken, path)
        with pytest.raises(DataError, match=words):
            Session(session.path)
    path.unlink()
    with pytest.raises(DataError, match=r"keyframes\.parquet"):
        Session(session.path)


def test_broken_images_and_clouds_are_named(session: Session) -> None:
    (session.path / "images" / "000001.jpg").write_bytes(b"no jpeg")
    (session.path / "images" / "000002.jpg").unlink()
    for index in (1, 2):
        with pytest.raises(DataError, match=rf"00000{index}\.jpg: not a readable image \(keyframe {index}"):
            session.image(index)
    cloud = session.path / "clouds" / "000001.npz"
    whole = cloud.read_bytes()
    np.save(cloud.with_suffix(".npy"), np.zeros((3, 3)))
    for content in (b"", b"no archive", whole[: len(whole) // 2], cloud.with_suffix(".npy").read_bytes()):
        cloud.write_bytes(content)
        with pytest.raises(DataError, match=r"000001\.npz: not a readable cloud"):
            session.cloud(1)
    for points in (np.array(["text"]), np.array([{}], dtype=object)):
        np.savez(cloud, points=points)
        with pytest.raises(DataError, match="not a readable cloud"):
            session.cloud(1)
    np.savez(cloud, points=np.zeros((3, 4)))
    with pytest.raises(DataError, match=r"shape \(3, 4\), wants \(M, 3\)"):
        session.cloud(1)
    np.savez(cloud, other=np.zeros((3, 3)))
    with pytest.raises(DataError, match=r"wants an \.npz with 'points'"):
        session.cloud(1)
    cloud.unlink()
    with pytest.raises(DataError, match=r"000001\.npz"):
        session.cloud(1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return loop_session(tmp_path_factory.mktemp("whole") / "loop", "loop", "town", frames=2, seed=1)


@settings(max_examples=120, deadline=None)
@given(
    file=st.sampled_from(["session.json", "keyframes.parquet", "clouds/000000.npz"]),
    cut=st.booleans(),
    where=st.floats(0, 1, exclude_max=True),
    byte=st.integers(1, 255),
)
def test_damage_is_an_error_that_names_the_folder(
    whole: Session, tmp_path_factory: pytest.TempPathFactory, file: str, cut: bool, where: float, byte: int
) -> None:
    folder = tmp_path_factory.mktemp("damaged") / "loop"
    shutil.copytree(whole.path, folder)
    data = bytearray((folder / file).read_bytes())
    place = int(where * len(data))
    if cut:
        del data[place:]
    else:
        data[place] ^= byte
    (folder / file).write_bytes(data)
    try:
        session = Session(folder)
        cloud = session.cloud(0)
    except DataError as error:
        assert str(folder) in str(error)  # noqa: PT017
        return
    if file.startswith("clouds"):
        # A byte that the archive's checksum does not cover may have changed, none of the points.
        assert np.array_equal(cloud, whole.cloud(0))
        assert zipfile.is_zipfile(folder / file)
