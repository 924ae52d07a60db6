"""Reads one MCAP file in file order, as far as it can be read.

A recorder that was killed, a full disk or a bad sector leaves a file that ordinary readers refuse as a whole, because
its index is at the end. Read from the front, all but the damage comes out: chunks whose checksum fails are left out one
by one, and a file that ends in the middle of a record ends there.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from mcap.exceptions import McapError
from mcap.reader import SeekingReader
from mcap.records import Channel, Chunk, Message, Schema
from mcap.stream_reader import StreamReader, breakup_chunk

from vpr_kd_ros.errors import DataError

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


@dataclass
class _Channels:
    schemas: dict[int, Schema] = field(default_factory=dict)
    channels: dict[int, Channel] = field(default_factory=dict)

    def type_of(self, channel: Channel) -> str:
        schema = self.schemas.get(channel.schema_id)
        return schema.name if schema is not None else ""


class McapFile:
    """One MCAP file, whole or damaged.

    Attributes:
        topics: topic to (type, encoding of the messages, count).
        damage: what the last reading through could not read; known at once for a file without its index.

    Raises:
        DataError: it cannot be opened or does not begin as an MCAP file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage = Damage()
        self._size = path.stat().st_size
        with _open(path) as stream:
            if stream.read(len(MAGIC)) != MAGIC:
                raise DataError(f"{path}: not an MCAP file (its first bytes are not MCAP's)")
        self._index = _Channels()
        self.topics: dict[str, tuple[str, str, int]] = self._indexed_topics() or self._counted_topics()

    def messages(self, topics: Collection[str] | None = None) -> Iterator[tuple[str, int, bytes]]:
        """Topic, time of recording in nanoseconds, and serialized bytes of each message, in file order.

        Args:
            topics: those wanted; None means all.
        """
        for topic, _type, _encoding, message in self._walk():
            if topics is None or topic in topics:
                yield topic, message.log_time, message.data

    def _walk(self) -> Iterator[tuple[str, str, str, Message]]:
        # The index repeats the channels, which a damaged chunk may have taken with it.
        known = _Channels(dict(self._index.schemas), dict(self._index.channels))
        damage = Damage()
        with _open(self.path) as stream:
            # No record is longer than its file: a wrong length is recognised before anything is allocated for it.
            records = StreamReader(stream, emit_chunks=True, record_size_limit=self._size).records
            while True:
                start = stream.tell()
                try:
                    record = next(records, None)
                except _MALFORMED:
                    damage.cut_at = start
                    break
                if record is None:
                    break
                for inner in _unpacked(record, damage):
                    if isinstance(inner, Schema):
                        known.schemas[inner.id] = inner
                    elif isinstance(inner, Channel):
                        known.channels[inner.id] = inner
                    elif isinstance(inner, Message) and inner.channel_id in known.channels:
                        channel = known.channels[inner.channel_id]
                        yield channel.topic, known.type_of(channel), channel.message_encoding, inner
        self.damage = damage

    def _indexed_topics(self) -> dict[str, tuple[str, str, int]]:
        try:
            with _open(self.path) as stream:
                summary = SeekingReader(stream, record_size_limit=self._size).get_summary()
        except _MALFORMED:
            return {}
        if summary is None or summary.statistics is None:
            return {}
        self._index = _Channels(summary.schemas, summary.channels)
        topics: dict[str, tuple[str, str, int]] = {}
        for key, channel in summary.channels.items():
            count = topics.get(channel.topic, ("", "", 0))[2] + summary.statistics.channel_message_counts.get(key, 0)
            topics[channel.topic] = (self._index.type_of(channel), channel.message_encoding, count)
        return topics

    def _counted_topics(self) -> dict[str, tuple[str, str, int]]:
        topics: dict[str, tuple[str, str, int]] = {}
        for topic, kind, encoding, _message in self._walk():
            topics[topic] = (kind, encoding, topics.get(topic, ("", "", 0))[2] + 1)
        return topics


def _unpacked(record: Any, damage: Damage) -> list[Any]:
    """Return the records of a chunk, or the record itself; nothing of a chunk that is damaged."""
    if not isinstance(record, Chunk):
        return [record]
    try:
        return list(breakup_chunk(record, validate_crc=True))
    except Exception:  # the decompressors have exceptions of their own, and each means the same
        damage.chunks += 1
        return []


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be opened: {error.strerror}") from error
