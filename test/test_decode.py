"""Messages to arrays, against pictures and clouds encoded here by hand."""

from __future__ import annotations

import io
import struct
from array import array
from types import SimpleNamespace as Message
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as PilImage

from vpr_kd_ros.decode import (
    ENCODINGS,
    cloud_from_message,
    image_from_message,
    pose_from_message,
    stamp_ns,
)
from vpr_kd_ros.errors import DataError

CHANNELS = {"rgb": [0, 1, 2], "bgr": [2, 1, 0], "rgba": [0, 1, 2, 3], "bgra": [2, 1, 0, 3]}
# Channel of each pixel of the mosaic's upper left 2x2 block, row by row.
MOSAICS = {"rggb": (0, 1, 1, 2), "bggr": (2, 1, 1, 0), "gbrg": (1, 2, 0, 1), "grbg": (1, 0, 2, 1)}


def picture(height: int = 5, width: int = 7, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def raw(
    rows: NDArray[Any], encoding: str, width: int, height: int | None = None, pad: int = 0, big: int = 0
) -> Message:
    """sensor_msgs/Image of rows of numbers, (rows, numbers), each row followed by ``pad`` bytes."""
    order = rows.astype(rows.dtype.newbyteorder(">" if big else "<"))
    data = b"".join(row.tobytes() + b"\xaa" * pad for row in order)
    return Message(
        encoding=encoding,
        height=len(rows) if height is None else height,
        width=width,
        step=rows.shape[1] * rows.itemsize + pad,
        is_bigendian=big,
        data=data,
    )


def test_rgb8_is_a_view_of_the_message() -> None:
    rgb = picture()
    msg = raw(rgb.reshape(5, -1), "rgb8", 7)
    msg.data = np.frombuffer(msg.data, dtype=np.uint8)
    image = image_from_message(msg)
    assert np.array_equal(image, rgb)
    assert np.shares_memory(image, msg.data)


@pytest.mark.parametrize(
    "buffer", [bytes, bytearray, memoryview, lambda b: array("B", b), lambda b: np.frombuffer(b, np.uint8)]
)
def test_any_buffer_of_bytes_is_read(buffer: Any) -> None:
    rgb = picture()
    msg = raw(rgb.reshape(5, -1), "rgb8", 7)
    msg.data = buffer(msg.data)
    assert np.array_equal(image_from_message(msg), rgb)


@pytest.mark.parametrize("pad", [0, 1, 6])
@pytest.mark.parametrize("order", CHANNELS)
def test_8_bit_colour(order: str, pad: int) -> None:
    rgba = np.dstack([picture(), np.full((5, 7), 9, dtype=np.uint8)])
    msg = raw(rgba[:, :, CHANNELS[order]].reshape(5, -1), f"{order}8", 7, pad=pad)
    assert np.array_equal(image_from_message(msg), rgba[:, :, :3])


@pytest.mark.parametrize("big", [0, 1])
@pytest.mark.parametrize("pad", [0, 3])
@pytest.mark.parametrize("order", CHANNELS)
def test_16_bit_colour_is_scaled_over_its_full_range(order: str, pad: int, big: int) -> None:
    wide = np.random.default_rng(1).integers(0, 65536, (5, 7, 4)).astype(np.uint16)
    wide[0, 0], wide[0, 1] = 0, 65535
    msg = raw(wide[:, :, CHANNELS[order]].reshape(5, -1), f"{order}16", 7, pad=pad, big=big)
    image = image_from_message(msg)
    assert np.abs(image - wide[:, :, :3] / 257.0).max() <= 0.5 + 1e-6
    assert (image[0, 0] == 0).all()
    assert (image[0, 1] == 255).all()


@pytest.mark.parametrize("encoding", ["mono8", "8UC1"])
def test_grey_is_repeated(encoding: str) -> None:
    grey = picture()[:, :, 0]
    image = image_from_message(raw(grey, encoding, 7, pad=2))
    assert np.array_equal(image, np.dstack([grey] * 3))


@pytest.mark.parametrize("encoding", ["mono16", "16UC1"])
@pytest.mark.parametrize("big", [0, 1])
def test_16_bit_grey(encoding: str, big: int) -> None:
    grey = np.array([[0, 257, 65535], [128, 129, 0x0100]], dtype=np.uint16)
    image = image_from_message(raw(grey, encoding, 3, big=big))
    assert image[:, :, 0].tolist() == [[0, 1, 255], [0, 1, 1]]
    assert (image == image[:, :, :1]).all()


def test_8uc3_is_bgr() -> None:
    rgb = picture()
    assert np.array_equal(image_from_message(raw(rgb[:, :, ::-1].reshape(5, -1), "8UC3", 7)), rgb)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", MOSAICS)
def test_bayer_patterns_are_named_by_their_upper_left_pixels(pattern: str, bits: int) -> None:
    colour = (200, 90, 30)
    block = np.array([colour[channel] for channel in MOSAICS[pattern]]).reshape(2, 2)
    mosaic = np.tile(block, (4, 5))
    mosaic = mosaic.astype(np.uint8) if bits == 8 else (mosaic * 257).astype(np.uint16)
    image = image_from_message(raw(mosaic, f"bayer_{pattern}{bits}", 10, pad=4))
    assert image.shape == (8, 10, 3)
    assert (image == colour).all()


def yuv(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """ITU-R BT.601 with 16..235, by its formula."""
    weights = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 255.0
    return np.rint(rgb @ weights.T + [16, 128, 128]).astype(np.uint8)


@pytest.mark.parametrize(("encoding", "luma_first"), [("yuv422", 0), ("uyvy", 0), ("yuv422_yuy2", 1), ("yuyv", 1)])
def test_yuv_422(encoding: str, luma_first: int) -> None:
    rgb = np.repeat(picture(4, 3), 2, axis=1)
    converted = yuv(rgb)
    chroma = np.where(np.arange(6) % 2 == 0, converted[:, :, 1], converted[:, :, 2])
    pair = [converted[:, :, 0], chroma] if luma_first else [chroma, converted[:, :, 0]]
    image = image_from_message(raw(np.dstack(pair).reshape(4, -1), encoding, 6, pad=5))
    assert np.abs(image.astype(int) - rgb).max() <= 3


@pytest.mark.parametrize(("encoding", "first"), [("nv12", 1), ("nv21", 2)])
def test_yuv_420(encoding: str, first: int) -> None:
    rgb = picture(3, 4).repeat(2, axis=0).repeat(2, axis=1)
    converted = yuv(rgb)
    chroma = np.dstack([converted[::2, ::2, first], converted[::2, ::2, 3 - first]]).reshape(3, 8)
    image = image_from_message(raw(np.vstack([converted[:, :, 0], chroma]), encoding, 8, height=6, pad=2))
    assert image.shape == (6, 8, 3)
    assert np.abs(image.astype(int) - rgb).max() <= 3


def test_yuv_444() -> None:
    rgb = picture(3, 5)
    converted = yuv(rgb)
    rows = np.vstack([converted[:, :, 0], converted[:, :, 1:].reshape(6, 5)])
    image = image_from_message(raw(rows, "nv24", 5, height=3))
    assert np.abs(image.astype(int) - rgb).max() <= 3
    with pytest.raises(DataError, match="nv24 have padding"):
        image_from_message(raw(rows, "nv24", 5, height=3, pad=2))


@pytest.mark.parametrize("big", [0, 1])
@pytest.mark.parametrize(("encoding", "order"), [("16UC3", "bgr"), ("16UC4", "bgra")])
def test_16_bit_types_of_opencv_are_bgr(encoding: str, order: str, big: int) -> None:
    wide = np.random.default_rng(2).integers(0, 65536, (4, 5, 4)).astype(np.uint16)
    msg = raw(wide[:, :, CHANNELS[order]].reshape(4, -1), encoding, 5, pad=3, big=big)
    assert np.abs(image_from_message(msg) - wide[:, :, :3] / 257.0).max() <= 0.5 + 1e-6


def test_8uc4_is_bgra() -> None:
    rgba = np.dstack([picture(), np.full((5, 7), 9, dtype=np.uint8)])
    msg = raw(rgba[:, :, CHANNELS["bgra"]].reshape(5, -1), "8UC4", 7, pad=5)
    assert np.array_equal(image_from_message(msg), rgba[:, :, :3])


def bilinear(mosaic: NDArray[Any], channel_of: tuple[int, ...], row: int, column: int) -> list[float]:
    """Colour of a pixel inside a mosaic: its own channel, and the mean of its nearest neighbours of the others."""
    near: list[dict[int, list[float]]] = [{}, {}, {}]
    for r in range(row - 1, row + 2):
        for c in range(column - 1, column + 2):
            distance = abs(r - row) + abs(c - column)
            near[channel_of[r % 2 * 2 + c % 2]].setdefault(distance, []).append(float(mosaic[r, c]))
    return [float(np.mean(found[min(found)])) for found in near]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", MOSAICS)
@pytest.mark.parametrize("big", [0, 1])
def test_bayer_mosaics_of_noise_are_interpolated_between_their_neighbours(pattern: str, bits: int, big: int) -> None:
    mosaic = np.random.default_rng(4).integers(0, 2**bits, (7, 8)).astype(np.uint8 if bits == 8 else np.uint16)
    image = image_from_message(raw(mosaic, f"bayer_{pattern}{bits}", 8, pad=5, big=big))
    for row in range(1, 6):
        for column in range(1, 7):
            expected = np.array(bilinear(mosaic, MOSAICS[pattern], row, column)) / (2**bits - 1) * 255
            assert np.abs(image[row, column] - expected).max() <= 1.0


def smooth(height: int = 24, width: int = 32) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    return np.dstack([5 * y, 6 * x, 3 * (x + y)]).astype(np.uint8)


@pytest.mark.parametrize("stated", ["jpeg", "jpg", "rgb8; jpeg compressed bgr8", ""])
def test_jpeg(stated: str) -> None:
    file = io.BytesIO()
    PilImage.fromarray(smooth()).save(file, "JPEG", quality=95)
    image = image_from_message(Message(format=stated, data=array("B", file.getvalue())))
    assert np.abs(image.astype(int) - np.asarray(PilImage.open(file))).max() <= 3


def test_png_keeps_every_pixel() -> None:
    file = io.BytesIO()
    PilImage.fromarray(picture()).save(file, "PNG")
    assert np.array_equal(image_from_message(Message(format="bgr8; png compressed", data=file.getvalue())), picture())


def test_grey_png_and_grey_jpeg_become_rgb() -> None:
    grey = smooth()[:, :, 0]
    for suffix in (".png", ".jpg"):
        image = image_from_message(Message(format="mono8", data=cv2.imencode(suffix, grey)[1].tobytes()))
        assert np.abs(image.astype(int) - grey[:, :, None]).max() <= 3


@pytest.mark.parametrize("bits", [8, 16])
def test_compressed_bayer_mosaic(bits: int) -> None:
    colour = (200, 90, 30)
    mosaic = np.tile(np.array([colour[c] for c in MOSAICS["grbg"]]).reshape(2, 2), (4, 4))
    mosaic = mosaic.astype(np.uint8) if bits == 8 else (mosaic * 257).astype(np.uint16)
    data = cv2.imencode(".png", mosaic)[1].tobytes()
    assert (image_from_message(Message(format=f"bayer_grbg{bits}; png compressed ", data=data)) == colour).all()
    in_colour = cv2.imencode(".png", np.full((4, 4, 3), colour[::-1], dtype=np.uint8))[1].tobytes()
    assert (
        image_from_message(Message(format=f"bayer_grbg{bits}; png compressed bgr8", data=in_colour)) == colour
    ).all()


def test_orientation_in_exif_is_ignored() -> None:
    picture_with_exif = PilImage.fromarray(smooth())
    exif = picture_with_exif.getexif()
    exif[0x0112] = 6  # rotated by 90 degrees
    file = io.BytesIO()
    picture_with_exif.save(file, "JPEG", quality=95, exif=exif)
    assert image_from_message(Message(format="jpeg", data=file.getvalue())).shape == (24, 32, 3)


def test_broken_compressed_images_are_named() -> None:
    jpeg = cv2.imencode(".jpg", smooth())[1].tobytes()
    png = cv2.imencode(".png", picture())[1].tobytes()
    cases = {
        "cut short": jpeg[: len(jpeg) // 2],
        "neither JPEG nor PNG": b"H264 or anything",
        "cannot be decoded": png[:20],
        "0 bytes": b"",
    }
    for words, data in cases.items():
        with pytest.raises(DataError, match=words):
            image_from_message(Message(format="jpeg", data=data))


def test_an_unknown_encoding_is_named_with_those_that_are_known() -> None:
    with pytest.raises(DataError, match=r"'rgb9'.*did you mean 'rgb8'.*known: rgb8, bgr8.*nv21"):
        image_from_message(raw(picture().reshape(5, -1), "rgb9", 7))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"height": 0}, "height 0"),
        ({"width": 0}, "width 0"),
        ({"width": 8}, "step 21 is less than the 24 bytes"),
        ({"step": 20}, "step 20 is less than the 21 bytes"),
        ({"height": 6}, "data holds 105 bytes, wants 6 rows x step 21 = 126"),
        ({"data": b"123"}, "data holds 3 bytes"),
        ({"data": b""}, "data holds 0 bytes"),
        ({"data": "text"}, "data: a str is not a buffer"),
        ({"encoding": "yuv422"}, "width 7 is odd"),
        ({"encoding": "nv12", "width": 8}, "height 5 is odd"),
        ({"encoding": "bayer_rggb8", "height": 2, "width": 2, "step": 2, "data": b"1234"}, "height 2 x width 2"),
    ],
)
def test_sizes_that_do_not_fit_are_named(change: dict[str, Any], words: str) -> None:
    msg = raw(picture().reshape(5, -1), "rgb8", 7)
    vars(msg).update(change)
    with pytest.raises(DataError, match=words):
        image_from_message(msg)


