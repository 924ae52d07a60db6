"""The student as an ONNX file: metadata and seal inside, and checked before a runtime reads it.

The metadata and the seal are two entries of the model's ``metadata_props``, appended to its bytes: a serialised
protobuf message that is continued stays one, so the file remains an ONNX model that every tool reads. The seal comes
last and holds the SHA-256 of every byte before it. It is no signature: whoever edits a file can seal it again.

What a runtime would fetch or call besides the model itself is refused whether or not the seal fits: weights in other
files, operators outside ONNX's own, functions. Only the few message types on the way there are walked, without the onnx
package, so that a robot needs no more than its runtime.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vpr_kd_ros.errors import DataError

METADATA = "vpr_kd_ros.student"
SEAL = "vpr_kd_ros.sha256"

# Numbers of fields in onnx.proto.
_METADATA_PROPS = 14
_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_REFUSED: dict[tuple[str, int], str] = {
    ("model", 20): "training steps",
    ("model", 25): "functions",
    ("tensor", 13): "weights in other files",
    ("tensor", 14): "weights in other files",
}
_NODE_DOMAIN = 7
_DEPTH = 32
"""Graphs and attributes inside one another; those of students are 4 deep."""


def seal_onnx(model: bytes, metadata: dict[str, Any]) -> bytes:
    """Append metadata and seal to a serialised ONNX model; it stays one."""
    body = model + _entry(METADATA, json.dumps(metadata))
    return body + _entry(SEAL, hashlib.sha256(body).hexdigest())


def is_sealed_onnx(data: bytes) -> bool:
    """Whether bytes end like a student in ONNX; whether they are whole is another question."""
    return data[-_SEAL_LENGTH:-_DIGEST_LENGTH] == _SEAL_ENTRY[:-_DIGEST_LENGTH]


def read_sealed_onnx(path: Path, data: bytes) -> dict[str, Any]:
    """The metadata of a sealed model that is whole and holds nothing but a network.

    Args:
        path: named in the errors.
        data: the sealed model.

    Raises:
        DataError: it was changed, has no metadata, or is refused.
    """
    if hashlib.sha256(data[:-_SEAL_LENGTH]).hexdigest().encode() != data[-_DIGEST_LENGTH:]:
        raise DataError(f"{path}: damaged (its content does not fit its SHA-256); copy or export it again")
    try:
        _check(path, memoryview(data), "model", 0)
        properties = dict(
            _entry_of(value)
            for number, value in _fields(memoryview(data))
            if number == _METADATA_PROPS and isinstance(value, memoryview)
        )
        values = json.loads(properties[METADATA])
    except (ValueError, KeyError, IndexError) as error:
        raise DataError(f"{path}: not a student artefact (no readable {METADATA} in it)") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: not a student artefact ({METADATA} is not a table)")
    return values


def _check(path: Path, message: memoryview, kind: str, depth: int) -> None:
    """Refuse what is not a network of ONNX's operators with its weights inside."""
    if depth > _DEPTH:
        raise DataError(f"{path}: refused, its graphs are more than {_DEPTH} deep")
    inner = _MESSAGES[kind]
    for number, value in _fields(message):
        if (kind, number) in _REFUSED and value:
            raise DataError(f"{path}: refused, it holds {_REFUSED[kind, number]}")
        if isinstance(value, memoryview):
            if kind == "node" and number == _NODE_DOMAIN and bytes(value) not in (b"", b"ai.onnx"):
                raise DataError(f"{path}: refused, operators of {bytes(value)[:40]!r} are not ones that students use")
            if number in inner:
                _check(path, value, inner[number], depth + 1)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of a protobuf message: an integer, or the bytes of anything longer."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == 0:
            value, position = _varint(message, position)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, position = _varint(message, position)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if position + length > len(message):
            raise ValueError("a field is cut short")
        yield tag >> 3, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number is too long")


def _entry_of(message: memoryview) -> tuple[str, str]:
    """Key and value of a StringStringEntryProto."""
    parts = {number: bytes(value).decode() for number, value in _fields(message) if isinstance(value, memoryview)}
    return parts.get(1, ""), parts.get(2, "")


def _entry(key: str, value: str) -> bytes:
    """An entry of ``metadata_props``, as a field of the model."""
    return _bytes_field(_METADATA_PROPS, _bytes_field(1, key.encode()) + _bytes_field(2, value.encode()))


def _bytes_field(number: int, data: bytes) -> bytes:
    length, head = len(data), bytes([number << 3 | 2])
    while length > 0x7F:
        head += bytes([length & 0x7F | 0x80])
        length >>= 7
    return head + bytes([length]) + data


_DIGEST_LENGTH = 64
_SEAL_ENTRY = _entry(SEAL, "0" * _DIGEST_LENGTH)
_SEAL_LENGTH = len(_SEAL_ENTRY)
