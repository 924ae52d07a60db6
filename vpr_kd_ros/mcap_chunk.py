"""One chunk of an MCAP file: unpacked, its checksum verified, and what is wanted of it copied out.

A chunk is unpacked into memory that serves the next one again: a reading that wants little of many chunks costs little.
"""

from __future__ import annotations

import importlib
import os
import struct
import threading
import zlib
from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from mcap.data_stream import ReadDataStream
from mcap.opcode import Opcode
from mcap.records import Channel, Chunk, ChunkIndex, Message, Schema

from vpr_kd_ros.errors import MissingDependencyError

HEAD_BYTES = 512
"""Of a message: enough for its header, and no megabyte is copied for its stamp."""
_RECORD = struct.Struct("<BQ")  # opcode and length, before the content of each record
_CHUNK = struct.Struct("<QQQII")  # start and end time, size, CRC, length of the name of its compression
_MESSAGE = struct.Struct("<HIQQ")  # channel, sequence, log time, publish time, before the data of a message
_PACKAGES = {"zstd": "zstandard", "lz4": "lz4"}


@dataclass(frozen=True)
class Wanted:
    """Topics (None: all) and, of each, log times (None: all) of the messages wanted; topics of which heads will do."""

    topics: Collection[str] | None = None
    times: Mapping[str, Set[int]] | None = None
    heads: Collection[str] = ()

    def has(self, topic: str, time: int) -> bool:
        """Whether a message is wanted."""
        return (self.topics is None or topic in self.topics) and (self.times is None or time in self.times[topic])


class Room(threading.local):
    """Memory that a thread uses again and again."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, dtype=np.uint8)

    def of(self, size: int) -> memoryview:
        """So many bytes; what was in them is overwritten."""
        if len(self._bytes) < size:
            # Not zeroed: a damaged chunk that claims to be huge takes no memory that is never written.
            self._bytes = np.empty(size, dtype=np.uint8)
        return self._bytes.data[:size]


class Unpacker:
    """Takes what is wanted out of chunks, in any number of threads.

    Args:
        path: of the file, for errors.
        channels: by id, those that the file's index names; chunks may have more.
        wanted: of messages of channels that are known neither from there nor from their chunk, all are given.
    """

    def __init__(self, path: Path, channels: Mapping[int, Channel], wanted: Wanted) -> None:
        self._path = path
        self._channels = channels
        self._wanted = wanted
        self._stored, self._content = Room(), Room()

    def read(self, file: int, index: ChunkIndex) -> list[Any] | None:
        """What ``records`` gives of the chunk at a place in a file, by the file's descriptor."""
        try:
            if index.chunk_start_offset + index.chunk_length > os.fstat(file).st_size:
                return None
            data = self._stored.of(index.chunk_length)
            if os.preadv(file, [data], index.chunk_start_offset) != len(data):
                return None
            opcode, length = _RECORD.unpack_from(data)
            start, end, size, crc, named = _CHUNK.unpack_from(data, _RECORD.size)
            at = _RECORD.size + _CHUNK.size + named
            (stored,) = struct.unpack_from("<Q", data, at)
            if opcode != Opcode.CHUNK or _RECORD.size + length != len(data) or at + 8 + stored > len(data):
                return None
            compression = str(data[at - named : at], "utf-8")
        except (OSError, OverflowError, MemoryError, struct.error, UnicodeDecodeError):
            return None
        return self.records(Chunk(compression, data[at + 8 : at + 8 + stored], end, start, crc, size))

    def records(self, chunk: Chunk) -> list[Any] | None:
        """Schemas, channels and wanted messages of a chunk; None where it is damaged.

        Raises:
            MissingDependencyError: it is compressed with a library that is not installed.
        """
        try:
            content = _unpacked(chunk, self._content)
            if chunk.uncompressed_crc not in (0, zlib.crc32(content)):
                return None
            return self._split(content)
        except ImportError as error:
            package = _PACKAGES[chunk.compression]
            raise MissingDependencyError(
                f"{self._path}: its chunks are compressed with {chunk.compression}: pip install {package}"
            ) from error
        except Exception:  # the decompressors have exceptions of their own, and each means the same
            return None

    def _split(self, content: memoryview) -> list[Any]:
        records: list[Any] = []
        channels = dict(self._channels)
        at = 0
        while at < len(content):
            opcode, length = _RECORD.unpack_from(content, at)
            start, at = at + _RECORD.size, at + _RECORD.size + length
            if at > len(content):
                raise ValueError(f"a record of {length} bytes ends beyond its chunk")
            if opcode == Opcode.MESSAGE:
                if (message := self._message(content[start:at], channels)) is not None:
                    records.append(message)
            elif opcode in (Opcode.CHANNEL, Opcode.SCHEMA):
                kind = Channel if opcode == Opcode.CHANNEL else Schema
                records.append(kind.read(ReadDataStream(BytesIO(content[start:at]))))
                if opcode == Opcode.CHANNEL:
                    channels[records[-1].id] = records[-1]
        return records

    def _message(self, record: memoryview, channels: Mapping[int, Channel]) -> Message | None:
        if len(record) < _MESSAGE.size:
            raise ValueError(f"a message of {len(record)} bytes has no head")
        channel_id, sequence, log_time, publish_time = _MESSAGE.unpack_from(record)
        channel = channels.get(channel_id)
        stop = len(record)
        if channel is not None:
            if not self._wanted.has(channel.topic, log_time):
                return None
            if channel.topic in self._wanted.heads:
                stop = min(stop, _MESSAGE.size + HEAD_BYTES)
        return Message(channel_id, log_time, bytes(record[_MESSAGE.size : stop]), publish_time, sequence)


def _unpacked(chunk: Chunk, room: Room) -> memoryview:
    """Content of a chunk, which lies in the room, or in the chunk itself."""
    if chunk.compression == "":
        return memoryview(chunk.data)
    if chunk.compression == "zstd":
        content = room.of(chunk.uncompressed_size)
        decompressor = importlib.import_module(_PACKAGES["zstd"]).ZstdDecompressor()
        if decompressor.stream_reader(chunk.data).readinto(content) != len(content):
            raise ValueError(f"a chunk has less than the {len(content)} bytes that it states")
        return content
    if chunk.compression == "lz4":
        return memoryview(importlib.import_module("lz4.frame").decompress(chunk.data))
    raise ValueError(f"unknown compression {chunk.compression!r}")
