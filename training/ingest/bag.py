"""Recorded bags behind one face: rosbag2 folders (MCAP, sqlite3), single .mcap and .db3 files, rosbag1 .bag files.

Needs no ROS. The messages that are read here have kept their definition through all releases of ROS 2, so a bag without
definitions, or with a custom type that does not parse, is read like any other; of custom types only Livox's is read, by
its definition in the bag.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Collection, Iterator, Mapping, Set
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import yaml
from rosbags.interfaces import MessageDefinitionFormat
from rosbags.rosbag1 import Reader as Rosbag1Reader
from rosbags.rosbag2 import Reader as Rosbag2Reader
from rosbags.typesys import Stores, get_typestore

from training.ingest import livox
from vpr_kd_ros.bag_splits import Recorded, follow_on, numbered
from vpr_kd_ros.bag_topics import TypeDefinition
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.mcap_file import McapFile
from vpr_kd_ros.playback import natural_order

SUFFIXES = (".mcap", ".db3", ".bag")
METADATA = "metadata.yaml"
_HALF_WRITTEN = (
    "half-written, its recorder was killed before it stored the messages, and nothing can be recovered; record to MCAP "
    "(ros2 bag record -s mcap), which survives this"
)


@dataclass(frozen=True)
class Topic:
    """A topic of a bag: its type as ROS 2 writes it ("sensor_msgs/msg/Image"), encoding, and number of messages."""

    name: str
    type: str
    encoding: str
    count: int


class _FileTopic(Protocol):
    @property
    def type_name(self) -> str: ...
    @property
    def encoding(self) -> str: ...
    @property
    def count(self) -> int: ...
    @property
    def definition(self) -> TypeDefinition: ...


class _File(Recorded, Protocol):
    @property
    def topics(self) -> Mapping[str, _FileTopic]: ...

    def messages(
        self,
        topics: Collection[str] | None = None,
        times: Mapping[str, Set[int]] | None = None,
        heads: Collection[str] = (),
    ) -> Iterator[tuple[str, int, bytes]]: ...


class Bag:
    """A bag, opened for reading; use as a context manager.

    Attributes:
        path: as it was given.
        files: the files that hold the messages.
        topics: name to ``Topic``.
        custom: what its recorder noted in ``metadata.yaml``, by name: above all how many messages it lost.

    Raises:
        DataError: there is no bag, nothing can be read of it, or its files are those of several bags.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.topics: dict[str, Topic] = {}
        self._notices: list[str] = []
        self._livox_readers: dict[str, livox.LivoxReader] = {}
        metadata = self._metadata()
        self.files = self._find_files(metadata)
        self._expected: int | None = metadata.get("message_count")
        custom = metadata.get("custom_data")
        self.custom = {str(k): str(v) for k, v in custom.items()} if isinstance(custom, dict) else {}
        self._stack = ExitStack()
        try:
            self._sources = self._open(metadata)
            self._require_one_recording()
            self.topics = self._merge_topics()
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Bag:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def message_count(self) -> int:
        """Messages that the bag holds, as far as it can be read."""
        return sum(topic.count for topic in self.topics.values())

    @property
    def expected_count(self) -> int | None:
        """Messages that its metadata says it had, None where there is none."""
        return self._expected

    @property
    def mcap_files(self) -> list[McapFile]:
        """Its files, where they are MCAP."""
        return [source for source in self._sources if isinstance(source, McapFile)]

    @property
    def notices(self) -> list[str]:
        """What the owner should know about the bag; complete once it was read through."""
        return [*self._notices, *(line for source in self._sources for line in self._damage_of(source))]

    def messages(
        self,
        topics: Collection[str] | None = None,
        times: Mapping[str, Set[int]] | None = None,
        heads: Collection[str] = (),
    ) -> Iterator[tuple[str, int, bytes]]:
        """Topic, time of recording (ns) and serialized bytes of each message.

        Nearly in the order of recording; the order is the same every time.

        Args:
            topics: those wanted; None means all.
            times: of each topic the times of recording wanted, in place of ``topics``: an indexed MCAP file is read
                only where they are.
            heads: topics of whose messages the header will do: the rest may be missing.

        Raises:
            DataError: a file that is not MCAP is damaged.
        """
        # A file is opened when its first message is due: one at a time of a bag that was split.
        coming = sorted(enumerate(self._sources), key=lambda item: (item[1].start_ns or 0, item[0]), reverse=True)
        due: list[tuple[int, int, tuple[str, int, bytes], Iterator[tuple[str, int, bytes]]]] = []
        while coming or due:
            if coming and (not due or (coming[-1][1].start_ns or 0) <= due[0][0]):
                number, source = coming.pop()
                stream = source.messages(topics, times, heads)
            else:
                _, number, message, stream = heapq.heappop(due)
                yield message
            if (following := next(stream, None)) is not None:
                heapq.heappush(due, (following[1], number, following, stream))

    def decode(self, topic: str, data: bytes) -> Any:
        """Message object of the serialized bytes.

        Raises:
            DataError: the bytes are not a message of the topic's type.
        """
        kind = self.topics[topic].type
        if kind in livox.TYPES:
            return self._livox(topic, data)
        try:
            if self.topics[topic].encoding == "ros1":
                return _types(Stores.ROS1_NOETIC).deserialize_ros1(data, kind)
            # Of a view it takes views, of bytes copies.
            return _types(Stores.ROS2_JAZZY).deserialize_cdr(memoryview(data), kind)
        except Exception as error:  # damaged bytes make the deserializer fail in as many ways as it has lines
            raise DataError(f"{topic}: {len(data)} bytes are not a {kind}: {error}") from error

    def _livox(self, topic: str, data: bytes) -> Any:
        try:
            if topic not in self._livox_readers:
                known = (source.topics[topic].definition for source in self._sources if topic in source.topics)
                definition = next((d for d in known if d.text), TypeDefinition(""))
                reader = livox.LivoxReader(self.topics[topic].type, definition.text, definition.encoding)
                self._livox_readers[topic] = reader
            return self._livox_readers[topic].read(data, self.topics[topic].encoding == "ros1")
        except DataError as error:
            raise DataError(f"{topic}: {error}") from error

    def stamp_ns(self, topic: str, data: bytes) -> int:
        """Stamp of the header that the serialized bytes begin with, nanoseconds; nothing else is decoded.

        Raises:
            DataError: there are too few bytes.
        """
        try:
            if self.topics[topic].encoding == "ros1":
                _sequence, seconds, nanoseconds = struct.unpack_from("<III", data)
            else:  # the second byte of CDR's four tells the byte order
                seconds, nanoseconds = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
        except (struct.error, IndexError) as error:
            raise DataError(f"{topic}: a message of {len(data)} bytes has no header") from error
        return int(seconds) * 1_000_000_000 + int(nanoseconds)

    def frame_id(self, topic: str, data: bytes) -> str:
        """Frame of the header that the serialized bytes begin with; nothing else is decoded.

        Raises:
            DataError: there are too few bytes, or they are no text.
        """
        try:
            # Before it are 12 bytes, of ROS 1 (number and stamp) as of CDR (its head and the stamp).
            ros1 = self.topics[topic].encoding == "ros1"
            (length,) = struct.unpack_from("<I" if ros1 or data[1] & 1 else ">I", data, 12)
            if 16 + length > len(data):
                raise ValueError(f"its frame has {length} characters")
            return data[16 : 16 + length].rstrip(b"\0").decode()
        except (struct.error, IndexError, ValueError) as error:
            raise DataError(f"{topic}: a message of {len(data)} bytes has no header: {error}") from error

    def _metadata(self) -> dict[str, Any]:
        path = self.path / METADATA
        if not path.is_file():
            return {}
        try:
            information = yaml.safe_load(path.read_text())["rosbag2_bagfile_information"]
            if not isinstance(information, dict):
                raise TypeError("it is not a mapping")
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
            self._notices.append(f"{path}: not readable ({error}); the bag is opened through its files")
            return {}
        return information

    def _find_files(self, metadata: dict[str, Any]) -> list[Path]:
        if not self.path.exists():
            raise DataError(f"{self.path}: there is no such bag")
        if self.path.is_file():
            if self.path.suffix not in SUFFIXES:
                raise DataError(f"{self.path}: not a bag; wants a folder of rosbag2 or a file {', '.join(SUFFIXES)}")
            return [self.path]
        found = _storage_files(self.path)
        if not found:
            raise DataError(f"{self.path}: not a bag; it holds no {', '.join(SUFFIXES)} file")
        listed = {Path(name).name for name in metadata.get("relative_file_paths") or []}
        if missing := sorted(listed - {p.name for p in found}):
            self._notices.append(f"{self.path}: metadata.yaml names {', '.join(missing)}, which is not there")
        if not metadata and not self._notices:
            self._notices.append(f"{self.path}: no metadata.yaml; the bag is opened through its {len(found)} file(s)")
        return sorted(found, key=natural_order)

    def _open(self, metadata: dict[str, Any]) -> list[_File]:
        if metadata.get("compression_mode", "").lower() not in ("", "none"):
            return [self._stack.enter_context(_RosbagsFile(self.path))]
        kinds = {path.suffix for path in self.files}
        if packed := [path.name for path in self.files if path.suffix == ".zstd"]:
            raise DataError(
                f"{self.path}: {', '.join(packed)} cannot be opened without metadata.yaml; unpack with zstd -d"
            )
        if len(kinds) > 1 or not kinds <= set(SUFFIXES):
            raise DataError(f"{self.path}: holds {', '.join(p.name for p in self.files)}; name one of them")
        if kinds == {".mcap"}:
            return [McapFile(path) for path in self.files]
        return [self._stack.enter_context(_RosbagsFile(path)) for path in self.files]

    def _require_one_recording(self) -> None:
        """Without metadata only names and times tell whether files in one folder are one bag that was split."""
        if len(self.files) < 2 or (self.path / METADATA).is_file():
            return
        if not numbered(self.files) or not follow_on(self._sources):
            raise DataError(
                f"{self.path}: holds {', '.join(p.name for p in self.files)} and no metadata.yaml: they are not the "
                "parts of one bag (NAME_0, NAME_1, ..., each from where the last one ends); name one of them"
            )

    def _merge_topics(self) -> dict[str, Topic]:
        topics: dict[str, Topic] = {}
        for source in self._sources:
            for name, topic in source.topics.items():
                before = topics[name].count if name in topics else 0
                topics[name] = Topic(name, _ros2_type(topic.type_name), topic.encoding, before + topic.count)
        if sum(topic.count for topic in topics.values()) == 0:
            raise DataError(self._why_empty())
        return dict(sorted(topics.items()))

    def _why_empty(self) -> str:
        if any(path.suffix == ".db3" for path in self.files):
            return f"{self.path}: an sqlite3 bag with 0 messages: {_HALF_WRITTEN}{_beside(self.files)}"
        lines = [line for source in self._sources for line in self._damage_of(source)]
        return "; ".join([f"{self.path}: an empty bag, there is no message in it", *lines])

    def _damage_of(self, source: _File) -> Iterator[str]:
        if not isinstance(source, McapFile) or not source.damage:
            return
        if source.damage.cut_at is not None:
            read, size = source.damage.cut_at / 1e6, source.path.stat().st_size / 1e6
            text = f"{source.path}: TRUNCATED MCAP: {read:.1f} of {size:.1f} MB can be read"
            if len(self._sources) == 1 and self._expected is not None:
                text += f", {self._expected - self.message_count} of {self._expected} messages are lost"
            yield text + f"; going on with {self.message_count} messages"
        if source.damage.chunks:
            yield f"{source.path}: DAMAGED MCAP: {source.damage.chunks} chunk(s) with a wrong checksum are left out"


