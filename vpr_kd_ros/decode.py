"""ROS messages to arrays: images, point clouds, stamps, poses.

Works on anything shaped like the messages of ``sensor_msgs``, ``nav_msgs`` and ``geometry_msgs``, whether rclpy or a
bag reader made it, so that robot and training read a message alike. Every size that a message states is checked against
the bytes it holds: what does not fit is a ``DataError`` that names the field.
"""

from __future__ import annotations

import sys
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vpr_kd_ros.errors import DataError, did_you_mean
from vpr_kd_ros.geometry import Pose

Pixels = NDArray[np.uint8]

# Encoding to channels, bits of a channel, and OpenCV's conversion to RGB (None: it is RGB already).
_PACKED: dict[str, tuple[int, int, int | None]] = {
    **{
        f"{order}{bits}": (len(order), bits, code)
        for bits in (8, 16)
        for order, code in (
            ("rgb", None),
            ("bgr", cv2.COLOR_BGR2RGB),
            ("rgba", cv2.COLOR_RGBA2RGB),
            ("bgra", cv2.COLOR_BGRA2RGB),
        )
    },
    **{name: (1, bits, cv2.COLOR_GRAY2RGB) for bits in (8, 16) for name in (f"mono{bits}", f"{bits}UC1")},
    # OpenCV's type names say nothing of colour; what OpenCV keeps in three channels is BGR, in four BGRA.
    **{f"{bits}UC3": (3, bits, cv2.COLOR_BGR2RGB) for bits in (8, 16)},
    **{f"{bits}UC4": (4, bits, cv2.COLOR_BGRA2RGB) for bits in (8, 16)},
    # OpenCV names a mosaic by the second row's second and third pixel, ROS by its upper left block (and the OpenCV of
    # Ubuntu 22.04 does not have the newer names that say the same as ROS).
    **{
        f"bayer_{pattern}{bits}": (1, bits, code)
        for bits in (8, 16)
        for pattern, code in (
            ("rggb", cv2.COLOR_BayerBG2RGB),
            ("bggr", cv2.COLOR_BayerRG2RGB),
            ("gbrg", cv2.COLOR_BayerGR2RGB),
            ("grbg", cv2.COLOR_BayerGB2RGB),
        )
    },
}
_YUV422 = {
    "yuv422": cv2.COLOR_YUV2RGB_UYVY,
    "uyvy": cv2.COLOR_YUV2RGB_UYVY,
    "yuv422_yuy2": cv2.COLOR_YUV2RGB_YUY2,
    "yuyv": cv2.COLOR_YUV2RGB_YUY2,
}
_YUV420 = {"nv12": cv2.COLOR_YUV2RGB_NV12, "nv21": cv2.COLOR_YUV2RGB_NV21}
_YUV444 = "nv24"
ENCODINGS = (*_PACKED, *_YUV422, *_YUV420, _YUV444)
"""Encodings of ``sensor_msgs/Image`` that ``image_from_message`` reads."""

FARTHEST_M = 1e8
"""Poses farther from their origin are rubbish: Earth-centred coordinates and those of map projections are nearer."""
_FLOATS = {7: "f4", 8: "f8"}  # PointField.FLOAT32, PointField.FLOAT64


def image_from_message(msg: Any) -> Pixels:
    """Decode a ``sensor_msgs/Image`` or ``CompressedImage`` (JPEG or PNG) to RGB.

    16-bit channels are scaled to 8 bits over their full range, Bayer mosaics interpolated bilinearly, grey repeated.

    Args:
        msg: the message, of rclpy, of a bag reader, or anything with the same fields.

    Returns:
        (H, W, 3) uint8. For ``rgb8`` it is a view of ``msg.data``: it may be read-only and its rows may be padded.

    Raises:
        DataError: the encoding is unknown, or sizes and bytes do not fit.
    """
    if hasattr(msg, "encoding"):
        return _raw_image(msg)
    if hasattr(msg, "format"):
        return _compressed_image(msg)
    raise DataError(
        f"image: a {type(msg).__name__} has neither 'encoding' nor 'format'; wants sensor_msgs Image or CompressedImage"
    )


