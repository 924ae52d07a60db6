"""Of a damaged bag all that is readable comes back, and what is lost is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rosbags.rosbag2 import Reader

from support import bags
from support.bags import STORE
from training.__main__ import main
from training.ingest.recover import recover
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.mcap_file import McapFile
from vpr_kd_ros.recording import BagWriter, TopicQos, TypeDefinition

START_NS = bags.START_NS
IMAGE, CUSTOM = "sensor_msgs/msg/Image", "my_robot/msg/Wheel"
QOS = TopicQos(reliable=False, transient_local=True, depth=3)
DEFINITION = TypeDefinition("float64 speed\n", hash="RIHS01_" + "ab" * 32)


def write(path: Path, count: int = 30) -> list[tuple[str, int, bytes]]:
    """A bag of noise, which does not compress, in chunks of about two images; one topic is of an unknown type."""
    rng = np.random.default_rng(5)
    sent = []
    with BagWriter(path, chunk_bytes=20_000) as writer:
        writer.declare_topic("/wheel", CUSTOM, QOS, DEFINITION)
        writer.declare_topic("/camera", IMAGE, definition=TypeDefinition("uint32 height\n"))
        for i in range(count):
            pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            image = bytes(STORE.serialize_cdr(bags.image(START_NS + i, pixels), IMAGE))
            for topic, kind, data in (("/camera", IMAGE, image), ("/wheel", CUSTOM, bytes([0, 1, 0, 0, i]))):
                assert writer.write(topic, kind, START_NS + i, data)
                sent.append((topic, START_NS + i, data))
    return sent


def messages(path: Path) -> list[tuple[str, int, bytes]]:
    """Of the recovered bag, which is whole; read by another library, and by ours."""
    with Reader(path) as reader:
        read = [(c.topic, t, bytes(data)) for c, t, data in reader.messages()]
    file = McapFile(path / f"{path.name}_0.mcap")
    assert list(file.messages()) == read
    assert not file.damage
    return read


def test_of_a_cut_bag_the_front_comes_back_with_types_and_qos(tmp_path: Path) -> None:
    sent = write(tmp_path / "bag")
    file = tmp_path / "bag" / "bag_0.mcap"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * 6 // 10])
    found = recover(tmp_path / "bag", tmp_path / "new")
    read = messages(tmp_path / "new")
    assert read == sent[: len(read)]
    assert 0.4 * len(sent) < len(read) < 0.7 * len(sent)
    assert sum(found.written.values()) == len(read)
    assert found.lost_chunks == 0
    assert 0 < found.lost_bytes < 30_000  # within one chunk
    assert f"{len(sent) - len(read)} of {len(sent)} messages" in str(found)
    wheel = McapFile(tmp_path / "new" / "new_0.mcap").topics["/wheel"]
    assert (wheel.type_name, wheel.qos, wheel.definition) == (CUSTOM, QOS, DEFINITION)


def test_chunks_with_wrong_checksums_are_counted_and_left_out(tmp_path: Path) -> None:
    sent = write(tmp_path / "bag")
    file = tmp_path / "bag" / "bag_0.mcap"
    data = bytearray(file.read_bytes())
    for number in (10, 40):  # images far apart, each of which stands in its chunk as it is
        data[data.index(sent[number][2][-3000:-2900])] ^= 0xFF
    file.write_bytes(data)
    found = recover(tmp_path / "bag", tmp_path / "new")
    assert found.lost_chunks == 2
    assert found.lost_bytes == 0
    read = messages(tmp_path / "new")
    lost = [m for m in sent if m not in read]
    assert read == [m for m in sent if m in read]
    assert {sent[10], sent[40]} <= set(lost)
    assert len(lost) <= 12


def test_with_its_index_a_bag_is_read_beyond_a_broken_record(tmp_path: Path) -> None:
    sent = write(tmp_path / "bag")
    file = tmp_path / "bag" / "bag_0.mcap"
    data = bytearray(file.read_bytes())
    # The record's length stands before its content: reading from the front ends here.
    chunk = min(McapFile(file)._chunks, key=lambda c: c.chunk_start_offset)
    data[chunk.chunk_start_offset + 7] = 0xFF
    file.write_bytes(data)
    found = recover(file, tmp_path / "new")
    assert found.lost_chunks == 1
    read = messages(tmp_path / "new")
    assert read == sent[-len(read) :]
    assert len(sent) - 8 <= len(read) < len(sent)


def test_of_a_split_bag_every_file_comes_back_as_far_as_it_goes(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    sent = []
    with BagWriter(tmp_path / "bag", chunk_bytes=5_000, max_file_bytes=30_000, compress=False) as writer:
        writer.declare_topic("/wheel", CUSTOM, definition=DEFINITION)
        for i in range(100):
            sent.append(("/wheel", START_NS + i, rng.bytes(1000)))
            assert writer.write("/wheel", CUSTOM, *sent[-1][1:])
    files = sorted((tmp_path / "bag").glob("*.mcap"))
    assert len(files) >= 3
    data = files[1].read_bytes()
    files[1].write_bytes(data[: len(data) // 2])
    found = recover(tmp_path / "bag", tmp_path / "new")
    read = messages(tmp_path / "new")
    assert set(read) <= set(sent)
    missing = [i for i, message in enumerate(sent) if message not in read]
    assert 5 < len(missing) < 30  # half of one file, and no other
    assert missing == list(range(missing[0], missing[-1] + 1))
    assert found.lost_bytes > 0
    assert f"{len(missing)} of 100 messages" in str(found)


def test_nothing_is_dropped_where_the_disk_is_slower_than_the_reader(tmp_path: Path) -> None:
    data = bytes(1000)
    with BagWriter(tmp_path / "bag", max_queue_bytes=2000, wait_for_disk=True) as writer:
        writer.declare_topic("/wheel", CUSTOM, definition=DEFINITION)
        assert all(writer.write("/wheel", CUSTOM, START_NS + i, data) for i in range(300))
        assert writer.queue_bytes <= 2000
    assert not writer.dropped
    assert len(messages(tmp_path / "bag")) == 300


def test_messages_come_in_the_order_of_time_where_there_is_an_index(tmp_path: Path) -> None:
    stamps = (START_NS + np.random.default_rng(2).permutation(200)).tolist()
    with BagWriter(tmp_path / "bag", chunk_bytes=500) as writer:
        writer.declare_topic("/wheel", CUSTOM, definition=DEFINITION)
        for stamp in stamps:
            writer.write("/wheel", CUSTOM, stamp, bytes(90))
    assert [t for _, t, _ in McapFile(tmp_path / "bag" / "bag_0.mcap").messages()] == sorted(stamps)


def test_what_cannot_be_recovered_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = bags.write_bag(tmp_path / "half", [], "sqlite3")
    assert main(["recover", str(half), "--out", str(tmp_path / "new")]) == 1
    assert "an sqlite3 bag with 0 messages: half-written" in capsys.readouterr().err
    whole = bags.write_bag(tmp_path / "whole", [("/odom", START_NS, bags.odometry(START_NS, 0, 0, 0))], "sqlite3")
    with pytest.raises(DataError, match=r"1 readable messages in \.db3 files.*ros2 bag convert"):
        recover(whole, tmp_path / "new")
    with pytest.raises(DataError, match="no such bag"):
        recover(tmp_path / "nowhere", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    write(tmp_path / "bag", 2)
    with pytest.raises(DataError, match="exists already"):
        recover(tmp_path / "bag", tmp_path / "bag")
    assert main(["recover", str(tmp_path / "bag"), "--out", str(tmp_path / "new")]) == 0
    assert "4 messages recovered" in (printed := capsys.readouterr().out)
    assert "lost: nothing" in printed
