"""Reads one MCAP file, whole or damaged, as far as it can be read.

A recorder that was killed, a full disk or a bad sector leaves a file that ordinary readers refuse as a whole, because
its index is at the end. Read from the front, all but the damage comes out: chunks whose checksum fails are left out one
by one, and a file that ends in the middle of a record ends there. A file with its index is read chunk by chunk where
the index says they are, in the order of time; the next chunks are unpacked and checked meanwhile.
"""

from __future__ import annotations

import heapq
import struct
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.reader import SeekingReader
from mcap.records import Channel, Chunk, ChunkIndex, Message, Schema
from mcap.stream_reader import StreamReader

from vpr_kd_ros.bag_topics import TopicQos, TypeDefinition
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.mcap_chunk import Unpacker, Wanted

MAGIC = b"\x89MCAP0\r\n"
# What the readers of mcap and of its compressions raise on bytes that are not what they should be.
_MALFORMED = (
    McapError,
    struct.error,
    ValueError,
    IndexError,
    KeyError,
    OverflowError,
    EOFError,
    RuntimeError,
    MemoryError,
)
WORKERS = 2
AHEAD_BYTES = 64 << 20
"""Chunks are unpacked ahead as long as they are together no larger than this."""
_INDEX = struct.Struct("<BQHI")  # opcode, length, channel and bytes of entries, before the index of a chunk's messages


@dataclass(frozen=True)
class McapTopic:
    """A topic of the file.

    Attributes:
        type_name: as the file has it.
        encoding: of the messages: "cdr", "ros1".
        count: messages.
        qos: as it was offered when it was recorded.
        definition: of the type, as the file has it.
    """

    type_name: str
    encoding: str
    count: int
    qos: TopicQos
    definition: TypeDefinition


@dataclass
class Damage:
    """What could not be read of a file.

    Attributes:
        chunks: chunks left out because their checksum or their content was wrong.
        cut_at: offset in bytes where the file stopped making sense, None where it reads through to its end.
    """

    chunks: int = 0
    cut_at: int | None = None

    def __bool__(self) -> bool:
        return self.chunks > 0 or self.cut_at is not None

    def __str__(self) -> str:
        parts = []
        if self.cut_at is not None:
            parts.append(f"it is cut off after {self.cut_at} bytes; what stands before is read")
        if self.chunks:
            parts.append(f"{self.chunks} chunk(s) with a wrong checksum are left out")
        return "; ".join(parts)


@dataclass
class _Channels:
    schemas: dict[int, Schema] = field(default_factory=dict)
    channels: dict[int, Channel] = field(default_factory=dict)

    def copy(self) -> _Channels:
        return _Channels(dict(self.schemas), dict(self.channels))

    def topic(self, channel: Channel, count: int) -> McapTopic:
        schema = self.schemas.get(channel.schema_id)
        definition = TypeDefinition("", "", "")
        if schema is not None:
            text = schema.data.decode("utf-8", errors="replace")
            definition = TypeDefinition(text, schema.encoding, channel.metadata.get("topic_type_hash", ""))
        qos = TopicQos.from_yaml(channel.metadata.get("offered_qos_profiles", ""))
        return McapTopic("" if schema is None else schema.name, channel.message_encoding, count, qos, definition)

    def messages(self, records: list[Any], wanted: Wanted) -> Iterator[tuple[Channel, Message]]:
        """Messages among the records that are wanted; the channels and schemas among them are taken in."""
        for record in records:
            if isinstance(record, Schema):
                self.schemas[record.id] = record
            elif isinstance(record, Channel):
                self.channels[record.id] = record
            elif isinstance(record, Message):
                channel = self.channels.get(record.channel_id)
                if channel is not None and wanted.has(channel.topic, record.log_time):
                    yield channel, record


