"""Writing bags: a rosbag2 folder that holds chunked, checksummed MCAP files and ``metadata.yaml``.

Chunks go to disk at least once a second, so a recorder that is killed loses at most the last one, and each chunk has a
CRC, so a damaged one is noticed. Serialized messages are written as they came. A bag may be split: each file is closed
whole before the next is begun, and begins with what latched topics last said, so that it can be used alone.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import yaml

from vpr_kd_ros.bag_metadata import FileInformation, TopicInformation, bag_information, write_metadata
from vpr_kd_ros.bag_topics import TopicQos, TypeDefinition
from vpr_kd_ros.errors import DataError, MissingDependencyError

if TYPE_CHECKING:
    from vpr_kd_ros.mcap_writer import McapWriter

__all__ = ["BagWriter", "TopicQos", "TypeDefinition"]


@dataclass(frozen=True)
class _Message:
    topic: str
    stamp_ns: int
    data: bytes


@dataclass
class _Latched:
    """What a latched topic last said, to begin the next file with."""

    # Several publishers may latch a message each (static transforms), and their number is not known here.
    AT_LEAST = 10
    MAX_BYTES = 16 << 20

    depth: int
    messages: deque[bytes] = field(default_factory=deque)
    size: int = 0

    def add(self, data: bytes) -> None:
        self.messages.append(data)
        self.size += len(data)
        while len(self.messages) > max(self.depth, self.AT_LEAST) or (
            self.size > self.MAX_BYTES and len(self.messages) > 1
        ):
            self.size -= len(self.messages.popleft())


@dataclass(frozen=True)
class _Topic:
    name: str
    type_name: str
    qos: TopicQos
    definition: TypeDefinition
    latched: _Latched | None

    def information(self) -> TopicInformation:
        return TopicInformation(self.name, self.type_name, self.definition.hash, self.qos.to_yaml())


class BagWriter:
    """Writes messages from any thread; a thread of its own puts them on disk.

    Args:
        path: the folder to create.
        chunk_bytes: a chunk is closed when it is larger than this.
        max_queue_bytes: messages waiting for a slow disk; beyond it new ones are dropped and counted.
        wait_for_disk: where the source can wait, as a file can: then nothing is dropped, and writing waits.
        flush_seconds: a chunk is closed and handed to the disk at least this often.
        compress: zstd per chunk; JPEG gains nothing, raw images and clouds a little.
        max_file_bytes: another file of the bag is begun when one has about this size; 0: never.
        max_file_seconds: another file of the bag is begun when one is this long in log time; 0: never.

    Attributes:
        written: topic to messages handed to the file; after an error, to those that are in it.
        dropped: topic to messages that are not in the bag, because the disk was too slow or refused.
        custom: texts that go into ``metadata.yaml`` as its custom data, by name.

    Raises:
        DataError: the folder exists, or cannot be created.
        MissingDependencyError: the package ``mcap`` is not installed.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        chunk_bytes: int = 1 << 20,
        max_queue_bytes: int = 256 << 20,
        wait_for_disk: bool = False,
        flush_seconds: float = 1.0,
        compress: bool = True,
        max_file_bytes: int = 0,
        max_file_seconds: float = 0.0,
    ) -> None:
        self.path = Path(path)
        self.dropped: Counter[str] = Counter()
        self.written: Counter[str] = Counter()
        self.custom: dict[str, str] = {}
        self._chunk_bytes = chunk_bytes
        self._max_queue_bytes = max_queue_bytes
        self._wait_for_disk = wait_for_disk
        self._flush_seconds = flush_seconds
        self._compress = compress
        self._max_file_bytes = max_file_bytes
        self._max_file_ns = int(max_file_seconds * 1e9)
        self._topics: dict[str, _Topic] = {}
        self._queue: deque[_Message] = deque()
        self._queue_bytes = 0
        self._closing = False
        self._closed = False
        self._error: BaseException | None = None
        self._wake = threading.Condition()
        # The files that are finished, and the one that is being written.
        self._files: list[FileInformation] = []
        self._finished_bytes = 0
        self._file = self._create()
        self._thread = threading.Thread(target=self._run, name="bag writer", daemon=True)
        self._thread.start()

    def declare_topic(
        self, topic: str, type_name: str, qos: TopicQos | None = None, definition: TypeDefinition | None = None
    ) -> None:
        """Announce a topic, so that it is listed even if no message comes.

        Args:
            definition: of the type; None for that of this machine.

        Raises:
            DataError: the type is not known on this machine, or the topic has another type already.
        """
        with self._wake:
            known = self._topics.get(topic)
            if known is None:
                qos = qos or TopicQos()
                self._topics[topic] = _Topic(
                    topic,
                    type_name,
                    qos,
                    definition or TypeDefinition.installed(type_name),
                    _Latched(qos.depth) if qos.transient_local else None,
                )
            elif known.type_name != type_name:
                raise DataError(f"{self.path}: topic {topic!r} holds {known.type_name}, not {type_name}")

    def write(self, topic: str, type_name: str, stamp_ns: int, serialized: bytes) -> bool:
        """Queue one serialized (CDR) message; False when the queue was full and the message was dropped.

        Args:
            stamp_ns: when it was received, nanoseconds: the bag's log time.

        Raises:
            DataError: the disk refused an earlier message, the writer is closed, or the type is not known.
        """
        self.declare_topic(topic, type_name)
        with self._wake:
            self._raise_error()
            if self._closing:
                raise DataError(f"{self.path}: the bag is closed")
            if self._wait_for_disk:
                self._wake.wait_for(lambda: self._error is not None or not self._is_full(serialized))
                self._raise_error()
            if self._is_full(serialized):
                self.dropped[topic] += 1
                return False
            self._queue.append(_Message(topic, stamp_ns, serialized))
            self._queue_bytes += len(serialized)
            self._wake.notify_all()
        return True

    def _is_full(self, serialized: bytes) -> bool:
        return bool(self._queue) and self._queue_bytes + len(serialized) > self._max_queue_bytes

    @property
    def queue_bytes(self) -> int:
        """Bytes waiting for the disk."""
        return self._queue_bytes

    def check(self) -> None:
        """Raise the error the disk gave, if it did.

        Raises:
            DataError: the bag can no longer be written.
        """
        with self._wake:
            self._raise_error()

    @property
    def file_count(self) -> int:
        """Files that the bag has so far."""
        return len(self._files) + (not self._file.closed)

    @property
    def size(self) -> int:
        """Bytes of its files so far."""
        return self._finished_bytes + (0 if self._file.closed else self._file.size)

    @property
    def unwritten_bytes(self) -> int:
        """Bytes that will need room on the disk, before compression: what waits, and the chunk that is being filled."""
        return self._queue_bytes + self._file.chunk_size

    def close(self) -> None:
        """Write what waits, the index and ``metadata.yaml``. A second call does nothing.

        Raises:
            DataError: the disk refused; what was written before is readable.
        """
        if self._closed:
            return
        self._closed = True
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._thread.join()
        try:
            if self._error is not None:
                # What refused a chunk of megabytes may have room for an index of kilobytes.
                with suppress(OSError):
                    self._finish()
            self._raise_error()
            self._finish()
        except OSError as error:
            raise DataError(f"{self.path}: cannot be finished: {error}; what was written before is readable") from error
        finally:
            self._file.close()

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- the writer's thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            next_flush = time.monotonic() + self._flush_seconds
            while True:
                with self._wake:
                    if not self._queue and not self._closing:
                        self._wake.wait(timeout=max(0.0, next_flush - time.monotonic()))
                    message = self._queue.popleft() if self._queue else None
                    done = message is None and self._closing
                if message is not None:
                    self._put(message)
                    with self._wake:
                        self._queue_bytes -= len(message.data)
                        self._wake.notify_all()
                if done or time.monotonic() >= next_flush:
                    self._file.flush()
                    next_flush = time.monotonic() + self._flush_seconds
                if done:
                    return
        except BaseException as error:
            with self._wake:
                self._error = error
                self._count_as_dropped()
                self._wake.notify_all()

    def _count_as_dropped(self) -> None:
        # The message that could not be written is in the chunk, as are those before it.
        lost = self._file.drop_chunk()
        self.written.subtract(lost)
        self.dropped.update(lost)
        self.dropped.update(message.topic for message in self._queue)
        self._queue.clear()
        self._queue_bytes = 0

    def _put(self, message: _Message) -> None:
        if self._is_split_due(message.stamp_ns):
            try:
                self._split(message.stamp_ns)
            except OSError:
                self.dropped[message.topic] += 1
                raise
        self._add(message)
        latched = self._topics[message.topic].latched
        if latched is not None:
            latched.add(message.data)

    def _add(self, message: _Message) -> None:
        self._announce(self._file, self._topics[message.topic])
        self.written[message.topic] += 1
        self._file.add(message.topic, message.stamp_ns, message.data)

    # --- files -------------------------------------------------------------------------------------------------------

    def _is_split_due(self, stamp_ns: int) -> bool:
        if self._file.start_ns is None:
            return False
        # The distance, because a clock that is set back would otherwise never come to the end of a file.
        too_long = self._max_file_ns and abs(stamp_ns - self._file.start_ns) >= self._max_file_ns
        size = self._file.size + self._file.chunk_size
        return bool(too_long or (self._max_file_bytes and size >= self._max_file_bytes))

    def _split(self, stamp_ns: int) -> None:
        self._files.append(self._finish_file())
        self._file = self._next_file()
        with self._wake:
            topics = list(self._topics.values())
        for topic in topics:
            self._announce(self._file, topic)
            for data in topic.latched.messages if topic.latched is not None else ():
                self._add(_Message(topic.name, stamp_ns, data))

    def _announce(self, file: McapWriter, topic: _Topic) -> None:
        file.add_topic(
            topic.name,
            topic.type_name,
            topic.definition.encoding,
            topic.definition.text,
            {"offered_qos_profiles": topic.qos.to_yaml(), "topic_type_hash": topic.definition.hash},
        )

    def _create(self) -> McapWriter:
        try:
            self.path.mkdir(parents=True)
            return self._next_file()
        except ImportError as error:
            raise MissingDependencyError("recording needs the package mcap: pip install mcap zstandard") from error
        except FileExistsError as error:
            raise DataError(f"{self.path} exists already; give another folder, or move it away") from error
        except OSError as error:
            raise DataError(f"{self.path} cannot be created: {error}") from error

    def _next_file(self) -> McapWriter:
        from vpr_kd_ros.mcap_writer import McapWriter

        name = f"{self.path.name}_{len(self._files)}.mcap"
        return McapWriter(self.path / name, chunk_bytes=self._chunk_bytes, compress=self._compress)

    def _finish_file(self) -> FileInformation:
        file = self._file
        with self._wake:
            topics = list(self._topics.values())
        # Those without a message are listed too.
        for topic in topics:
            self._announce(file, topic)
        file.flush()
        information = FileInformation(file.path.name, file.start_ns, file.end_ns, dict(file.written))
        # With it, a file that is taken out of its folder is a bag.
        alone = yaml.safe_dump(self._information([information]))
        file.finish({"rosbag2": {"serialized_metadata": alone}})
        self._finished_bytes += file.size
        file.close()
        return information

    def _finish(self) -> None:
        # It is closed already where the one after it could not be created.
        if not self._file.closed:
            self._files.append(self._finish_file())
        write_metadata(self.path, self._information(self._files))

    def _information(self, files: list[FileInformation]) -> Mapping[str, object]:
        dropped = {f"dropped {topic}": str(count) for topic, count in self.dropped.items() if count}
        topics = [topic.information() for topic in self._topics.values()]
        return bag_information(files, topics, {**self.custom, **dropped})

    def _raise_error(self) -> None:
        if self._error is not None:
            raise DataError(
                f"{self.path}: the disk refused to write: {self._error}; what was written before is readable"
            ) from self._error
