"""Camera images read straight from the serialized bytes of their messages.

A subscription of rclpy that makes messages copies the pixels of an image twice more than one that hands over bytes, and
the bytes are in any case all that is needed: the pixels stay where they are, and only what is around them is read. The
bytes are those of the plain representation of CDR (Object Management Group, DDS Interoperability Wire Protocol 2.5,
section 10), which every middleware of ROS 2 sends: numbers aligned to their size, counted from behind four bytes that
tell the byte order. What is read has the fields of the messages, for ``vpr_kd_ros.decode``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vpr_kd_ros.errors import DataError

# CDR and, for types without 8-byte numbers the same, CDR2, big and little endian; four bytes in all.
_ORDERS = {b"\0\0": ">", b"\0\1": "<", b"\0\6": ">", b"\0\7": "<"}
_ENCAPSULATION = 4


@dataclass(frozen=True)
class Stamp:
    """``builtin_interfaces/Time``."""

    sec: int
    nanosec: int


@dataclass(frozen=True)
class Header:
    """``std_msgs/Header``."""

    stamp: Stamp
    frame_id: str


@dataclass(frozen=True)
class SerializedImage:
    """``sensor_msgs/Image``; ``data`` is a view of the bytes that it was read from."""

    header: Header
    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: memoryview


@dataclass(frozen=True)
class SerializedCompressedImage:
    """``sensor_msgs/CompressedImage``; ``data`` is a view of the bytes that it was read from."""

    header: Header
    format: str
    data: memoryview


def read_image(serialized: bytes) -> SerializedImage:
    """Read a serialized ``sensor_msgs/Image``.

    Raises:
        DataError: the bytes end too early, or are not plain CDR.
    """
    cursor = _Cursor(serialized, "image")
    header = cursor.header()
    height, width = cursor.number("I"), cursor.number("I")
    encoding = cursor.string()
    return SerializedImage(
        header, height, width, encoding, is_bigendian=cursor.number("B"), step=cursor.number("I"), data=cursor.bytes()
    )


def read_compressed_image(serialized: bytes) -> SerializedCompressedImage:
    """Read a serialized ``sensor_msgs/CompressedImage``.

    Raises:
        DataError: the bytes end too early, or are not plain CDR.
    """
    cursor = _Cursor(serialized, "compressed image")
    return SerializedCompressedImage(cursor.header(), cursor.string(), cursor.bytes())


class _Cursor:
    """Reads one value after the other."""

    def __init__(self, serialized: bytes, what: str) -> None:
        self._view = memoryview(serialized)
        self._what = what
        self._at = _ENCAPSULATION
        order = _ORDERS.get(bytes(self._view[:2]))
        if order is None or len(serialized) < _ENCAPSULATION:
            raise DataError(
                f"{what}: a message of {len(serialized)} bytes begins with {serialized[:4].hex() or 'nothing'}, wants "
                f"plain CDR (0000, 0001, 0006 or 0007)"
            )
        self._order = order

    def number(self, kind: str) -> int:
        """A number of a ``struct`` format, aligned to its size."""
        size = struct.calcsize(kind)
        # The four bytes of the encapsulation do not count, and leave multiples of four what they are.
        start = self._at + -self._at % size
        self._take(start, size)
        return int(struct.unpack_from(self._order + kind, self._view, start)[0])

    def string(self) -> str:
        """Text, up to its first zero."""
        return bytes(self.bytes()).partition(b"\0")[0].decode("utf-8", "replace")

    def bytes(self) -> memoryview:
        """A sequence of bytes behind its length."""
        length = self.number("I")
        return self._take(self._at, length)

    def header(self) -> Header:
        """``std_msgs/Header``."""
        return Header(Stamp(self.number("i"), self.number("I")), self.string())

    def _take(self, start: int, size: int) -> memoryview:
        if start + size > len(self._view):
            raise DataError(
                f"{self._what}: a message of {len(self._view)} bytes is cut short: {size} bytes are wanted at {start}"
            )
        self._at = start + size
        return self._view[start : start + size]