class McapFile:
    """One MCAP file, whole or damaged.

    Attributes:
        topics: name to ``McapTopic``.
        start_ns, end_ns: log times of the first and the last message, nanoseconds; None without a message.
        damage: what the last reading through could not read; known at once for a file without its index.

    Raises:
        DataError: it cannot be opened or does not begin as an MCAP file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage = Damage()
        self.topics: dict[str, McapTopic] = {}
        self.start_ns: int | None = None
        self.end_ns: int | None = None
        self._size = path.stat().st_size
        with _open(path) as stream:
            # One that its recorder had just begun when it was killed is cut off before its first message.
            if not MAGIC.startswith(stream.read(len(MAGIC))):
                raise DataError(f"{path}: not an MCAP file (its first bytes are not MCAP's)")
        self._index = _Channels()
        self._chunks: list[ChunkIndex] = []
        if not self._read_index():
            self._count()

    def messages(
        self,
        topics: Collection[str] | None = None,
        times: Mapping[str, Set[int]] | None = None,
        heads: Collection[str] = (),
    ) -> Iterator[tuple[str, int, bytes]]:
        """Topic, log time in nanoseconds, and serialized bytes of each message.

        In the order of log time where the file has an index of its chunks, else as they were written; the same every
        time.

        Args:
            topics: those wanted; None means all.
            times: of each topic the log times wanted, in nanoseconds; chunks that hold none by their index are not
                read. None means all.
            heads: topics of whose messages the first ``mcap_chunk.HEAD_BYTES`` will do, which may be all that is given.

        Raises:
            MissingDependencyError: the chunks are compressed with a library that is not installed.
        """
        wanted = Wanted(topics if times is None else times.keys(), times, heads)
        for channel, _known, message in self._by_time(wanted) if self._chunks else self._as_written(wanted):
            yield channel.topic, message.log_time, message.data

    def _as_written(self, wanted: Wanted) -> Iterator[tuple[Channel, _Channels, Message]]:
        # The index repeats the channels, which a damaged chunk may have taken with it.
        known = self._index.copy()
        unpacker = Unpacker(self.path, known.channels, wanted)
        damage = Damage()
        with _open(self.path) as stream:
            records = self._records(stream)
            while True:
                start = stream.tell()
                try:
                    record = next(records, None)
                except _MALFORMED:
                    damage.cut_at = start
                    break
                if record is None:
                    break
                for channel, message in known.messages(self._unpacked(record, unpacker, damage), wanted):
                    yield channel, known, message
        self.damage = damage

    def _by_time(self, wanted: Wanted) -> Iterator[tuple[Channel, _Channels, Message]]:
        known = self._index.copy()
        unpacker = Unpacker(self.path, self._index.channels, wanted)
        damage = Damage()
        waiting: list[tuple[int, int, Channel, Message]] = []
        number = 0
        with _open(self.path) as stream, ThreadPoolExecutor(WORKERS, "mcap") as pool:
            order = sorted(self._chunks, key=lambda chunk: (chunk.message_start_time, chunk.chunk_start_offset))
            if wanted.times is not None:
                order = [chunk for chunk in order if self._may_hold(stream, chunk, wanted)]
            coming: deque[Future[list[Any] | None]] = deque()
            for place in range(len(order)):
                ahead = place + len(coming)
                while ahead < len(order) and _is_little(order[place + 1 : ahead + 1]):
                    coming.append(pool.submit(unpacker.read, stream.fileno(), order[ahead]))
                    ahead += 1
                records = coming.popleft().result()
                if records is None:
                    damage.chunks += 1
                for channel, message in known.messages(records or [], wanted):
                    # The number keeps messages of one time in the order in which they were written.
                    heapq.heappush(waiting, (message.log_time, number, channel, message))
                    number += 1
                last = place + 1 == len(order)
                while waiting and (last or waiting[0][0] < order[place + 1].message_start_time):
                    _, _, channel, message = heapq.heappop(waiting)
                    yield channel, known, message
        if wanted.times is None:
            self.damage = damage

    def _may_hold(self, stream: BinaryIO, chunk: ChunkIndex, wanted: Wanted) -> bool:
        """Whether the chunk has a message that is wanted, by the index of its messages or for want of one."""
        assert wanted.times is not None
        if not chunk.message_index_offsets:
            return True
        for channel_id, offset in chunk.message_index_offsets.items():
            channel = self._index.channels.get(channel_id)
            if channel is None:
                return True
            if channel.topic in wanted.times:
                times = _message_times(stream, offset, channel_id, self._size)
                if times is None or not wanted.times[channel.topic].isdisjoint(times):
                    return True
        return False

    def _records(self, stream: BinaryIO, skip_magic: bool = False) -> Iterator[Any]:
        # No record is longer than its file: a wrong length is recognised before anything is allocated for it.
        reader = StreamReader(stream, skip_magic=skip_magic, emit_chunks=True, record_size_limit=self._size)
        records: Iterator[Any] = reader.records
        return records

    def _unpacked(self, record: Any, unpacker: Unpacker, damage: Damage) -> list[Any]:
        """Return the records of a chunk, or the record itself; nothing of a chunk that is damaged."""
        if not isinstance(record, Chunk):
            return [record]
        records = unpacker.records(record)
        if records is None:
            damage.chunks += 1
        return records or []

    def _read_index(self) -> bool:
        try:
            with _open(self.path) as stream:
                summary = SeekingReader(stream, record_size_limit=self._size).get_summary()
        except (OSError, *_MALFORMED):  # OSError: too short to have an end
            return False
        if summary is None or summary.statistics is None:
            return False
        statistics = summary.statistics
        self._index = _Channels(summary.schemas, summary.channels)
        # An index that lacks chunks would hide their messages; the file is read from the front then.
        if len(summary.chunk_indexes) == statistics.chunk_count:
            self._chunks = summary.chunk_indexes
        for key, channel in summary.channels.items():
            self._add(self._index, channel, statistics.channel_message_counts.get(key, 0))
        if statistics.message_count:
            self.start_ns, self.end_ns = statistics.message_start_time, statistics.message_end_time
        return bool(self.topics)

    def _count(self) -> None:
        for channel, known, message in self._as_written(Wanted()):
            self._add(known, channel, 1)
            self.start_ns = message.log_time if self.start_ns is None else min(self.start_ns, message.log_time)
            self.end_ns = message.log_time if self.end_ns is None else max(self.end_ns, message.log_time)

    def _add(self, known: _Channels, channel: Channel, count: int) -> None:
        before = self.topics.get(channel.topic)
        if before is None:
            self.topics[channel.topic] = known.topic(channel, count)
        else:
            self.topics[channel.topic] = replace(before, count=before.count + count)


def _is_little(chunks: list[ChunkIndex]) -> bool:
    return len(chunks) <= WORKERS and sum(chunk.uncompressed_size for chunk in chunks) <= AHEAD_BYTES


def _message_times(stream: BinaryIO, offset: int, channel_id: int, file_size: int) -> list[int] | None:
    """Log times of a channel's messages in a chunk, by the index at the offset; None where there is none to be read."""
    if offset + _INDEX.size > file_size:
        return None
    stream.seek(offset)
    head = stream.read(_INDEX.size)
    if len(head) < _INDEX.size:
        return None
    opcode, _length, channel, size = _INDEX.unpack(head)
    if opcode != Opcode.MESSAGE_INDEX or channel != channel_id or size > file_size:
        return None
    entries = stream.read(size)
    if len(entries) < size or size % 16:
        return None
    return [time for time, _offset in struct.iter_unpack("<QQ", entries)]


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be opened: {error.strerror}") from error
