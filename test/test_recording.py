"""Bags: written whole, read by other libraries, checked for damage."""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from mcap.reader import make_reader
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from training.ingest.bag import Bag as IngestBag
from training.ingest.recover import recover
from vpr_kd_ros import recording
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.mcap_file import McapFile
from vpr_kd_ros.message_definitions import message_definition, type_hash
from vpr_kd_ros.playback import Bag, natural_order
from vpr_kd_ros.recording import BagWriter, TopicQos, TypeDefinition

STORE = get_typestore(Stores.ROS2_JAZZY)
START_NS = 1_700_000_000_000_000_000
IMAGE, ODOMETRY = "sensor_msgs/msg/Image", "nav_msgs/msg/Odometry"

pytestmark = pytest.mark.skipif(
    not type_hash(IMAGE), reason="the message packages of ROS 2 (share/sensor_msgs) are not installed"
)


def image(value: int, height: int = 48) -> bytes:
    """A serialized image, made by another library than ROS."""
    types = STORE.types
    stamp = types["builtin_interfaces/msg/Time"](sec=START_NS // 10**9, nanosec=value)
    message = types[IMAGE](
        header=types["std_msgs/msg/Header"](stamp=stamp, frame_id="camera"),
        height=height,
        width=64,
        encoding="rgb8",
        is_bigendian=0,
        step=192,
        data=np.random.default_rng(value).integers(0, 256, height * 192, dtype=np.uint8),
    )
    return bytes(STORE.serialize_cdr(message, IMAGE))


def write(path: Path, count: int = 30, **options: Any) -> list[bytes]:
    sent = [image(index) for index in range(count)]
    with BagWriter(path, chunk_bytes=20_000, **options) as writer:
        writer.declare_topic("/latched", ODOMETRY, TopicQos(transient_local=True, depth=1))
        for index, data in enumerate(sent):
            assert writer.write("/camera", IMAGE, START_NS + index * 10**8, data)
    return sent


def test_rosbags_reads_what_was_written(tmp_path: Path) -> None:
    sent = write(tmp_path / "bag")
    with Reader(tmp_path / "bag") as reader:
        assert reader.message_count == 30
        assert reader.start_time == START_NS
        assert reader.end_time == START_NS + 29 * 10**8 + 1
        connections = {connection.topic: connection for connection in reader.connections}
        assert connections["/camera"].msgtype == IMAGE
        assert connections["/camera"].digest == STORE.hash_rihs01(IMAGE)
        qos = connections["/latched"].ext.offered_qos_profiles[0]
        assert (qos.durability.name, qos.reliability.name, qos.depth) == ("TRANSIENT_LOCAL", "RELIABLE", 1)
        assert [data for _, _, data in reader.messages()] == sent
    # The type definitions of the bag, not those of the library, decode it.
    with AnyReader([tmp_path / "bag"], default_typestore=get_typestore(Stores.EMPTY)) as reader:
        decoded = [reader.deserialize(data, connection.msgtype) for connection, _, data in reader.messages()]
    assert [message.header.stamp.nanosec for message in decoded] == list(range(30))


def test_mcap_reads_what_was_written_and_its_checksums_hold(tmp_path: Path) -> None:
    sent = write(tmp_path / "bag")
    with (tmp_path / "bag" / "bag_0.mcap").open("rb") as stream:
        reader = make_reader(stream, validate_crcs=True)
        summary = reader.get_summary()
        assert summary.statistics.chunk_count > 5
        assert all(index.compression == "zstd" for index in summary.chunk_indexes)
        assert reader.get_header().profile == "ros2"
        assert [message.data for _, _, message in reader.iter_messages()] == sent
        records = [record for record in reader.iter_metadata() if record.name == "rosbag2"]
    stored = yaml.safe_load(records[0].metadata["serialized_metadata"])
    assert stored == yaml.safe_load((tmp_path / "bag" / "metadata.yaml").read_text())["rosbag2_bagfile_information"]


@pytest.mark.parametrize(
    "type_name",
    [
        IMAGE,
        ODOMETRY,
        "sensor_msgs/msg/PointCloud2",
        "sensor_msgs/msg/NavSatFix",
        "diagnostic_msgs/msg/DiagnosticArray",
        "visualization_msgs/msg/MarkerArray",
        "geometry_msgs/msg/PoseWithCovarianceStamped",
    ],
)
def test_definitions_have_the_hash_of_the_type_they_define(type_name: str) -> None:
    store = get_typestore(Stores.EMPTY)
    store.register(get_types_from_msg(message_definition(type_name), type_name))
    assert store.hash_rihs01(type_name) == STORE.hash_rihs01(type_name) == type_hash(type_name)


@pytest.mark.parametrize("type_name", ["sensor_msgs/Image", "sensor_msgs/msg/Imagine", "../msg/passwd", "a/b/c/d"])
def test_unknown_types_are_refused_by_name(tmp_path: Path, type_name: str) -> None:
    with BagWriter(tmp_path / "bag") as writer, pytest.raises(DataError, match="mess"):
        writer.write("/camera", type_name, START_NS, b"")


def test_a_topic_keeps_its_type(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        writer.write("/camera", IMAGE, START_NS, image(0))
        with pytest.raises(DataError, match="'/camera' holds sensor_msgs/msg/Image"):
            writer.write("/camera", ODOMETRY, START_NS, b"")


def test_an_existing_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "bag").mkdir()
    with pytest.raises(DataError, match="exists already"):
        BagWriter(tmp_path / "bag")
    assert list((tmp_path / "bag").iterdir()) == []


def test_chunks_reach_the_file_while_the_bag_is_open(tmp_path: Path) -> None:
    def readable() -> list[bytes]:
        # As a reader of a killed recorder's file: no index, no footer.
        try:
            return [message.data for message in Bag(tmp_path / "bag").messages()]
        except DataError:
            return []

    with BagWriter(tmp_path / "bag", flush_seconds=0.05) as writer:
        writer.write("/camera", IMAGE, START_NS, image(0))
        waiting = threading.Event()
        while not readable() and not waiting.wait(0.05):
            writer.check()
        assert readable() == [image(0)]


def test_a_slow_disk_drops_and_counts_by_topic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    put = BagWriter._put

    def slow(self: BagWriter, message: recording._Message) -> None:
        go_on.wait(10.0)
        put(self, message)

    monkeypatch.setattr(BagWriter, "_put", slow)
    data = image(0)
    writer = BagWriter(tmp_path / "bag", max_queue_bytes=5 * len(data))
    kept = sum(writer.write("/camera", IMAGE, START_NS + index, data) for index in range(20))
    go_on.set()
    writer.close()
    assert writer.dropped == {"/camera": 20 - kept}
    assert 5 <= kept <= 6
    assert len(list(Bag(tmp_path / "bag").messages())) == kept


def test_a_full_disk_is_an_error_and_what_was_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = BagWriter(tmp_path / "bag", chunk_bytes=20_000)
    sync = os.fdatasync
    calls: list[int] = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fdatasync", full)
    writer._flush_seconds = 0.01
    pause = threading.Event()

    def fill_slowly() -> None:
        for index in range(1000):
            writer.write("/camera", IMAGE, START_NS + index, image(index))
            pause.wait(0.01)

    with pytest.raises(DataError, match=r"bag: the disk refused to write.*No space left"):
        fill_slowly()
    with pytest.raises(DataError, match="No space left"):
        writer.check()
    with pytest.raises(DataError, match="No space left"):
        writer.close()
    assert len(list(Bag(tmp_path / "bag").messages())) >= 1


def fill(writer: BagWriter, limit: int = 10_000) -> list[bytes]:
    """Write until the disk refuses; what was handed over."""
    sent: list[bytes] = []

    def write() -> None:
        while len(sent) < limit:
            data = image(len(sent) % 50)
            writer.write("/camera", IMAGE, START_NS + len(sent), data)
            sent.append(data)
            # As a sensor would, so that the queue does not hold all of it.
            while writer.queue_bytes > 20 * len(data):
                writer.check()

    with pytest.raises(DataError, match="No space left on device; what was written before is readable"):
        write()
    return sent


@pytest.mark.parametrize("compress", [True, False])
def test_on_a_full_disk_the_bag_ends_whole_with_every_message_but_the_last(small_disk: Path, compress: bool) -> None:
    writer = BagWriter(small_disk / "bag", chunk_bytes=100_000, flush_seconds=60, compress=compress)
    sent = fill(writer)
    with pytest.raises(DataError, match="No space left"):
        writer.close()
    # The chunk that did not fit made room for the index: other libraries read the bag as if nothing had been.
    with Reader(small_disk / "bag") as reader:
        read = [bytes(data) for _, _, data in reader.messages()]
    assert read == sent[: len(read)]
    assert len(sent) - len(read) < 45  # a chunk and the queue, of some 400
    assert len(read) > 300
    assert writer.written == {"/camera": len(read)}
    assert writer.written.total() + writer.dropped.total() == len(sent)
    assert Bag(small_disk / "bag").damage == {}


def test_on_a_disk_without_room_for_the_index_the_messages_stay(small_disk: Path) -> None:
    writer = BagWriter(small_disk / "bag", chunk_bytes=20_000, flush_seconds=0.1)
    sent = [image(index) for index in range(100)]
    for index, data in enumerate(sent):
        writer.write("/camera", IMAGE, START_NS + index, data)
    while writer.queue_bytes:
        writer.check()
    # Another process takes all that is left.
    with (small_disk / "other").open("wb", buffering=0) as other, suppress(OSError):
        while other.write(bytes(4096)):
            pass
    sent += fill(writer)
    with pytest.raises(DataError, match="No space left"):
        writer.close()
    bag = Bag(small_disk / "bag")
    read = [message.data for message in bag.messages()]
    assert bag.damage
    assert read == sent[: len(read)]
    assert len(read) == writer.written.total() >= 95
    assert writer.written.total() + writer.dropped.total() == len(sent)
    assert recover(small_disk / "bag", small_disk.parent / "recovered").written.total() == len(read)


def test_a_full_disk_leaves_the_files_of_a_split_bag_whole(small_disk: Path) -> None:
    writer = BagWriter(small_disk / "bag", chunk_bytes=50_000, flush_seconds=0.1, max_file_bytes=400_000)
    sent = fill(writer)
    with pytest.raises(DataError, match="No space left"):
        writer.close()
    assert len(list((small_disk / "bag").glob("*.mcap"))) >= 8
    with Reader(small_disk / "bag") as reader:
        read = [bytes(data) for _, _, data in reader.messages()]
    assert read == sent[: len(read)]
    assert len(read) == writer.written.total() > 300


def test_a_closed_bag_takes_no_more(tmp_path: Path) -> None:
    writer = BagWriter(tmp_path / "bag")
    writer.close()
    writer.close()
    with pytest.raises(DataError, match="closed"):
        writer.write("/camera", IMAGE, START_NS, image(0))


def test_threads_write_at_the_same_time(tmp_path: Path) -> None:
    data = image(0)
    with BagWriter(tmp_path / "bag") as writer:

        def work(topic: str) -> None:
            for index in range(100):
                writer.write(topic, IMAGE, START_NS + index, data)

        threads = [threading.Thread(target=work, args=(f"/camera{number}",)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    bag = Bag(tmp_path / "bag")
    assert {name: topic.count for name, topic in bag.topics.items()} == {f"/camera{number}": 100 for number in range(4)}


# --- files -----------------------------------------------------------------------------------------------------------

TRANSFORMS = "tf2_msgs/msg/TFMessage"
TRANSFORM_TEXT = "geometry_msgs/TransformStamped[] transforms\n"


def write_split(path: Path, count: int = 60, **options: Any) -> list[tuple[str, int, bytes]]:
    """A latched message at the start, then images at 10 Hz; what was sent."""
    sent = [("/tf_static", START_NS, bytes([0, 1, 0, 0, 0, 0, 0, 0]))]
    sent += [("/camera", START_NS + index * 10**8, image(index)) for index in range(count)]
    with BagWriter(path, chunk_bytes=20_000, **options) as writer:
        latched = TopicQos(transient_local=True, depth=1)
        writer.declare_topic("/tf_static", TRANSFORMS, latched, TypeDefinition(TRANSFORM_TEXT))
        for topic, stamp_ns, data in sent:
            assert writer.write(topic, TRANSFORMS if topic == "/tf_static" else IMAGE, stamp_ns, data)
    return sent


@pytest.mark.parametrize("options", [{"max_file_bytes": 60_000}, {"max_file_seconds": 0.5}])
def test_a_split_bag_is_read_by_everyone_and_lacks_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "drive"
    sent = write_split(path, **options)
    names = [f"drive_{number}.mcap" for number in range(len(list(path.glob("*.mcap"))))]
    assert len(names) >= 10
    information = yaml.safe_load((path / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert information["relative_file_paths"] == names
    images = [message for message in sent if message[0] == "/camera"]

    with Reader(path) as reader:
        assert reader.message_count == len(images) + len(names)
        assert (reader.start_time, reader.end_time) == (START_NS, images[-1][1] + 1)
        by_rosbags = [(c.topic, stamp, bytes(data)) for c, stamp, data in reader.messages()]
    played = Bag(path)
    by_playback = [(message.topic, message.stamp_ns, message.data) for message in played.messages()]
    with IngestBag(path) as bag:
        assert bag.notices == []
        by_ingest = list(bag.messages())
    for read in (by_rosbags, by_playback, by_ingest):
        assert [message for message in read if message[0] == "/camera"] == images
        assert [data for topic, _, data in read if topic == "/tf_static"] == [sent[0][2]] * len(names)
    assert played.damage == {}
    (path / "metadata.yaml").unlink()
    assert [message.data for message in Bag(path).messages()] == [data for _, _, data in by_playback]


def test_each_file_of_a_split_bag_is_a_bag_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "drive"
    write_split(path, max_file_seconds=1.0)
    information = yaml.safe_load((path / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    total = 0
    for number, entry in enumerate(information["files"]):
        with (path / entry["path"]).open("rb") as stream:
            reader = make_reader(stream, validate_crcs=True)
            summary = reader.get_summary()
            messages = [(channel.topic, message.log_time) for _, channel, message in reader.iter_messages()]
            stored = yaml.safe_load(next(iter(reader.iter_metadata())).metadata["serialized_metadata"])
        # What is latched is said again at the beginning of each, at the time of the message that came next.
        assert messages[0] == ("/tf_static", START_NS + number * 10**9)
        assert messages[1] == ("/camera", START_NS + number * 10**9)
        assert entry["message_count"] == stored["message_count"] == len(messages) == summary.statistics.message_count
        assert entry["starting_time"]["nanoseconds_since_epoch"] == messages[0][1]
        assert entry["duration"]["nanoseconds"] == messages[-1][1] - messages[0][1] == 9 * 10**8
        assert stored["relative_file_paths"] == [entry["path"]]
        total += len(messages)
    assert information["message_count"] == total == 66
    assert information["duration"]["nanoseconds"] == 59 * 10**8


@settings(max_examples=20, deadline=None)
@given(
    messages=st.lists(
        st.tuples(st.sampled_from(["/a", "/b", "/c"]), st.integers(0, 10**12), st.binary(max_size=300)), max_size=25
    ),
    chunk_bytes=st.integers(1, 2000),
    max_file_bytes=st.integers(0, 3000),
    max_file_seconds=st.sampled_from([0.0, 1.0, 500.0]),
    compress=st.booleans(),
    cut=st.floats(0.0, 1.0),
)
def test_whatever_is_written_is_read_and_of_a_cut_file_the_front(
    tmp_path_factory: pytest.TempPathFactory,
    messages: list[tuple[str, int, bytes]],
    chunk_bytes: int,
    cut: float,
    **options: Any,
) -> None:
    path = tmp_path_factory.mktemp("bags") / "bag"
    # No example is switched off at the battery, and a busy disk takes its time.
    with patch("os.fsync"), patch("os.fdatasync"), BagWriter(path, chunk_bytes=chunk_bytes, **options) as writer:
        for name in "abc":
            writer.declare_topic(f"/{name}", f"some/msg/{name.upper()}", definition=TypeDefinition("uint8 x\n"))
        for topic, stamp_ns, data in messages:
            writer.write(topic, f"some/msg/{topic[1:].upper()}", stamp_ns, data)
    files = sorted(path.glob("*.mcap"), key=natural_order)
    read: list[tuple[str, int, bytes]] = []
    for file in files:
        with file.open("rb") as stream:
            reader = make_reader(stream, validate_crcs=True)
            # In the order of the file, which is that of writing.
            read += [(c.topic, m.log_time, m.data) for _, c, m in reader.iter_messages(log_time_order=False)]
            assert set(reader.get_summary().channels) == {1, 2, 3}
    assert read == messages
    with Reader(path) as reader:
        assert sorted((c.topic, t, bytes(data)) for c, t, data in reader.messages()) == sorted(messages)
    front: Counter[tuple[str, int, bytes]] = Counter()
    # A recorder that is killed has no metadata.yaml yet, and half a file.
    (path / "metadata.yaml").unlink()
    whole = files[-1].read_bytes()
    files[-1].write_bytes(whole[: int(cut * len(whole))])
    with suppress(DataError):  # where nothing is left of it
        front.update((m.topic, m.stamp_ns, m.data) for m in Bag(path).messages())
    assert front <= Counter(messages)
    assert front.total() >= sum(sum(t.count for t in McapFile(file).topics.values()) for file in files[:-1])


def test_a_clock_that_is_set_back_does_not_keep_a_file_growing(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag", max_file_seconds=10.0) as writer:
        for stamp_ns in (START_NS, START_NS - 3600 * 10**9, START_NS - 3599 * 10**9):
            writer.write("/camera", IMAGE, stamp_ns, image(0))
    assert len(list((tmp_path / "bag").glob("*.mcap"))) == 2


def test_of_latched_topics_as_many_messages_are_repeated_as_publishers_may_hold(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag", max_file_seconds=5.0) as writer:
        writer.declare_topic("/map", IMAGE, TopicQos(transient_local=True, depth=12))
        for index in range(20):
            writer.write("/map", IMAGE, START_NS + index, image(index))
        writer.write("/camera", IMAGE, START_NS + 10**10, image(100))
    second = Bag(tmp_path / "bag" / "bag_1.mcap")
    assert [message.data for message in second.messages()] == [*(image(index) for index in range(8, 20)), image(100)]


def test_a_chunk_is_readable_without_those_before_it(tmp_path: Path) -> None:
    sent = write(tmp_path / "bag")
    file = tmp_path / "bag" / "bag_0.mcap"
    with file.open("rb") as stream:
        chunks = make_reader(stream).get_summary().chunk_indexes
    raw = bytearray(file.read_bytes())
    for chunk in chunks[:-3]:
        raw[chunk.chunk_start_offset + 60] ^= 0xFF
    # The front is damaged, the index cut off.
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(raw[: chunks[-1].chunk_start_offset + chunks[-1].chunk_length])
    bag = Bag(cut)
    assert bag.topics["/camera"].type_name == IMAGE
    assert 3 <= bag.topics["/camera"].count < 12
    assert [message.data for message in bag.messages()] == sent[-bag.topics["/camera"].count :]


def test_a_file_that_was_only_begun_does_not_hide_the_others(tmp_path: Path) -> None:
    path = tmp_path / "drive"
    write_split(path, max_file_seconds=1.0)
    (path / "metadata.yaml").unlink()
    (path / "drive_6.mcap").write_bytes(b"")
    (path / "drive_7.mcap").write_bytes((path / "drive_0.mcap").read_bytes()[:20])
    assert sum(1 for _ in Bag(path).messages()) == 66
    with IngestBag(path) as bag:
        assert sum(1 for _ in bag.messages()) == 66
        assert len([line for line in bag.notices if "TRUNCATED" in line]) == 2


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_of_a_cut_file_the_front_is_read(tmp_path: Path, part: float) -> None:
    sent = write(tmp_path / "bag")
    whole = (tmp_path / "bag" / "bag_0.mcap").read_bytes()
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(whole[: int(part * len(whole))])
    bag = Bag(cut)
    read = [message.data for message in bag.messages()]
    assert read == sent[: len(read)]
    assert part - 0.2 < len(read) / len(sent) <= 1.0
    assert "cut off" in bag.damage[cut]
    assert bag.topics["/camera"].count == len(read)


def test_flipped_bytes_are_noticed_and_never_played(tmp_path: Path) -> None:
    sent = write(tmp_path / "bag")
    file = tmp_path / "bag" / "bag_0.mcap"
    raw = bytearray(file.read_bytes())
    place = len(raw) // 2
    raw[place : place + 4] = bytes(value ^ 0xFF for value in raw[place : place + 4])
    file.write_bytes(raw)
    bag = Bag(tmp_path / "bag")
    read = [message.data for message in bag.messages()]
    # Of what was sent one chunk is missing, and what stands before and after it is played.
    lost = [number for number, data in enumerate(sent) if data not in read]
    assert read == [data for data in sent if data in read]
    assert 0 < len(lost) <= 3
    assert lost == list(range(lost[0], lost[-1] + 1))
    assert 0 < lost[0] < lost[-1] < len(sent) - 1
    assert "1 chunk(s) with a wrong checksum" in bag.damage[file]


def test_without_metadata_the_folder_still_plays(tmp_path: Path) -> None:
    sent = write(tmp_path / "bag")
    (tmp_path / "bag" / "metadata.yaml").unlink()
    bag = Bag(tmp_path / "bag")
    assert [message.data for message in bag.messages()] == sent
    assert bag.topics["/latched"].qos == TopicQos(transient_local=True, depth=1)
    assert (bag.start_ns, bag.end_ns) == (START_NS, START_NS + 29 * 10**8)


def test_a_folder_of_several_bags_is_not_played_as_one(tmp_path: Path) -> None:
    for name in ("monday", "tuesday"):
        (tmp_path / f"{name}.mcap").write_bytes(b"")
    with pytest.raises(DataError, match=r"monday\.mcap, tuesday\.mcap and no metadata\.yaml.* name one of them"):
        Bag(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("nothing", None, "there is no such bag"),
        ("a.db3", b"SQLite", "not an .mcap file"),
        ("empty.mcap", b"", "no readable message"),
        ("noise.mcap", bytes(range(256)) * 40, "no readable message"),
    ],
)
def test_what_is_no_bag_is_refused_by_name(tmp_path: Path, name: str, content: bytes | None, text: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=text) as raised:
        Bag(tmp_path / name)
    assert name in str(raised.value)


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ("rosbag2_bagfile_information: [", "metadata.yaml: not the metadata"),
        ("other: 1", "metadata.yaml: not the metadata"),
        ("rosbag2_bagfile_information: {relative_file_paths: [a.db3], storage_identifier: sqlite3}", "bag convert"),
        ("rosbag2_bagfile_information: {relative_file_paths: [a.mcap], storage_identifier: mcap}", "not there: a.mcap"),
    ],
)
def test_damaged_metadata_is_named(tmp_path: Path, metadata: str, text: str) -> None:
    (tmp_path / "metadata.yaml").write_text(metadata)
    with pytest.raises(DataError, match=text):
        Bag(tmp_path)


def test_a_bag_of_another_writer_is_read(tmp_path: Path) -> None:
    from rosbags.rosbag2 import StoragePlugin, Writer

    sent = [image(index) for index in range(5)]
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection("/camera", IMAGE, typestore=STORE)
        for index, data in enumerate(sent):
            writer.write(connection, START_NS + index, data)
    bag = Bag(tmp_path / "bag")
    assert [message.data for message in bag.messages()] == sent
    assert bag.topics["/camera"].type_name == IMAGE
    assert bag.damage == {}
