"""The text of message types, which makes a bag readable where the message packages are not installed.

A bag carries, for each type, the text of its ``.msg`` file followed by those of all the types it uses (the ``ros2msg``
schema of the MCAP format's registry of encodings).
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from vpr_kd_ros.errors import DataError

SEPARATOR = "=" * 80
PRIMITIVES = frozenset(
    {
        "bool",
        "byte",
        "char",
        "float32",
        "float64",
        "int8",
        "uint8",
        "int16",
        "uint16",
        "int32",
        "uint32",
        "int64",
        "uint64",
        "string",
        "wstring",
    }
)
FIELD = re.compile(r"^\s*([A-Za-z][A-Za-z0-9_/]*)(?:<=\d+)?(?:\[[^\]]*\])?\s+[A-Za-z]")


@cache
def message_definition(type_name: str) -> str:
    """The definition of a type such as ``sensor_msgs/msg/Image`` and of every type it uses.

    Raises:
        DataError: the package is not installed, or has no such message.
    """
    package, name = _split(type_name)
    parts = [_text(package, name)]
    seen = {(package, name)}
    waiting = list(_used_types(package, parts[0]))
    while waiting:
        used = waiting.pop(0)
        if used in seen:
            continue
        seen.add(used)
        text = _text(*used)
        parts.append(f"{SEPARATOR}\nMSG: {used[0]}/{used[1]}\n{text}")
        waiting.extend(_used_types(used[0], text))
    return "\n".join(part.rstrip("\n") for part in parts) + "\n"


@cache
def type_hash(type_name: str) -> str:
    """The ``RIHS01_...`` hash of a type; empty where the installed package has none (ROS 2 Humble and older)."""
    package, name = _split(type_name)
    try:
        description = json.loads(_file(package, f"{name}.json").read_text(encoding="utf-8"))
        hashes = {entry["type_name"]: entry["hash_string"] for entry in description["type_hashes"]}
        return str(hashes[type_name])
    except (DataError, KeyError, ValueError):
        return ""


def _split(type_name: str) -> tuple[str, str]:
    parts = type_name.split("/")
    if len(parts) != 3 or parts[1] != "msg" or not all(part.isidentifier() for part in parts):
        raise DataError(f"message type {type_name!r}: wants the form 'sensor_msgs/msg/Image'")
    return parts[0], parts[2]


def _text(package: str, name: str) -> str:
    return _file(package, f"{name}.msg").read_text(encoding="utf-8")


def _file(package: str, name: str) -> Path:
    # The wheels of ROS install under sys.prefix and leave AMENT_PREFIX_PATH unset.
    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]
    for prefix in filter(None, prefixes):
        path = Path(prefix) / "share" / package / "msg" / name
        if path.is_file():
            return path
    raise DataError(
        f"message {package}/msg/{name}: not found under AMENT_PREFIX_PATH; "
        f"install the package (apt install ros-$ROS_DISTRO-{package.replace('_', '-')}) or source its workspace"
    )


def _used_types(package: str, text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        match = FIELD.match(line.split("#", 1)[0])
        if match is None or match.group(1) in PRIMITIVES:
            continue
        parts = match.group(1).split("/")
        # A bare name is of the same package, but for Header, which older files write without std_msgs.
        if len(parts) == 1:
            yield ("std_msgs" if parts[0] == "Header" and package != "std_msgs" else package), parts[0]
        else:
            yield parts[0], parts[-1]
