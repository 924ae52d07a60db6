"""Writes one MCAP file so that as much of it as can be survives whatever happens to the recorder and the disk.

Every chunk brings the types and topics of its messages, so it is readable without its neighbours, and a CRC, so damage
is noticed. The file ends with a whole record after every write, also when the disk refuses half of one.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import zstandard
from mcap.data_stream import RecordBuilder
from mcap.opcode import Opcode
from mcap.records import (
    Channel,
    ChunkIndex,
    DataEnd,
    Footer,
    Header,
    McapRecord,
    MessageIndex,
    Metadata,
    MetadataIndex,
    Schema,
    Statistics,
    SummaryOffset,
)

MAGIC = b"\x89MCAP0\r\n"
# Raw images and clouds are noise to a large part. Of a camera (640x480 at 30 Hz) and a LiDAR (130,000 points at 10 Hz),
# synthetic, level 1 leaves 72 % and takes a sixth of a core; level 3 a third of one for half a percent less; level -1 a
# tenth of one, and leaves 81 %.
ZSTD_LEVEL = 1
_MESSAGE = struct.Struct("<BQHIQQ")
_MESSAGE_FIXED = _MESSAGE.size - 9  # what the record's length counts beside the data
_CHUNK = struct.Struct("<BQQQQI")


@dataclass
class _Topic:
    channel_id: int
    records: bytes  # its schema and its channel, as they stand in every chunk
    written: int = 0


class McapWriter:
    """One file, written by one thread.

    Args:
        path: of the file, which must not exist.
        chunk_bytes: a chunk is written when it is larger than this.
        compress: chunks with zstd.

    Attributes:
        written: topic to messages that are in the file.
        start_ns, end_ns: log times of the first and the last message in the file or in the chunk that is being filled.

    Raises:
        OSError: the file cannot be created; every method that writes raises it too, and leaves the file as it was.
    """

    def __init__(self, path: Path, *, chunk_bytes: int, compress: bool) -> None:
        self.path = path
        self.written: Counter[str] = Counter()
        self.start_ns: int | None = None
        self.end_ns = 0
        self._chunk_bytes = chunk_bytes
        self._compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL) if compress else None
        self._topics: dict[str, _Topic] = {}
        self._schemas: dict[str, Schema] = {}
        self._channels: list[Channel] = []
        self._chunks: list[ChunkIndex] = []
        self._metadata: list[MetadataIndex] = []
        self._clear_chunk()
        self._position = 0
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            self._append(MAGIC, _bytes_of(Header(profile="ros2", library="vpr_kd_ros")))
        except OSError:
            # An empty file is no MCAP file, and readers would stumble over it.
            self.close()
            path.unlink()
            raise

    @property
    def closed(self) -> bool:
        """Whether the file is closed."""
        return self._descriptor < 0

    @property
    def size(self) -> int:
        """Bytes of the file so far."""
        return self._position

    @property
    def chunk_size(self) -> int:
        """Bytes of the chunk that is being filled, before its compression."""
        return self._chunk_size

    def add_topic(
        self, topic: str, type_name: str, encoding: str, definition: str, metadata: Mapping[str, str]
    ) -> None:
        """Announce a topic: its type, the encoding and the text of the type's definition, the channel's metadata."""
        if topic in self._topics:
            return
        schema = self._schemas.get(type_name)
        if schema is None:
            schema = Schema(id=len(self._schemas) + 1, name=type_name, encoding=encoding, data=definition.encode())
            self._schemas[type_name] = schema
        channel = Channel(
            id=len(self._channels) + 1,
            topic=topic,
            message_encoding="cdr",
            schema_id=schema.id,
            metadata=dict(metadata),
        )
        self._channels.append(channel)
        self._topics[topic] = _Topic(channel.id, _bytes_of(schema, channel))

    def add(self, topic: str, stamp_ns: int, data: bytes) -> None:
        """Add a message of an announced topic with its log time; the chunk is written when it is full."""
        known = self._topics[topic]
        if known.channel_id not in self._entries:
            self._entries[known.channel_id] = []
            self._put(known.records)
        self._entries[known.channel_id].append((stamp_ns, self._chunk_size))
        length = _MESSAGE_FIXED + len(data)
        self._put(
            _MESSAGE.pack(Opcode.MESSAGE, length, known.channel_id, known.written & 0xFFFFFFFF, stamp_ns, stamp_ns)
        )
        self._put(data)
        known.written += 1
        self._chunk_counts[topic] += 1
        self.start_ns = stamp_ns if self.start_ns is None else min(self.start_ns, stamp_ns)
        self.end_ns = max(self.end_ns, stamp_ns)
        if self._chunk_size > self._chunk_bytes:
            self._write_chunk()

    def flush(self) -> None:
        """Write the chunk that is being filled and have the disk keep it."""
        self._write_chunk()
        # Robots are switched off at the battery; what is not synced is lost with the page cache.
        os.fdatasync(self._descriptor)

    def finish(self, metadata: Mapping[str, Mapping[str, str]]) -> None:
        """Write the chunk that is being filled, metadata records by name, and the index; then nothing can be added."""
        self._write_chunk()
        for name, values in metadata.items():
            record = _bytes_of(Metadata(name=name, metadata=dict(values)))
            self._metadata.append(MetadataIndex(offset=self._position, length=len(record), name=name))
            self._append(record)
        end = _bytes_of(DataEnd(0))
        self._append(end, self._summary(self._position + len(end)), MAGIC)
        os.fsync(self._descriptor)

    def drop_chunk(self) -> Counter[str]:
        """Forget the chunk that is being filled, and return how many messages of each topic were in it."""
        lost = self._chunk_counts
        self._clear_chunk()
        stamps = [(index.message_start_time, index.message_end_time) for index in self._chunks]
        self.start_ns = min((start for start, _ in stamps), default=None)
        self.end_ns = max((end for _, end in stamps), default=0)
        return lost

    def close(self) -> None:
        """Close the file as it is; a second call does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    # --- chunks ------------------------------------------------------------------------------------------------------

    def _clear_chunk(self) -> None:
        self._parts: list[bytes] = []
        self._chunk_size = 0
        # By channel: log time and place in the chunk of each message.
        self._entries: dict[int, list[tuple[int, int]]] = {}
        self._chunk_counts: Counter[str] = Counter()

    def _put(self, part: bytes) -> None:
        self._parts.append(part)
        self._chunk_size += len(part)

    def _write_chunk(self) -> None:
        if not self._entries:
            return
        content = b"".join(self._parts)
        compression = "" if self._compressor is None else "zstd"
        data = content if self._compressor is None else self._compressor.compress(content)
        stamps = [stamp for entries in self._entries.values() for stamp, _ in entries]
        start_ns, end_ns = min(stamps), max(stamps)
        name = struct.pack("<I", len(compression)) + compression.encode() + struct.pack("<Q", len(data))
        length = _CHUNK.size - 9 + len(name) + len(data)
        head = _CHUNK.pack(Opcode.CHUNK, length, start_ns, end_ns, len(content), zlib.crc32(content)) + name
        indexes = [_bytes_of(MessageIndex(channel, entries)) for channel, entries in self._entries.items()]
        offsets, offset = {}, self._position + len(head) + len(data)
        for channel, record in zip(self._entries, indexes, strict=True):
            offsets[channel] = offset
            offset += len(record)
        index = ChunkIndex(
            message_start_time=start_ns,
            message_end_time=end_ns,
            chunk_start_offset=self._position,
            chunk_length=len(head) + len(data),
            message_index_offsets=offsets,
            message_index_length=sum(map(len, indexes)),
            compression=compression,
            compressed_size=len(data),
            uncompressed_size=len(content),
        )
        self._append(head, data, *indexes)
        self._chunks.append(index)
        self.written.update(self._chunk_counts)
        self._clear_chunk()

    # --- the file ----------------------------------------------------------------------------------------------------

    def _append(self, *parts: bytes) -> None:
        try:
            for part in parts:
                view = memoryview(part)
                while view:
                    view = view[os.write(self._descriptor, view) :]
        except OSError:
            # Half a record would hide what is written behind it, and its room is what the index needs on a full disk.
            os.ftruncate(self._descriptor, self._position)
            os.lseek(self._descriptor, self._position, os.SEEK_SET)
            raise
        self._position += sum(map(len, parts))

    def _summary(self, start: int) -> bytes:
        """Return everything between the data and the closing magic bytes, for a place in the file."""
        groups = [
            (Opcode.SCHEMA, _bytes_of(*self._schemas.values())),
            (Opcode.CHANNEL, _bytes_of(*self._channels)),
            (Opcode.STATISTICS, _bytes_of(self._statistics())),
            (Opcode.CHUNK_INDEX, _bytes_of(*self._chunks)),
            (Opcode.METADATA_INDEX, _bytes_of(*self._metadata)),
        ]
        body, offsets = b"", b""
        for opcode, records in groups:
            if records:
                place = SummaryOffset(group_opcode=opcode, group_start=start + len(body), group_length=len(records))
                offsets += _bytes_of(place)
                body += records
        # The CRC of the summary reaches into the footer, up to the CRC itself.
        footer = _bytes_of(Footer(summary_start=start, summary_offset_start=start + len(body), summary_crc=0))
        crc = zlib.crc32(body + offsets + footer[:-4])
        return body + offsets + footer[:-4] + struct.pack("<I", crc)

    def _statistics(self) -> Statistics:
        return Statistics(
            attachment_count=0,
            channel_count=len(self._channels),
            channel_message_counts={known.channel_id: self.written[topic] for topic, known in self._topics.items()},
            chunk_count=len(self._chunks),
            message_count=sum(self.written.values()),
            message_start_time=min((index.message_start_time for index in self._chunks), default=0),
            message_end_time=max((index.message_end_time for index in self._chunks), default=0),
            metadata_count=len(self._metadata),
            schema_count=len(self._schemas),
        )


def _bytes_of(*records: McapRecord) -> bytes:
    builder = RecordBuilder()
    for record in records:
        record.write(builder)
    return bytes(builder.end())
