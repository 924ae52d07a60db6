"""The custom message of Livox's drivers, read as the point cloud that it is.

Its points are structures of a few numbers each, so many that reading them one by one takes longer than the drive. Their
layout follows from the definition that the bag holds; the bytes are then taken as they lie.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from rosbags.interfaces import Nodetype
from rosbags.typesys import get_types_from_idl, get_types_from_msg

from vpr_kd_ros.errors import DataError

TYPES = ("livox_ros_driver2/msg/CustomMsg", "livox_ros_driver/msg/CustomMsg")
POINTS = "points"
_FORMATS = {
    "bool": "?", "byte": "B", "octet": "B", "char": "b", "int8": "b", "uint8": "B", "int16": "h", "uint16": "H",
    "int32": "i", "uint32": "I", "int64": "q", "uint64": "Q", "float32": "f", "float64": "d",
}  # fmt: skip
# What PointField calls these.
_DATATYPES = {"b": 1, "B": 2, "?": 2, "h": 3, "H": 4, "i": 5, "I": 6, "f": 7, "d": 8}

Fields = list[tuple[str, Any]]


class LivoxReader:
    """Reads messages of one type by its definition.

    Args:
        type_name: of ``TYPES``.
        definition: the text of the definition, with those of the types in it, as a bag holds it.
        encoding: "ros2msg" or "ros2idl".

    Raises:
        DataError: there is no definition, or it is not one of a message with points of fixed size.
    """

    def __init__(self, type_name: str, definition: str, encoding: str) -> None:
        self._type = type_name
        if not definition.strip():
            raise DataError(
                f"the definition of {type_name} is not in the bag; record to MCAP (ros2 bag record -s mcap) where the "
                "driver is installed, or let the driver publish PointCloud2 (xfer_format 0)"
            )
        try:
            parse = get_types_from_idl if encoding == "ros2idl" else get_types_from_msg
            parsed: Any = parse(definition) if encoding == "ros2idl" else parse(definition, type_name)
            self._types: dict[str, Fields] = {name: fields for name, (_, fields) in parsed.items()}
            self._fields = self._types[type_name]
            points = dict(self._fields)[POINTS]
            if points[0] != Nodetype.SEQUENCE or points[1][0][0] != Nodetype.NAME:
                raise ValueError("its points are no sequence of structures")
            self._point = [(name, _format(kind)) for name, kind in self._types[points[1][0][1]]]
        except Exception as error:  # a definition that is none fails in the parser in many ways
            raise DataError(f"the definition of {type_name} in the bag cannot be used: {error}") from error

    def read(self, data: bytes, ros1: bool) -> Any:
        """A message like ``sensor_msgs/PointCloud2``, with the same header, whose fields are those of the points.

        Raises:
            DataError: the bytes are not a message of the type.
        """
        try:
            walk = _Walk(data, ros1)
            found = self._until_points(walk, self._fields, {})
            count = walk.length()
            offsets, step, used = self._layout(walk, count)
        except (struct.error, IndexError, UnicodeDecodeError, KeyError, RecursionError) as error:
            raise DataError(f"{len(data)} bytes are not a {self._type}: {error}") from error
        body = data[walk.at : walk.at + max(0, (count - 1) * step + used)] if count else b""
        if count and len(body) < (count - 1) * step + used:
            raise DataError(f"{self._type}: {len(data)} bytes hold less than the {count} points that it states")
        return SimpleNamespace(
            header=found["header"],
            height=1,
            width=count,
            fields=[
                SimpleNamespace(name=name, offset=offset, datatype=_DATATYPES.get(kind, 0), count=1)
                for (name, kind), offset in zip(self._point, offsets, strict=True)
            ],
            is_bigendian=walk.order == ">",
            point_step=step,
            row_step=count * step,
            # The last structure has no padding behind it.
            data=np.frombuffer(body + bytes(count * step - len(body)), dtype=np.uint8),
            is_dense=False,
        )

    def _layout(self, walk: _Walk, count: int) -> tuple[list[int], int, int]:
        """Offset of each field in a point, bytes from a point to the next, and bytes of the last; walk is put there."""
        if count:
            walk.align(struct.calcsize(self._point[0][1]))
        start = walk.at - walk.origin
        ends: list[list[int]] = []
        at = start
        for _ in range(2):
            offsets = []
            for _name, kind in self._point:
                size = struct.calcsize(kind)
                at += 0 if walk.packed else -at % size
                offsets.append(at)
                at += size
            ends.append([*offsets, at])
        step = ends[1][0] - ends[0][0]
        if [end - step for end in ends[1]] != ends[0]:
            raise DataError(f"the points of {self._type} are of no constant size; wants the driver's own layout")
        return [offset - start for offset in ends[0][:-1]], step, ends[0][-1] - start

    def _until_points(self, walk: _Walk, fields: Fields, found: dict[str, Any]) -> Mapping[str, Any]:
        for name, (node, detail) in fields:
            if name == POINTS and fields is self._fields:
                return found
            found[name] = self._value(walk, node, detail)
        return found

    def _value(self, walk: _Walk, node: Any, detail: Any) -> Any:
        if node == Nodetype.BASE:
            return walk.string() if detail[0] in ("string", "wstring") else walk.number(_FORMATS[detail[0]])
        if node == Nodetype.NAME:
            return SimpleNamespace(**self._until_points(walk, self._nested(walk, detail), {}))
        (inner, what), length = detail
        return [self._value(walk, inner, what) for _ in range(length if node == Nodetype.ARRAY else walk.length())]

    def _nested(self, walk: _Walk, name: str) -> Fields:
        if name == "builtin_interfaces/msg/Time":  # the definitions in a bag need not repeat those of ROS
            return [("sec", (Nodetype.BASE, ("int32", 0))), ("nanosec", (Nodetype.BASE, ("uint32", 0)))]
        if name == "std_msgs/msg/Header":
            fields = [
                ("stamp", (Nodetype.NAME, "builtin_interfaces/msg/Time")),
                ("frame_id", (Nodetype.BASE, ("string", 0))),
            ]
            return [("seq", (Nodetype.BASE, ("uint32", 0))), *fields] if walk.packed else fields
        return self._types[name]


class _Walk:
    """Reads values one after the other: CDR, each aligned to its size, or ROS 1's, packed."""

    def __init__(self, data: bytes, packed: bool) -> None:
        self.data, self.packed = data, packed
        self.origin = self.at = 0 if packed else 4
        self.order = "<" if packed or data[1] & 1 else ">"

    def align(self, size: int) -> None:
        if not self.packed:
            self.at += (self.origin - self.at) % size

    def number(self, kind: str) -> Any:
        size = struct.calcsize(kind)
        self.align(size)
        (value,) = struct.unpack_from(self.order + kind, self.data, self.at)
        self.at += size
        return value

    def length(self) -> int:
        length = int(self.number("I"))
        if length > len(self.data):
            raise IndexError(f"it states a length of {length}")
        return length

    def string(self) -> str:
        length = self.length()
        text = self.data[self.at : self.at + length]
        self.at += length
        return text.rstrip(b"\0").decode()


def _format(kind: Any) -> str:
    node, detail = kind
    if node != Nodetype.BASE or detail[0] not in _FORMATS:
        raise ValueError(f"a point has a field of {detail}, which has no fixed size")
    return _FORMATS[detail[0]]
