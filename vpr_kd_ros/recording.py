"""Writing bags: a rosbag2 folder that holds one chunked, checksummed MCAP file and ``metadata.yaml``.

Chunks go to disk at least once a second, so a recorder that is killed loses at most the last one, and each chunk has a
CRC, so a damaged one is noticed. Serialized messages are written as they came.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import yaml

from vpr_kd_ros.errors import DataError, MissingDependencyError
from vpr_kd_ros.message_definitions import message_definition, type_hash

METADATA_VERSION = 8
FOREVER = {"sec": 9223372036, "nsec": 854775807}


@dataclass(frozen=True)
class TopicQos:
    """What a player needs to offer a topic again as it was: latched topics, for one, are transient_local.

    Attributes:
        reliable: reliable, else best effort.
        transient_local: late subscribers get the last messages, else volatile.
        depth: messages kept.
    """

    reliable: bool = True
    transient_local: bool = False
    depth: int = 10

    def to_yaml(self) -> str:
        """As rosbag2 writes an offered QoS profile: numbers of the rmw enumerations."""
        profile = {
            "history": 1,  # keep last
            "depth": self.depth,
            "reliability": 1 if self.reliable else 2,
            "durability": 1 if self.transient_local else 2,
            "deadline": dict(FOREVER),
            "lifespan": dict(FOREVER),
            "liveliness": 1,  # automatic
            "liveliness_lease_duration": dict(FOREVER),
            "avoid_ros_namespace_conventions": False,
        }
        return str(yaml.safe_dump([profile], default_flow_style=False, sort_keys=False))

    @classmethod
    def from_yaml(cls, text: str) -> TopicQos:
        """The first of the profiles that a bag has for a topic; the usual one where there is none to be read."""
        # Numbers (rosbag2 up to Iron) or names (from Jazzy on) of the rmw enumerations.
        try:
            profile = yaml.safe_load(text)[0]
            return cls(
                reliable=profile["reliability"] in (1, "reliable"),
                transient_local=profile["durability"] in (1, "transient_local"),
                depth=max(1, int(profile["depth"])),
            )
        except (yaml.YAMLError, KeyError, TypeError, IndexError, ValueError):
            return cls()


@dataclass(frozen=True)
class TypeDefinition:
    """What makes a type readable elsewhere: its text, the encoding of the text, and the ``RIHS01_...`` hash."""

    text: str
    encoding: str = "ros2msg"
    hash: str = ""

    @classmethod
    def installed(cls, type_name: str) -> TypeDefinition:
        """That of the message package on this machine.

        Raises:
            DataError: the package is not installed, or has no such message.
        """
        return cls(message_definition(type_name), hash=type_hash(type_name))


@dataclass(frozen=True)
class _Topic:
    name: str
    type_name: str
    qos: TopicQos
    definition: TypeDefinition


@dataclass(frozen=True)
class _Message:
    topic: str
    stamp_ns: int
    data: bytes


class BagWriter:
    """Writes messages from any thread; a thread of its own puts them on disk.

    Args:
        path: the folder to create.
        chunk_bytes: a chunk is closed when it is larger than this.
        max_queue_bytes: messages waiting for a slow disk; beyond it new ones are dropped and counted.
        wait_for_disk: where the source can wait, as a file can: then nothing is dropped, and writing waits.
        flush_seconds: a chunk is closed and handed to the disk at least this often.
        compress: zstd per chunk; JPEG gains nothing, raw images and clouds a little.

    Raises:
        DataError: the folder exists, or cannot be created.
        MissingDependencyError: the package ``mcap`` is not installed.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        chunk_bytes: int = 4 << 20,
        max_queue_bytes: int = 256 << 20,
        wait_for_disk: bool = False,
        flush_seconds: float = 1.0,
        compress: bool = True,
    ) -> None:
        self.path = Path(path)
        self.dropped: Counter[str] = Counter()
        self.written: Counter[str] = Counter()
        self._max_queue_bytes = max_queue_bytes
        self._wait_for_disk = wait_for_disk
        self._flush_seconds = flush_seconds
        self._topics: dict[str, _Topic] = {}
        self._channels: dict[str, int] = {}
        self._schemas: dict[str, int] = {}
        self._queue: deque[_Message] = deque()
        self._queue_bytes = 0
        self._first_ns: int | None = None
        self._last_ns = 0
        self._closing = False
        self._closed = False
        self._error: BaseException | None = None
        self._wake = threading.Condition()
        self._file, self._mcap = self._open(chunk_bytes, compress)
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
                self._topics[topic] = _Topic(
                    topic, type_name, qos or TopicQos(), definition or TypeDefinition.installed(type_name)
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

    def close(self) -> None:
        """Write what waits, the index and ``metadata.yaml``. A second call does nothing.

        Raises:
            DataError: the disk refused; the chunks written before are still readable.
        """
        if self._closed:
            return
        self._closed = True
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._thread.join()
        try:
            self._raise_error()
            self._finish()
        except OSError as error:
            raise DataError(f"{self.path}: cannot be finished: {error}") from error
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
                    self._flush()
                    next_flush = time.monotonic() + self._flush_seconds
                if done:
                    return
        except BaseException as error:
            with self._wake:
                self._error = error
                for message in self._queue:
                    self.dropped[message.topic] += 1
                self._queue.clear()
                self._queue_bytes = 0
                self._wake.notify_all()

    def _put(self, message: _Message) -> None:
        channel = self._channel(self._topics[message.topic])
        self._mcap.add_message(
            channel_id=channel,
            log_time=message.stamp_ns,
            publish_time=message.stamp_ns,
            data=message.data,
            sequence=self.written[message.topic],
        )
        self.written[message.topic] += 1
        self._first_ns = message.stamp_ns if self._first_ns is None else min(self._first_ns, message.stamp_ns)
        self._last_ns = max(self._last_ns, message.stamp_ns)

    def _channel(self, topic: _Topic) -> int:
        if topic.type_name not in self._schemas:
            self._schemas[topic.type_name] = self._mcap.register_schema(
                name=topic.type_name, encoding=topic.definition.encoding, data=topic.definition.text.encode()
            )
        if topic.name not in self._channels:
            self._channels[topic.name] = self._mcap.register_channel(
                topic=topic.name,
                message_encoding="cdr",
                schema_id=self._schemas[topic.type_name],
                metadata={"offered_qos_profiles": topic.qos.to_yaml(), "topic_type_hash": topic.definition.hash},
            )
        return self._channels[topic.name]

    def _flush(self) -> None:
        self._mcap.flush()
        # Robots are switched off at the battery; what is not synced is lost with the page cache.
        os.fdatasync(self._file.fileno())

    # --- opening and finishing ---------------------------------------------------------------------------------------

    def _open(self, chunk_bytes: int, compress: bool) -> tuple[IO[bytes], Any]:
        try:
            from mcap.writer import CompressionType, Writer
        except ImportError as error:
            raise MissingDependencyError("recording needs the package mcap: pip install mcap") from error
        try:
            self.path.mkdir(parents=True)
            file = (self.path / self._file_name).open("xb")
        except FileExistsError as error:
            raise DataError(f"{self.path} exists already; give another folder, or move it away") from error
        except OSError as error:
            raise DataError(f"{self.path} cannot be created: {error}") from error
        writer = Writer(
            file,
            chunk_size=chunk_bytes,
            compression=CompressionType.ZSTD if compress else CompressionType.NONE,
            enable_crcs=True,
        )
        writer.start(profile="ros2", library="vpr_kd_ros")
        return file, writer

    @property
    def _file_name(self) -> str:
        return f"{self.path.name}_0.mcap"

    def _finish(self) -> None:
        for topic in self._topics.values():
            self._channel(topic)
        text = yaml.safe_dump({"rosbag2_bagfile_information": self._information()}, sort_keys=False)
        self._mcap.add_metadata("rosbag2", {"serialized_metadata": yaml.safe_dump(self._information())})
        self._mcap.finish()
        self._file.flush()
        os.fsync(self._file.fileno())
        temporary = self.path / "metadata.yaml.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.path / "metadata.yaml")

    def _information(self) -> dict[str, Any]:
        start = {"nanoseconds_since_epoch": self._first_ns or 0}
        duration = {"nanoseconds": self._last_ns - (self._first_ns or 0)}
        count = sum(self.written.values())
        return {
            "version": METADATA_VERSION,
            "storage_identifier": "mcap",
            "duration": dict(duration),
            "starting_time": dict(start),
            "message_count": count,
            "topics_with_message_count": list(self._topic_rows()),
            "compression_format": "",
            "compression_mode": "",
            "relative_file_paths": [self._file_name],
            "files": [
                {
                    "path": self._file_name,
                    "starting_time": dict(start),
                    "duration": dict(duration),
                    "message_count": count,
                }
            ],
            "custom_data": None,
            "ros_distro": os.environ.get("ROS_DISTRO", ""),
        }

    def _topic_rows(self) -> Iterable[dict[str, Any]]:
        for topic in self._topics.values():
            yield {
                "topic_metadata": {
                    "name": topic.name,
                    "type": topic.type_name,
                    "serialization_format": "cdr",
                    "offered_qos_profiles": topic.qos.to_yaml(),
                    "type_description_hash": topic.definition.hash,
                },
                "message_count": self.written[topic.name],
            }

    def _raise_error(self) -> None:
        if self._error is not None:
            raise DataError(f"{self.path}: the disk refused to write: {self._error}") from self._error