def test_something_else_is_no_image() -> None:
    with pytest.raises(DataError, match="Image or CompressedImage"):
        image_from_message(Message(data=b""))


def by_pixel(msg: Message) -> NDArray[np.float64]:
    """The picture of a packed message, read byte by byte; RGB, in units of 8 bits."""
    order, bits = (msg.encoding[:-1], 8) if msg.encoding[-1] == "8" else (msg.encoding[:-2], 16)
    places = CHANNELS[order][:3] if order != "mono" else [0, 0, 0]
    channels = len(order) if order != "mono" else 1
    result = np.zeros((msg.height, msg.width, 3))
    for row in range(msg.height):
        for column in range(msg.width):
            for channel, place in enumerate(places):
                at = row * msg.step + (column * channels + place) * bits // 8
                if bits == 8:
                    result[row, column, channel] = msg.data[at]
                else:
                    result[row, column, channel] = (
                        struct.unpack_from(">H" if msg.is_bigendian else "<H", msg.data, at)[0] / 257
                    )
    return result


@settings(max_examples=150, deadline=None)
@given(
    encoding=st.sampled_from([e for e in ENCODINGS if e[:3] in ("rgb", "bgr", "mon")]),
    mutated=st.sampled_from(["height", "width", "step", "encoding", "data", "is_bigendian", "nothing"]),
    value=st.integers(0, 2**32 - 1) | st.integers(0, 40),
    other=st.sampled_from([*ENCODINGS, "unknown", ""]),
    height=st.integers(1, 4),
    width=st.integers(1, 4),
    pad=st.integers(0, 3),
)
def test_a_mutated_image_is_refused_or_right(
    encoding: str, mutated: str, value: int, other: str, height: int, width: int, pad: int
) -> None:
    number = np.uint8 if encoding.endswith("8") else np.uint16
    channels = 1 if encoding.startswith("mono") else len(encoding.rstrip("0123456789"))
    rows = np.arange(height * width * channels).reshape(height, -1) * 7919 % np.iinfo(number).max
    msg = raw(rows.astype(number), encoding, width, pad=pad)
    if mutated == "encoding":
        msg.encoding = other
    elif mutated == "data":
        msg.data = msg.data[: value % (len(msg.data) + 1)]
    elif mutated != "nothing":
        setattr(msg, mutated, value)
    try:
        image = image_from_message(msg)
    except DataError:
        assert mutated not in ("nothing", "is_bigendian")
        return
    assert image.dtype == np.uint8
    assert image.shape == (msg.height, msg.width, 3)
    if msg.encoding[:3] in ("rgb", "bgr", "mon"):
        assert np.abs(image - by_pixel(msg)).max() <= 0.5 + 1e-6


