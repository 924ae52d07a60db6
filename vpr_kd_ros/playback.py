"""Reading bags to play them: rosbag2 folders or single MCAP files, whole or damaged.

A damaged MCAP (its recorder was killed, its disk was full) is read as far as it goes, and what was wrong is said.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from vpr_kd_ros.errors import DataError, MissingDependencyError
from vpr_kd_ros.recording import TopicQos


@dataclass(frozen=True)
class BagTopic:
    """A topic of a bag: its name, message type, QoS as it was offered and number of readable messages."""

    name: str
    type_name: str
    qos: TopicQos
    count: int


@dataclass(frozen=True)
class BagMessage:
    """One message: topic, log time in nanoseconds and serialized (CDR) bytes."""

    topic: str
    stamp_ns: int
    data: bytes


class Bag:
    """The messages of a bag, file after file.

    Args:
        path: a rosbag2 folder or an ``.mcap`` file.

    Attributes:
        topics: name to ``BagTopic``.
        start_ns, end_ns: log times of the first and the last message, nanoseconds.
        damage: file to what is wrong with it; empty for a bag that is whole.

    Raises:
        DataError: there is no bag at the path, it is of another storage, or nothing in it is readable.
        MissingDependencyError: the package ``mcap`` is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.damage: dict[Path, str] = {}
        self.topics: dict[str, BagTopic] = {}
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._files = _storage_files(self.path)
        for file in self._files:
            self._scan(file)
        if not self._starts:
            raise DataError(f"{self.path}: it holds no readable message" + self._damage_text())
        self.start_ns = min(self._starts)
        self.end_ns = max(self._ends)

    def messages(self) -> Iterator[BagMessage]:
        """Every readable message: in log-time order where the file is whole, else in the order it was written."""
        for file in self._files:
            for _, channel, message in self._records(file):
                yield BagMessage(channel.topic, message.log_time, message.data)

    def _scan(self, file: Path) -> None:
        summary = self._summary(file)
        if summary is not None and summary.statistics is not None:
            counts = Counter(summary.statistics.channel_message_counts)
            for channel in summary.channels.values():
                self._add_topic(channel, summary.schemas[channel.schema_id], counts[channel.id])
            if summary.statistics.message_count:
                self._starts.append(summary.statistics.message_start_time)
                self._ends.append(summary.statistics.message_end_time)
            return
        self.damage.setdefault(file, "it has no index")
        stamps: list[int] = []
        for schema, channel, message in self._records(file):
            self._add_topic(channel, schema, 1)
            stamps.append(message.log_time)
        if stamps:
            self._starts.append(min(stamps))
            self._ends.append(max(stamps))

    def _add_topic(self, channel: Any, schema: Any, count: int) -> None:
        known = self.topics.get(channel.topic)
        if known is None:
            qos = _offered_qos(channel.metadata.get("offered_qos_profiles", ""))
            self.topics[channel.topic] = BagTopic(channel.topic, schema.name, qos, count)
        else:
            self.topics[channel.topic] = replace(known, count=known.count + count)

    def _summary(self, file: Path) -> Any:
        from mcap.reader import make_reader

        try:
            with file.open("rb") as stream:
                return make_reader(stream).get_summary()
        # mcap raises errors of many kinds on bytes it did not write.
        except Exception as error:
            self.damage[file] = _damage_of(error)
            return None

    def _records(self, file: Path) -> Iterator[tuple[Any, Any, Any]]:
        from mcap.reader import NonSeekingReader, make_reader

        with file.open("rb") as stream:
            if file in self.damage:
                # Only this reader, in the order of writing, gives what stands before the damage.
                records = NonSeekingReader(stream, validate_crcs=True).iter_messages(log_time_order=False)
            else:
                records = make_reader(stream, validate_crcs=True).iter_messages()
            try:
                yield from records
            except Exception as error:
                self.damage[file] = _damage_of(error)

    def _damage_text(self) -> str:
        return "".join(f"; {file.name}: {what}" for file, what in self.damage.items())


def _damage_of(error: Exception) -> str:
    if isinstance(error, struct.error) or type(error).__name__ == "EndOfFile":
        return "it is cut off; what stands before is read"
    return f"it is damaged, what follows is lost ({type(error).__name__}: {error})"


def _storage_files(path: Path) -> list[Path]:
    try:
        import mcap.reader  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("reading bags needs the package mcap: pip install mcap") from error
    if path.is_file():
        if path.suffix != ".mcap":
            raise DataError(f"{path}: not an .mcap file; give a rosbag2 folder or an .mcap file")
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: there is no such bag")
    files = sorted(path.glob("*.mcap"))
    metadata = path / "metadata.yaml"
    if metadata.is_file():
        try:
            information = yaml.safe_load(metadata.read_text(encoding="utf-8"))["rosbag2_bagfile_information"]
            named = [path / Path(name).name for name in information["relative_file_paths"]]
            storage = information["storage_identifier"]
        except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise DataError(f"{metadata}: not the metadata of a rosbag2 bag ({error}); move it away") from error
        if storage != "mcap":
            raise DataError(f"{path}: storage {storage!r}; convert it to mcap with: ros2 bag convert")
        missing = [file.name for file in named if not file.is_file()]
        if missing:
            raise DataError(f"{metadata}: names files that are not there: {', '.join(missing)}")
        files = named
    if not files:
        raise DataError(f"{path}: a folder without metadata.yaml and without .mcap files is not a bag")
    return files


def _offered_qos(text: str) -> TopicQos:
    # Numbers (rosbag2 up to Iron) or names (from Jazzy on) of the rmw enumerations; the first profile counts.
    try:
        profile = yaml.safe_load(text)[0]
        return TopicQos(
            reliable=profile["reliability"] in (1, "reliable"),
            transient_local=profile["durability"] in (1, "transient_local"),
            depth=max(1, int(profile["depth"])),
        )
    except (yaml.YAMLError, KeyError, TypeError, IndexError, ValueError):
        return TopicQos()
