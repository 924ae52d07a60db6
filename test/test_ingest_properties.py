"""Bags whose messages or files are damaged at random: an error that says why, a counted drop, or what was recorded."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rosbags.rosbag2 import StoragePlugin, Writer

from support import bags
from support.bags import START_NS, STORE
from support.ingested import ingest
from training.__main__ import main
from training.ingest.bag import Bag
from training.ingest.config import IngestConfig
from training.ingest.inspect import inspect
from training.ingest.recover import recover
from training.sessions import Session
from vpr_kd_ros.errors import VprError
from vpr_kd_ros.recording import BagWriter, TypeDefinition

MS = 1_000_000
FRAMES = 6
T = TypeVar("T")
Raw = tuple[str, str, int, bytes]
"""Topic, type, time of recording (ns), serialized message."""
FLAT = [np.full((16, 24, 3), 40 * i + 20, dtype=np.uint8) for i in range(FRAMES)]
CONFIG = IngestConfig(region="town", keyframe_distance_m=0.5, max_pose_gap_s=1.0)


def drive() -> list[Raw]:
    """Six images, each with its cloud and its pose, and a static transform."""
    found = []
    for i in range(FRAMES):
        stamp = START_NS + i * 100 * MS
        points = np.full((9, 3), 1.0 + i, dtype=np.float32)
        found.append(("/odom", stamp, bags.odometry(stamp, 2.0 * i, 0.0, 0.0)))
        found.append(("/camera", stamp + MS, bags.image(stamp, FLAT[i], pad=3)))
        found.append(("/points", stamp + 2 * MS, bags.cloud(stamp, points)))
    found.append(("/tf_static", START_NS, bags.static_transform("base_link", "camera", (1.0, 0.0, 0.0), 0.0)))
    return [(t, m.__msgtype__, s, bytes(STORE.serialize_cdr(m, m.__msgtype__))) for t, s, m in found]


DRIVE = drive()
changes = st.lists(
    st.tuples(
        st.integers(0, len(DRIVE) - 1),
        st.sampled_from(["flip", "cut", "extend", "swap"]),
        st.integers(0, 2000),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=6,
)


def changed(drive: list[Raw], how: list[tuple[int, str, int, int]]) -> tuple[list[Raw], set[int]]:
    """The drive with some messages damaged, and the numbers of those."""
    records = list(drive)
    for number, kind, place, value in how:
        topic, type_name, stamp, data = records[number]
        damaged = bytearray(data)
        if kind == "flip" and damaged:
            damaged[place % len(damaged)] ^= value
        elif kind == "cut":
            damaged = damaged[: place % (len(damaged) + 1)]
        elif kind == "extend":
            damaged += bytes([value]) * (place % 50)
        elif kind == "swap":  # the bytes of a message of another type
            damaged = bytearray(drive[place % len(drive)][3])
        records[number] = (topic, type_name, stamp, bytes(damaged))
    return records, {number for number, *_ in how}


def write(path: Path, records: list[Raw], storage: str) -> Path:
    if storage == "recorder":
        with BagWriter(path, chunk_bytes=2000, wait_for_disk=True) as writer:
            for topic, kind, stamp, data in records:
                writer.declare_topic(topic, kind, definition=TypeDefinition(""))
                writer.write(topic, kind, stamp, data)
        return path
    connections: dict[str, Any] = {}
    with Writer(path, version=9, storage_plugin=StoragePlugin[storage.upper()]) as writer:
        for topic, kind, stamp, data in records:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            writer.write(connections[topic], stamp, data)
    return path


def attempted(call: Callable[[], T]) -> T | None:
    """What came of the call, None where it ended in an error that a user is told; anything else fails the test."""
    try:
        return call()
    except VprError:
        return None


def check_keyframes(session: Session, damaged: set[int]) -> None:
    """Keyframes of whole messages show what was recorded."""
    for k, stamp in enumerate(session.stamps_ns.tolist()):
        i, rest = divmod(stamp - START_NS, 100 * MS)
        if rest or not 0 <= i < FRAMES or damaged & {3 * i, 3 * i + 1, 3 * i + 2}:
            continue
        assert np.abs(session.image(k).astype(int) - FLAT[i]).max() <= 2
        assert np.array_equal(session.cloud(k), np.full((9, 3), 1.0 + i, np.float32))
        if session.labelled and all(n % 3 for n in damaged if n < 3 * FRAMES):
            assert np.allclose(session.positions[k], [2.0 * i, 0.0, 0.5], atol=1e-9)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(how=changes, storage=st.sampled_from(["recorder", "mcap", "sqlite3"]))
@example(how=[(2, "swap", 1, 0)], storage="recorder")  # a first cloud that names the camera's frame
def test_damaged_messages_are_refused_or_dropped_and_counted(
    how: list[tuple[int, str, int, int]], storage: str
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="vpr_kd_ros"))
    try:
        records, damaged = changed(DRIVE, how)
        path = write(folder / "drive", records, storage)
        with Bag(path) as bag:
            assert inspect(bag)
        outcome = attempted(lambda: ingest(path, folder / "out", CONFIG))
        if outcome is None:
            assert not (folder / "out").exists() or not any((folder / "out").iterdir())
            return
        session = Session(outcome.session)
        assert len(session) + sum(session.info.drops.values()) == FRAMES
        assert np.isfinite(session.positions).all()
        check_keyframes(session, damaged)
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Bytes of whole bags: of the recorder, whose chunks have checksums, and of sqlite3."""
    folder = tmp_path_factory.mktemp("files")
    recorded = write(folder / "drive", DRIVE, "recorder") / "drive_0.mcap"
    stored = write(folder / "stored", DRIVE, "sqlite3") / "stored.db3"
    return {"mcap": recorded.read_bytes(), "db3": stored.read_bytes()}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from(["mcap", "mcap", "db3"]),
    cut=st.none() | st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4),
)
@example(kind="mcap", cut=None, flips=[(0.9210994548808277, 1)])  # an index of messages far behind the end of the file
def test_damaged_files_give_nothing_that_was_not_recorded(
    kind: str, cut: float | None, flips: list[tuple[float, int]], files: dict[str, bytes]
) -> None:
    data = bytearray(files[kind])
    for place, value in flips:
        data[int(place * len(data))] ^= value
    data = data if cut is None else data[: int(cut * len(data))]
    folder = Path(tempfile.mkdtemp(prefix="vpr_kd_ros"))
    try:
        (folder / f"drive.{kind}").write_bytes(data)
        outcome = attempted(lambda: ingest(folder / f"drive.{kind}", folder / "out", CONFIG))
        if outcome is None:
            return
        session = Session(outcome.session)
        assert 0 < len(session) <= (FRAMES if kind == "mcap" else len(session))
        if kind == "mcap":  # sqlite3 has no checksums: what is wrong in it may look right
            stamps = set(session.stamps_ns.tolist())
            assert stamps <= {START_NS + i * 100 * MS for i in range(FRAMES)}
            check_keyframes(session, set())
    finally:
        shutil.rmtree(folder)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=3),
)
def test_recover_brings_back_only_what_was_recorded(
    cut: float, flips: list[tuple[float, int]], files: dict[str, bytes]
) -> None:
    data = bytearray(files["mcap"])
    for place, value in flips:
        data[int(place * len(data))] ^= value
    folder = Path(tempfile.mkdtemp(prefix="vpr_kd_ros"))
    try:
        (folder / "drive.mcap").write_bytes(data[: int(cut * len(data)) if cut > 0.3 else len(data)])
        found = attempted(lambda: recover(folder / "drive.mcap", folder / "new"))
        if found is None:
            return
        with Bag(folder / "new") as bag:
            read = list(bag.messages())
        assert len(read) == sum(found.written.values())
        assert {data for *_, data in read} <= {data for *_, data in DRIVE}
    finally:
        shutil.rmtree(folder)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    topics=st.lists(
        st.tuples(
            st.sampled_from(["/a", "/b", "/tf", "/tf_static", "/camera"]),
            st.sampled_from(sorted({kind for _, kind, _, _ in DRIVE}) + ["std_msgs/msg/String", "nav_msgs/msg/Path"]),
            st.integers(0, 2**62),
            st.binary(max_size=80),
        ),
        min_size=1,
        max_size=8,
        unique_by=lambda message: message[0],
    )
)
def test_bags_of_anything_are_described_or_refused(topics: list[Raw]) -> None:
    folder = Path(tempfile.mkdtemp(prefix="vpr_kd_ros"))
    try:
        path = write(folder / "drive", topics, "mcap")
        assert main(["inspect", str(path), "--html", str(folder / "page.html")]) == 0
        assert main(["ingest", str(path), "--out", str(folder / "out"), "--region", "town"]) in (0, 1)
    finally:
        shutil.rmtree(folder)
