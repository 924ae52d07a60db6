"""Chunks of MCAP files, unpacked: the same as the MCAP library's reader gives, and nothing of a damaged one."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import lz4.frame  # type: ignore[import-untyped]
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from mcap.data_stream import RecordBuilder
from mcap.records import Channel, Chunk, ChunkIndex, Message, Schema
from mcap.stream_reader import breakup_chunk

from vpr_kd_ros.mcap_chunk import HEAD_BYTES, Unpacker, Wanted

PACK: dict[str, Any] = {"": bytes, "zstd": zstandard.compress, "lz4": lz4.frame.compress}
TOPICS = {1: "/camera", 2: "/lidar", 3: "/odom"}


def channel(number: int) -> Channel:
    return Channel(id=number, topic=TOPICS[number], message_encoding="cdr", metadata={}, schema_id=1)


def chunk_of(messages: list[Message], compression: str, told: tuple[int, ...] = (1, 2, 3)) -> Chunk:
    """A chunk that begins with a schema and the channels told."""
    builder = RecordBuilder()
    for record in (Schema(1, b"", "any", "ros2msg"), *map(channel, told), *messages):
        record.write(builder)
    content = bytes(builder.end())
    return Chunk(compression, PACK[compression](content), 9, 0, zlib.crc32(content), len(content))


messages_drawn = st.lists(
    st.builds(
        Message,
        channel_id=st.sampled_from(sorted(TOPICS)),
        log_time=st.integers(0, 9),
        data=st.integers(0, 3 * HEAD_BYTES).map(os.urandom),
        publish_time=st.integers(0, 9),
        sequence=st.integers(0, 9),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(chunks=st.lists(st.tuples(messages_drawn, st.sampled_from(sorted(PACK))), min_size=1, max_size=4))
def test_all_is_what_the_library_reads_chunk_after_chunk(chunks: list[tuple[list[Message], str]]) -> None:
    unpacker = Unpacker(Path("bag"), {}, Wanted())
    made = [chunk_of(*drawn) for drawn in chunks]
    # All of them first: what was read of one does not lie where the next one is unpacked.
    assert [unpacker.records(chunk) for chunk in made] == [breakup_chunk(chunk, True) for chunk in made]


@settings(max_examples=60, deadline=None)
@given(messages=messages_drawn, compression=st.sampled_from(sorted(PACK)), data=st.data())
def test_of_the_rest_nothing_is_given_and_of_heads_the_beginning(
    messages: list[Message], compression: str, data: st.DataObject
) -> None:
    topics = data.draw(st.sets(st.sampled_from(sorted(TOPICS.values()))))
    times = {topic: data.draw(st.sets(st.integers(0, 9))) for topic in sorted(topics)}
    heads = data.draw(st.sets(st.sampled_from(sorted(TOPICS.values()))))
    told = data.draw(st.sampled_from([(1, 2, 3), ()]))  # by the chunk itself, or by the file's index
    index = {number: channel(number) for number in TOPICS}
    unpacker = Unpacker(Path("bag"), {} if told else index, Wanted(topics, times, heads))
    found = unpacker.records(chunk_of(messages, compression, told))
    expected = []
    for message in messages:
        topic = TOPICS[message.channel_id]
        if topic in topics and message.log_time in times[topic]:
            cut = message.data[:HEAD_BYTES] if topic in heads else message.data
            expected.append((message.channel_id, message.log_time, message.sequence, cut))
    assert found is not None
    given_back = [(m.channel_id, m.log_time, m.sequence, m.data) for m in found if isinstance(m, Message)]
    assert given_back == expected


def test_messages_of_an_unknown_channel_are_given_whole() -> None:
    message = Message(3, 5, b"x" * 2000, 5, 0)
    unpacker = Unpacker(Path("bag"), {}, Wanted({"/camera"}, None, {"/odom"}))
    assert unpacker.records(chunk_of([message], "zstd", (1,)))[-1:] == [message]  # type: ignore[index]


@pytest.mark.parametrize("compression", sorted(PACK))
def test_damage_is_nothing(compression: str) -> None:
    unpacker = Unpacker(Path("bag"), {}, Wanted())
    chunk = chunk_of([Message(1, 5, os.urandom(5000), 5, 0)], compression)
    for place in range(0, len(chunk.data), 97):
        data = bytearray(chunk.data)
        data[place] ^= 0x55
        damaged = Chunk(compression, bytes(data), 9, 0, chunk.uncompressed_crc, chunk.uncompressed_size)
        # A bit that decompressors do not look at may change nothing.
        assert unpacker.records(damaged) in (None, breakup_chunk(chunk))
        if compression == "":
            assert unpacker.records(damaged) is None
    cut = Chunk(compression, chunk.data[: len(chunk.data) // 2], 9, 0, 0, chunk.uncompressed_size)
    assert unpacker.records(cut) is None
    other = Chunk("brotli", chunk.data, 9, 0, chunk.uncompressed_crc, chunk.uncompressed_size)
    assert unpacker.records(other) is None


@pytest.mark.parametrize("claimed", [1 << 33, 1 << 62])
def test_a_chunk_that_claims_to_be_huge_takes_no_memory(claimed: int) -> None:
    chunk = chunk_of([Message(1, 5, bytes(5000), 5, 0)], "zstd")
    resident = Path("/proc/self/statm")
    before = int(resident.read_text().split()[1])
    lying = Chunk("zstd", chunk.data, 9, 0, chunk.uncompressed_crc, claimed)
    assert Unpacker(Path("bag"), {}, Wanted()).records(lying) is None
    assert (int(resident.read_text().split()[1]) - before) * os.sysconf("SC_PAGE_SIZE") < 64 << 20


def test_a_chunk_is_read_at_its_place_and_refused_where_the_index_is_wrong(tmp_path: Path) -> None:
    chunk = chunk_of([Message(2, 5, b"points", 5, 7)], "zstd")
    builder = RecordBuilder()
    chunk.write(builder)
    record = bytes(builder.end())
    path = tmp_path / "part.mcap"
    path.write_bytes(b"before it" + record + b"behind it")
    unpacker = Unpacker(path, {}, Wanted())
    with path.open("rb") as stream:
        for start, length in ((9, len(record)), (8, len(record)), (9, len(record) - 1), (9, 1 << 50), (1 << 62, 9)):
            index = ChunkIndex(
                chunk_length=length,
                chunk_start_offset=start,
                compression="zstd",
                compressed_size=len(chunk.data),
                message_end_time=9,
                message_index_length=0,
                message_index_offsets={},
                message_start_time=0,
                uncompressed_size=chunk.uncompressed_size,
            )
            expected = breakup_chunk(chunk) if (start, length) == (9, len(record)) else None
            assert unpacker.read(stream.fileno(), index) == expected