def cloud_from_message(msg: Any) -> NDArray[np.float32]:
    """Read the points of a ``sensor_msgs/PointCloud2`` of any layout.

    Those that are not finite are left out, and those in the origin: so many drivers write a beam that came back from
    nowhere.

    Args:
        msg: the message; ``x``, ``y`` and ``z`` may be float32 or float64, at any offset, in either byte order.

    Returns:
        (M, 3) float32, metres, C-contiguous, in the message's frame; M is 0 for an empty cloud. A view of ``msg.data``
        where the points lie there just so.

    Raises:
        DataError: a coordinate is missing or of another type, or sizes and bytes do not fit.
    """
    height, width = _size(msg, "height", least=0), _size(msg, "width", least=0)
    point_step, row_step = _size(msg, "point_step", least=0), _size(msg, "row_step", least=0)
    data = _bytes_of(msg)
    if height * width == 0:
        return np.empty((0, 3), dtype=np.float32)
    if row_step < width * point_step:
        raise DataError(f"cloud: row_step {row_step} is less than width {width} x point_step {point_step}")
    _check_length(data, height, row_step, "row_step")
    order = ">" if msg.is_bigendian else "<"
    layout = [_coordinate(msg, axis, point_step) for axis in "xyz"]
    (kind, first), size = layout[0], int(layout[0][0][1])
    strides = (row_step, point_step)
    columns = [np.ndarray((height, width), order + kind, data, offset, strides) for kind, offset in layout]
    if order + kind == "<f4" and layout == [(kind, first + i * size) for i in range(3)]:
        # A point at a time, and no more than once; number by number, NumPy copies several times slower.
        triples = np.ndarray((height, width), f"V{3 * size}", data, first, strides)
        kept = _returned(*columns)
        chosen = np.ascontiguousarray(triples) if kept.all() else triples[kept]
        return chosen.view("<f4").reshape(-1, 3)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite and is removed below
        x, y, z = (np.asarray(column, dtype=np.float32) for column in columns)
    kept = _returned(x, y, z)
    return np.stack([x[kept], y[kept], z[kept]], axis=1)