@dataclass(frozen=True)
class _RosbagsTopic:
    type_name: str
    encoding: str
    count: int
    definition: TypeDefinition


class _RosbagsFile:
    """A file or folder that the rosbags library reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        ros1 = path.suffix == ".bag"
        try:
            self._reader: Any = Rosbag1Reader(path) if ros1 else Rosbag2Reader(path)
            self._reader.open()
        except Exception as error:  # rosbags lets errors of sqlite, zstd and struct through
            sqlite = f"; an empty or damaged sqlite3 bag: {_HALF_WRITTEN}" if path.suffix == ".db3" else ""
            raise DataError(f"{path}: not a readable bag: {error}{sqlite}{_beside([path])}") from error
        # Of a bag without messages, rosbags says that it ends before it begins.
        empty = self._reader.start_time > self._reader.end_time
        self.start_ns: int | None = None if empty else self._reader.start_time
        self.end_ns: int | None = None if empty else self._reader.end_time
        self.topics = {
            name: _RosbagsTopic(info.msgtype or "", "ros1" if ros1 else "cdr", info.msgcount, _definition(info))
            for name, info in self._reader.topics.items()
        }

    def __enter__(self) -> _RosbagsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def messages(
        self,
        topics: Collection[str] | None = None,
        times: Mapping[str, Set[int]] | None = None,
        heads: Collection[str] = (),
    ) -> Iterator[tuple[str, int, bytes]]:
        topics = topics if times is None else times.keys()
        wanted = [c for c in self._reader.connections if topics is None or c.topic in topics]
        if not wanted:  # to rosbags, none means all
            return
        try:
            for connection, stamp, data in self._reader.messages(wanted):
                if times is None or stamp in times[connection.topic]:
                    yield connection.topic, stamp, data
        except (GeneratorExit, DataError):
            raise
        except Exception as error:
            raise DataError(f"{self.path}: damaged: {error}; record to MCAP, of which the rest can be read") from error


def bags_in(folder: Path) -> list[Path]:
    """The bags that the files in a folder are: the folder itself, each of its files, or none where it has no such file.

    Without ``metadata.yaml``, several files are one bag only where they are named and follow on each other as parts.
    """
    files = sorted(_storage_files(folder), key=natural_order)
    packed = any(file.suffix == ".zstd" for file in files)  # of which the folder as a bag says what to do
    if len(files) < 2 or packed or (folder / METADATA).is_file():
        return [folder] if files else []
    if not numbered(files):
        return files
    try:
        with Bag(folder):
            return [folder]
    except DataError:  # apart in time, or one cannot be opened: each says for itself what is wrong with it
        return files


def _storage_files(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.suffix in SUFFIXES or p.name.endswith((".mcap.zstd", ".db3.zstd"))]


def _definition(info: Any) -> TypeDefinition:
    text = str(info.msgdef.data)
    encoding = "ros2idl" if info.msgdef.format == MessageDefinitionFormat.IDL else "ros2msg"
    return TypeDefinition(text, encoding)


def _beside(files: list[Path]) -> str:
    """What to do where sqlite left messages beside its file."""
    logs = [log for path in files for log in (Path(f"{path}-wal"),) if log.is_file() and log.stat().st_size]
    if not logs:
        return ""
    database = str(logs[0]).removesuffix("-wal")
    return (
        f"; {logs[0].name} beside it may hold them: sqlite3 {database} 'PRAGMA wal_checkpoint' puts them in their place"
    )


@cache
def _types(store: Stores) -> Any:
    return get_typestore(store)


def _ros2_type(kind: str) -> str:
    package, *_, name = kind.split("/") if "/" in kind else ("", kind)
    return f"{package}/msg/{name}" if package else name