def field(name: str, offset: int, datatype: int = 7, count: int = 1) -> Message:
    return Message(name=name, offset=offset, datatype=datatype, count=count)


def plain_cloud(points: NDArray[Any]) -> Message:
    data = points.astype("<f4").tobytes()
    return Message(
        height=1,
        width=len(points),
        fields=[field(name, 4 * i) for i, name in enumerate("xyz")],
        is_bigendian=False,
        point_step=12,
        row_step=12 * len(points),
        data=data,
    )


def test_a_packed_cloud_is_not_copied() -> None:
    points = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    msg = plain_cloud(points)
    msg.data = np.frombuffer(msg.data, dtype=np.uint8)
    cloud = cloud_from_message(msg)
    assert np.array_equal(cloud, points)
    assert np.shares_memory(cloud, msg.data)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_clouds_of_any_layout(data: st.DataObject) -> None:
    big = data.draw(st.booleans())
    height, width = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    row_pad = data.draw(st.integers(0, 5))
    kinds = {"x": None, "y": None, "z": None, "intensity": None}
    formats, offsets, at = {}, {}, 0
    for name in data.draw(st.permutations(list(kinds))):
        at += data.draw(st.integers(0, 5))
        formats[name] = data.draw(st.sampled_from("fd"))
        offsets[name] = at
        at += struct.calcsize(formats[name])
    point_step = at + data.draw(st.integers(0, 5))
    row_step = width * point_step + row_pad
    number = st.floats(-1e5, 1e5, width=32) | st.sampled_from([float("nan"), float("inf"), 1e300, 0.0, 0.0])
    buffer = bytearray(b"\xc3" * (height * row_step))
    expected = []
    for row in range(height):
        for column in range(width):
            point = []
            for name in "xyz":
                value = data.draw(number)
                if formats[name] == "f" and value == 1e300:
                    value = 1.0
                start = row * row_step + column * point_step + offsets[name]
                struct.pack_into((">" if big else "<") + formats[name], buffer, start, value)
                point.append(value)
            if all(abs(value) < 1e38 for value in point) and any(point):
                expected.append(point)
    msg = Message(
        height=height,
        width=width,
        fields=[field(name, offsets[name], {"f": 7, "d": 8}[formats[name]]) for name in formats],
        is_bigendian=big,
        point_step=point_step,
        row_step=row_step,
        data=bytes(buffer),
    )
    cloud = cloud_from_message(msg)
    assert cloud.dtype == np.float32
    assert cloud.flags.c_contiguous
    assert np.array_equal(cloud, np.array(expected, dtype=np.float32).reshape(-1, 3))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_mutated_cloud_is_refused_or_read_within_its_bytes(data: st.DataObject) -> None:
    points = np.arange(15, dtype=np.float32).reshape(5, 3)
    msg = plain_cloud(points)
    numbers = st.integers(-3, 70) | st.integers(-(2**31), 2**32)
    for _ in range(data.draw(st.integers(0, 3))):
        what = data.draw(
            st.sampled_from(["height", "width", "point_step", "row_step", "data", "field", "is_bigendian"])
        )
        if what == "data":
            msg.data = msg.data[: data.draw(st.integers(0, 60))]
        elif what == "field":
            key = data.draw(st.sampled_from(["offset", "datatype", "count"]))
            setattr(data.draw(st.sampled_from(msg.fields)), key, data.draw(numbers))
        else:
            setattr(msg, what, data.draw(numbers))
    try:
        cloud = cloud_from_message(msg)
    except DataError:
        return
    assert cloud.dtype == np.float32
    assert len(cloud) <= max(0, msg.height * msg.width)
    assert np.isfinite(cloud).all()
    expected = []
    for row in range(msg.height):
        for column in range(msg.width):
            start = row * msg.row_step + column * msg.point_step
            kinds = [">" if msg.is_bigendian else "<", *({7: "f", 8: "d"}[f.datatype] for f in msg.fields)]
            with np.errstate(over="ignore"):
                point = np.array(
                    [
                        struct.unpack_from(kinds[0] + k, msg.data, start + f.offset)[0]
                        for k, f in zip(kinds[1:], msg.fields, strict=False)
                    ]
                ).astype(np.float32)
            if np.isfinite(point).all():
                expected.append(point)
    assert np.array_equal(cloud, np.array(expected, dtype=np.float32).reshape(-1, 3))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_mutated_compressed_image_is_refused_or_a_picture(data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from([".jpg", ".png"]))
    whole = cv2.imencode(suffix, smooth(16, 16))[1].tobytes()
    changed = bytearray(whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole)
    for _ in range(data.draw(st.integers(0, 4)) if changed else 0):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    stated = data.draw(st.sampled_from(["jpeg", "rgb8; png compressed", "bayer_rggb8; jpeg compressed", "", "\x00"]))
    try:
        image = image_from_message(Message(format=stated, data=bytes(changed)))
    except DataError:
        assert bytes(changed) != whole
        return
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    if suffix == ".png" and bytes(changed) == whole:
        assert np.array_equal(image, smooth(16, 16)[:, :, ::-1])


