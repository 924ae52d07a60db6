"""Serialized images read from their bytes, against rclpy's own reader."""

from __future__ import annotations

import contextlib
import os
import struct
from array import array
from typing import Any

os.environ["ROS_PYTHON_CHECK_FIELDS"] = "1"

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage, Image

from vpr_kd_ros.decode import ENCODINGS, image_from_message, stamp_ns
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.serialized_images import read_compressed_image, read_image

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
BYTES = st.binary(max_size=40)
NUMBERS = st.integers(0, 2**32 - 1)


@st.composite
def images(draw: st.DrawFn) -> Image:
    """Messages of any content, sensible or not."""
    message = Image(
        height=draw(NUMBERS),
        width=draw(NUMBERS),
        encoding=draw(NAMES | st.sampled_from(ENCODINGS)),
        is_bigendian=draw(st.integers(0, 255)),
        step=draw(NUMBERS),
        data=array("B", draw(BYTES)),
    )
    return _with_header(draw, message)


@st.composite
def compressed_images(draw: st.DrawFn) -> CompressedImage:
    """Messages of any content, sensible or not."""
    return _with_header(draw, CompressedImage(format=draw(NAMES), data=array("B", draw(BYTES))))


def _with_header(draw: st.DrawFn, message: Any) -> Any:
    message.header.frame_id = draw(NAMES)
    message.header.stamp.sec = draw(st.integers(-(2**31), 2**31 - 1))
    message.header.stamp.nanosec = draw(NUMBERS)
    return message


def fields_of(message: Any, names: str) -> list[Any]:
    """The values of a message, the header's first and the data last."""
    values = [getattr(message, name) for name in names.split()]
    stamp = message.header.stamp
    return [stamp.sec, stamp.nanosec, message.header.frame_id, *values, bytes(message.data)]


def big_endian(message: Image) -> bytes:
    """The message in the other byte order, written field by field."""
    out = bytearray(b"\0\0\0\0")

    def number(value: int, kind: str) -> None:
        out.extend(b"\0" * (-len(out) % struct.calcsize(kind)) + struct.pack(">" + kind, value))

    def text(value: bytes) -> None:
        number(len(value), "I")
        out.extend(value)

    number(message.header.stamp.sec, "i")
    number(message.header.stamp.nanosec, "I")
    text(message.header.frame_id.encode() + b"\0")
    number(message.height, "I")
    number(message.width, "I")
    text(message.encoding.encode() + b"\0")
    number(message.is_bigendian, "B")
    number(message.step, "I")
    text(bytes(message.data))
    return bytes(out)


IMAGE, COMPRESSED = "height width encoding is_bigendian step", "format"


@settings(max_examples=300, deadline=None)
@given(images())
def test_an_image_reads_as_rclpy_reads_it(message: Image) -> None:
    serialized = serialize_message(message)
    found = read_image(serialized)
    assert fields_of(found, IMAGE) == fields_of(deserialize_message(serialized, Image), IMAGE)
    assert fields_of(read_image(big_endian(message)), IMAGE) == fields_of(message, IMAGE)
    assert found.data.obj is serialized, "the pixels are not copied"


@settings(max_examples=200, deadline=None)
@given(compressed_images())
def test_a_compressed_image_reads_as_rclpy_reads_it(message: CompressedImage) -> None:
    serialized = serialize_message(message)
    found = read_compressed_image(serialized)
    assert fields_of(found, COMPRESSED) == fields_of(deserialize_message(serialized, CompressedImage), COMPRESSED)


@settings(max_examples=300, deadline=None)
@given(images(), st.data())
def test_damaged_bytes_are_refused_or_read_as_rclpy_reads_them(message: Image, data: st.DataObject) -> None:
    """Only the lengths can be wrong; where rclpy reads something, so do we, and the same."""
    serialized = bytearray(serialize_message(message))
    for _ in range(data.draw(st.integers(0, 3))):
        # Bytes 2 and 3 are options that mean nothing here, and to rclpy's reader sometimes something.
        at = data.draw(st.integers(4, len(serialized) - 1))
        serialized[at] = data.draw(st.integers(0, 255))
    damaged = bytes(serialized[: data.draw(st.integers(0, len(serialized)))])
    try:
        theirs = deserialize_message(damaged, Image)
    except Exception:
        theirs = None
    try:
        ours = read_image(damaged)
    except DataError:
        ours = None
    assert (ours is None) == (theirs is None)
    if ours is not None:
        assert fields_of(ours, IMAGE) == fields_of(theirs, IMAGE)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(serialized: bytes) -> None:
    for read in (read_image, read_compressed_image):
        for start in (b"", b"\0\1\0\0", b"\0\0\0\0"):
            with contextlib.suppress(DataError):
                read(start + serialized)


@pytest.mark.parametrize("start", [b"", b"\0", b"\0\1", b"\0\1\0", b"\0\2\0\0", b"\0\3\0\0", b"\1\1\0\0"])
def test_what_is_not_plain_cdr_is_named(start: bytes) -> None:
    with pytest.raises(DataError, match=r"image: a message of \d+ bytes begins with .* wants plain CDR"):
        read_image(start if len(start) < 4 else start + serialize_message(Image())[4:])


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("bigendian", [0, 1])
def test_the_pixels_are_those_of_the_message(encoding: str, padding: int, bigendian: int) -> None:
    rng = np.random.default_rng(len(encoding))
    bytes_of = {
        "rgba": 4,
        "bgra": 4,
        "rgb": 3,
        "bgr": 3,
        "8UC4": 4,
        "8UC3": 3,
        "16UC4": 4,
        "16UC3": 3,
        "yu": 2,
        "uy": 2,
    }
    channels = next((size for start, size in bytes_of.items() if encoding.startswith(start)), 1)
    step = 8 * channels * (2 if "16" in encoding else 1) + (0 if encoding == "nv24" else padding)
    rows = {"nv12": 9, "nv21": 9, "nv24": 18}.get(encoding, 6)
    message = Image(height=6, width=8, encoding=encoding, step=step, is_bigendian=bigendian)
    message.header.stamp.sec = 12
    message.data = array("B", rng.integers(0, 256, rows * step, dtype=np.uint8).tobytes())
    serialized = serialize_message(message)
    found = read_image(serialized)
    assert stamp_ns(found.header) == 12_000_000_000
    wanted = image_from_message(deserialize_message(serialized, Image))
    np.testing.assert_array_equal(image_from_message(found), wanted)