def _returned(x: NDArray[np.float32], y: NDArray[np.float32], z: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which points are finite and not in the origin."""
    farthest = np.maximum(np.maximum(np.abs(x), np.abs(y)), np.abs(z))  # of a NaN it is NaN, and neither holds
    return np.asarray((farthest > 0) & (farthest < np.inf))


def stamp_ns(header: Any) -> int:
    """Time of a ``std_msgs/Header``, nanoseconds."""
    return int(header.stamp.sec) * 1_000_000_000 + int(header.stamp.nanosec)


def pose_from_message(msg: Any) -> Pose:
    """Pose of a ``nav_msgs/Odometry``, ``PoseWithCovarianceStamped`` or ``PoseStamped``, its quaternion of unit length.

    Raises:
        DataError: there is no pose in it, a value is not finite, or the quaternion is zero.
    """
    outer: Any = getattr(msg, "pose", None)
    pose: Any = getattr(outer, "pose", outer)
    if not (hasattr(pose, "position") and hasattr(pose, "orientation")):
        raise DataError(
            f"pose: a {type(msg).__name__} has no pose; wants Odometry, PoseWithCovarianceStamped or PoseStamped"
        )
    position = np.array([getattr(pose.position, axis) for axis in "xyz"], dtype=np.float64)
    quaternion = np.array([getattr(pose.orientation, axis) for axis in "xyzw"], dtype=np.float64)
    if not (np.isfinite(position).all() and np.isfinite(quaternion).all()):
        raise DataError(f"pose: not finite: position {position.tolist()}, orientation {quaternion.tolist()}")
    if np.abs(position).max() > FARTHEST_M:
        raise DataError(f"pose: position {position.tolist()} is no place on Earth in metres")
    norm = float(np.linalg.norm(quaternion))
    if norm < 1e-6:
        raise DataError("pose: the orientation quaternion is zero; its source has not set it")
    return Pose(position, quaternion / norm)


def _raw_image(msg: Any) -> Pixels:
    encoding = str(msg.encoding)
    height, width, step = (_size(msg, name, least=1) for name in ("height", "width", "step"))
    data = _bytes_of(msg)
    if encoding in _PACKED:
        channels, bits, code = _PACKED[encoding]
        rows = _rows(data, height, step, width * channels * bits // 8, encoding)
        if encoding.startswith("bayer_"):
            _check_mosaic(height, width)
        if bits == 8:
            return _to_rgb(rows.reshape(height, width, channels), code)
        wide = np.ascontiguousarray(rows).view(np.uint16).reshape(height, width, channels)
        if bool(msg.is_bigendian) != (sys.byteorder == "big"):
            wide = wide.byteswap()
        return _to_8_bits(_to_rgb(wide, code))
    if encoding in _YUV422:
        _check_even("width", width, encoding)
        rows = _rows(data, height, step, width * 2, encoding)
        return _to_rgb(rows.reshape(height, width, 2), _YUV422[encoding])
    if encoding in _YUV420:
        _check_even("width", width, encoding)
        _check_even("height", height, encoding)
        # Half as many rows of interleaved chroma follow the rows of luma.
        return _to_rgb(_rows(data, height * 3 // 2, step, width, encoding), _YUV420[encoding])
    if encoding == _YUV444:
        return _yuv444(_rows(data, height * 3, step, width, encoding), height, step == width)
    raise DataError(
        f"image: unknown encoding {encoding!r}{did_you_mean(encoding, ENCODINGS)}; known: {', '.join(ENCODINGS)}"
    )


def _yuv444(planes: Pixels, height: int, tight: bool) -> Pixels:
    """RGB of a plane of luma (height rows) and one of interleaved chroma, whose rows are twice as long."""
    if not tight:
        raise DataError("image: rows of nv24 have padding; how those of its chroma are padded is not defined")
    luma = planes[:height]
    chroma = planes[height:].reshape(height, -1, 2)
    # OpenCV knows no nv24: two pixels of each of yuv422 have the chroma of one of these.
    doubled = np.empty((height, luma.shape[1], 2, 2), dtype=np.uint8)
    doubled[..., 0] = luma[..., None]
    doubled[..., 1] = chroma
    wide = cv2.cvtColor(doubled.reshape(height, -1, 2), cv2.COLOR_YUV2RGB_YUY2)
    return np.asarray(wide[:, ::2], dtype=np.uint8)


def _compressed_image(msg: Any) -> Pixels:
    data = _bytes_of(msg)
    stated = str(msg.format)
    head = data[:8].tobytes()
    if head[:3] == b"\xff\xd8\xff":
        # Decoders fill what is missing of a JPEG with grey; only its end marker tells that it is whole.
        if data.tobytes().rfind(b"\xff\xd9") < 0:
            raise DataError(f"compressed image: data (format {stated!r}, {data.size} bytes) is a JPEG cut short")
    elif head != b"\x89PNG\r\n\x1a\n":
        raise DataError(
            f"compressed image: data (format {stated!r}, {data.size} bytes) is neither JPEG nor PNG; known: jpeg, png"
        )
    # image_transport names the encoding before compression; a Bayer mosaic is compressed as it is, in one channel.
    original = stated.split(";")[0].strip()
    if original.startswith("bayer_") and original in _PACKED:
        mosaic = _decompress(data, cv2.IMREAD_UNCHANGED, stated)
        if mosaic.ndim == 2:
            _check_mosaic(*mosaic.shape)
            rgb = _to_rgb(mosaic, _PACKED[original][2])
            return rgb if rgb.dtype == np.uint8 else _to_8_bits(rgb)
    # The robot's camera knows which way is up; an orientation in EXIF comes from elsewhere.
    return _to_rgb(_decompress(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION, stated), cv2.COLOR_BGR2RGB)


def _decompress(data: Pixels, flags: int, stated: str) -> NDArray[Any]:
    try:
        image: Any = cv2.imdecode(data, flags)
    except cv2.error as error:
        raise DataError(f"compressed image: data (format {stated!r}) cannot be decoded: {error}") from error
    if image is None or image.size == 0:
        raise DataError(f"compressed image: data (format {stated!r}, {data.size} bytes) cannot be decoded")
    return np.asarray(image)


def _to_8_bits(pixels: NDArray[Any]) -> Pixels:
    return np.asarray(cv2.convertScaleAbs(pixels, alpha=255.0 / 65535.0), dtype=np.uint8)


def _to_rgb(pixels: NDArray[Any], code: int | None) -> NDArray[Any]:
    if code is None:
        return pixels
    try:
        return np.asarray(cv2.cvtColor(pixels, code))
    except cv2.error as error:  # e.g. a Bayer mosaic of one pixel
        size = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise DataError(f"image: {size} pixels cannot be converted to RGB: {error.err}") from error


def _bytes_of(msg: Any) -> Pixels:
    try:
        return np.frombuffer(msg.data, dtype=np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        # NumPy refuses an empty buffer too.
        if hasattr(msg.data, "__len__") and len(msg.data) == 0:
            return np.empty(0, dtype=np.uint8)
        raise DataError(f"data: a {type(msg.data).__name__} is not a buffer of bytes: {error}") from error


def _size(msg: Any, name: str, least: int) -> int:
    value = int(getattr(msg, name))
    if value < least:
        raise DataError(f"{name} {value} is less than {least}")
    return value


def _rows(data: Pixels, height: int, step: int, used: int, encoding: str) -> Pixels:
    """View (height, used) of the bytes of each row that are pixels."""
    if step < used:
        raise DataError(f"image: step {step} is less than the {used} bytes that a row of {encoding} has")
    _check_length(data, height, step, "step")
    return data.reshape(height, step)[:, :used]


def _check_length(data: Pixels, rows: int, step: int, name: str) -> None:
    if data.size != rows * step:
        raise DataError(f"data holds {data.size} bytes, wants {rows} rows x {name} {step} = {rows * step}")


def _check_even(name: str, value: int, encoding: str) -> None:
    if value % 2:
        raise DataError(f"image: {name} {value} is odd; {encoding} shares colour between two pixels")


def _check_mosaic(height: int, width: int) -> None:
    # OpenCV returns black for less, without a word.
    if min(height, width) < 3:
        raise DataError(f"image: height {height} x width {width} is too small for a Bayer mosaic; wants 3x3 or more")


def _coordinate(msg: Any, axis: str, point_step: int) -> tuple[str, int]:
    """Type ("f4", "f8") and byte offset of a coordinate."""
    found = [f for f in msg.fields if f.name == axis]
    if not found:
        raise DataError(f"cloud: no field {axis!r}; it has {[f.name for f in msg.fields]}")
    kind, offset = _FLOATS.get(int(found[0].datatype)), int(found[0].offset)
    if kind is None:
        raise DataError(f"cloud: field {axis!r} has datatype {found[0].datatype}; wants FLOAT32 (7) or FLOAT64 (8)")
    if not 0 <= offset <= point_step - int(kind[1]):
        raise DataError(f"cloud: field {axis!r} at offset {offset} does not fit into point_step {point_step}")
    return kind, offset