def test_a_cloud_of_nothing_but_nan_is_empty() -> None:
    assert cloud_from_message(plain_cloud(np.full((4, 3), np.nan))).shape == (0, 3)
    empty = plain_cloud(np.empty((0, 3)))
    assert cloud_from_message(empty).shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fields": [field("x", 0), field("y", 4)]}, r"no field 'z'; it has \['x', 'y'\]"),
        ({"fields": [field("x", 0, 4), field("y", 4), field("z", 8)]}, "field 'x' has datatype 4"),
        ({"fields": [field("x", 0), field("y", 4), field("z", 9)]}, "field 'z' at offset 9"),
        ({"fields": [field("x", -4), field("y", 4), field("z", 8)]}, "field 'x' at offset -4"),
        ({"row_step": 10}, "row_step 10 is less than width 3 x point_step 12"),
        ({"height": 2}, "data holds 36 bytes, wants 2 rows x row_step 36"),
        ({"data": b""}, "data holds 0 bytes"),
        ({"width": 2**31}, "row_step 36 is less"),
        ({"point_step": 0}, "offset 0 does not fit into point_step 0"),
    ],
)
def test_clouds_that_do_not_fit_are_named(change: dict[str, Any], words: str) -> None:
    msg = plain_cloud(np.ones((3, 3)))
    vars(msg).update(change)
    with pytest.raises(DataError, match=words):
        cloud_from_message(msg)


