"""``metadata.yaml`` of a rosbag2 folder: what the bag as a whole and each of its files hold."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

# The last version that ROS 2 Humble reads as well: QoS profiles are texts in it, lists from version 9 on.
METADATA_VERSION = 8
FILE_NAME = "metadata.yaml"


@dataclass(frozen=True)
class FileInformation:
    """One file of a bag.

    Attributes:
        name: of the file, in the folder of the bag.
        start_ns, end_ns: log times of its first and its last message, nanoseconds; None and 0 without a message.
        counts: topic to messages.
    """

    name: str
    start_ns: int | None
    end_ns: int
    counts: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """As an entry of ``files``."""
        return {
            "path": self.name,
            "starting_time": {"nanoseconds_since_epoch": self.start_ns or 0},
            "duration": {"nanoseconds": self.end_ns - (self.start_ns or 0)},
            "message_count": sum(self.counts.values()),
        }


@dataclass(frozen=True)
class TopicInformation:
    """One topic of a bag: name, message type, hash of the type and, as a YAML text, the QoS profiles offered."""

    name: str
    type_name: str
    type_hash: str
    qos: str

    def to_dict(self, count: int) -> dict[str, Any]:
        """As an entry of ``topics_with_message_count``."""
        return {
            "topic_metadata": {
                "name": self.name,
                "type": self.type_name,
                "serialization_format": "cdr",
                "offered_qos_profiles": self.qos,
                "type_description_hash": self.type_hash,
            },
            "message_count": count,
        }


def bag_information(
    files: Sequence[FileInformation], topics: Sequence[TopicInformation], custom: Mapping[str, str]
) -> dict[str, Any]:
    """What stands under ``rosbag2_bagfile_information``, of a bag or of one of its files alone."""
    starts = [file.start_ns for file in files if file.start_ns is not None]
    start_ns = min(starts, default=0)
    end_ns = max((file.end_ns for file in files if file.start_ns is not None), default=0)
    return {
        "version": METADATA_VERSION,
        "storage_identifier": "mcap",
        "duration": {"nanoseconds": end_ns - start_ns},
        "starting_time": {"nanoseconds_since_epoch": start_ns},
        "message_count": sum(sum(file.counts.values()) for file in files),
        "topics_with_message_count": [
            topic.to_dict(sum(file.counts.get(topic.name, 0) for file in files)) for topic in topics
        ],
        "compression_format": "",
        "compression_mode": "",
        "relative_file_paths": [file.name for file in files],
        "files": [file.to_dict() for file in files],
        "custom_data": dict(custom) or None,
        "ros_distro": os.environ.get("ROS_DISTRO", ""),
    }


def write_metadata(folder: Path, information: Mapping[str, Any]) -> None:
    """Write ``metadata.yaml``, whole or not at all.

    Raises:
        OSError: the disk refused.
    """
    text = yaml.safe_dump({"rosbag2_bagfile_information": dict(information)}, sort_keys=False)
    temporary = folder / f"{FILE_NAME}.tmp"
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / FILE_NAME)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
