"""Reading bags to play them: rosbag2 folders or single MCAP files, whole or damaged.

A damaged MCAP (its recorder was killed, its disk was full) is read as far as it goes, and what was wrong is said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from vpr_kd_ros.bag_splits import numbered
from vpr_kd_ros.bag_topics import TopicQos
from vpr_kd_ros.errors import DataError, MissingDependencyError

if TYPE_CHECKING:
    from vpr_kd_ros.mcap_file import McapFile


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
        self._files = [file for file in map(self._opened, _storage_files(self.path)) if file is not None]
        starts = [file.start_ns for file in self._files if file.start_ns is not None]
        ends = [file.end_ns for file in self._files if file.end_ns is not None]
        if not starts:
            raise DataError(f"{self.path}: it holds no readable message" + self._damage_text())
        self.start_ns = min(starts)
        self.end_ns = max(ends)

    def messages(self) -> Iterator[BagMessage]:
        """Every readable message: in log-time order where the file has its index, else in the order it was written."""
        for file in self._files:
            for topic, stamp_ns, data in file.messages():
                yield BagMessage(topic, stamp_ns, data)
            self._note_damage(file)

    def _opened(self, path: Path) -> McapFile | None:
        from vpr_kd_ros.mcap_file import McapFile

        try:
            file = McapFile(path)
        except DataError as error:
            self.damage[path] = str(error)
            return None
        for name, topic in file.topics.items():
            known = self.topics.get(name)
            before = 0 if known is None else known.count
            qos = topic.qos if known is None else known.qos
            self.topics[name] = BagTopic(name, topic.type_name, qos, before + topic.count)
        self._note_damage(file)
        return file

    def _note_damage(self, file: McapFile) -> None:
        if file.damage:
            self.damage[file.path] = str(file.damage)

    def _damage_text(self) -> str:
        return "".join(f"; {file.name}: {what}" for file, what in self.damage.items())


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
    files = sorted(path.glob("*.mcap"), key=natural_order)
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
    elif len(files) > 1 and not numbered(files):
        names = ", ".join(file.name for file in files)
        raise DataError(
            f"{path}: holds {names} and no metadata.yaml: they are not the parts of one bag (NAME_0, NAME_1, ...); "
            "name one of them"
        )
    if not files:
        raise DataError(f"{path}: a folder without metadata.yaml and without .mcap files is not a bag")
    return files


def natural_order(path: Path) -> list[tuple[int, str]]:
    """Sort key by which ``drive_10.mcap`` comes after ``drive_9.mcap``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]