def test_stamps_keep_every_nanosecond() -> None:
    assert stamp_ns(Message(stamp=Message(sec=1_700_000_123, nanosec=987_654_321))) == 1_700_000_123_987_654_321


def posed(position: tuple[float, ...], orientation: tuple[float, ...]) -> Message:
    return Message(
        position=Message(**dict(zip("xyz", position, strict=True))),
        orientation=Message(**dict(zip("xyzw", orientation, strict=True))),
    )


def test_poses_of_odometry_and_of_pose_stamped() -> None:
    inner = posed((1.0, 2.0, 3.0), (0.0, 0.0, 2.0, 2.0))
    for msg in (Message(pose=inner), Message(pose=Message(pose=inner, covariance=[]))):
        pose = pose_from_message(msg)
        assert pose.position.tolist() == [1.0, 2.0, 3.0]
        assert pose.yaw == pytest.approx(np.pi / 2)
        assert np.linalg.norm(pose.quaternion) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("msg", "words"),
    [
        (Message(pose=posed((np.nan, 0, 0), (0, 0, 0, 1))), "not finite"),
        (Message(pose=posed((0, 0, 0), (0, 0, 0, 0))), "quaternion is zero"),
        (Message(pose=posed((0, 1e300, 0), (0, 0, 0, 1))), "no place on Earth"),
        (Message(latitude=1.0), "has no pose"),
    ],
)
def test_poses_that_cannot_be_used_are_refused(msg: Message, words: str) -> None:
    with pytest.raises(DataError, match=words):
        pose_from_message(msg)
