"""ROS 2's own readers of images and clouds, where they are installed, against ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("sensor_msgs", reason="ROS 2's messages are not installed")

from sensor_msgs.msg import PointCloud2, PointField

from support.tiny import picture
from vpr_kd_ros.conversions import cloud_to_message, image_to_message
from vpr_kd_ros.decode import cloud_from_message, image_from_message

STAMP_NS = 1_700_000_000_000_000_000


@pytest.fixture
def point_cloud2() -> Any:
    return pytest.importorskip("sensor_msgs_py.point_cloud2", reason="sensor_msgs_py is not installed (apt only)")


def cloud(layout: str) -> PointCloud2:
    """Points with a field between the coordinates, coordinates as doubles, or what we write."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-50, 50, (500, 3)).astype(np.float32)
    if layout == "ours":
        return cloud_to_message(points, rng.uniform(0, 1, 500).astype(np.float32), STAMP_NS, "lidar")
    size, kind = (8, PointField.FLOAT64) if layout == "double" else (4, PointField.FLOAT32)
    dtype = np.dtype([("x", f"<f{size}"), ("ring", "<u2"), ("z", f"<f{size}"), ("y", f"<f{size}"), ("t", "<f8")])
    table = np.zeros(500, dtype)
    for axis, name in enumerate("xyz"):
        table[name] = points[:, axis]
    table["y"][::50] = np.nan
    kinds = {"ring": PointField.UINT16, "t": PointField.FLOAT64}
    assert dtype.fields is not None
    fields = [
        PointField(name=name, offset=dtype.fields[name][1], datatype=kinds.get(name, kind), count=1)
        for name in ("x", "ring", "z", "y", "t")
    ]
    return PointCloud2(
        height=1, width=500, fields=fields, point_step=table.itemsize, row_step=table.nbytes, data=table.tobytes()
    )


@pytest.mark.parametrize("layout", ["ours", "scattered", "double"])
def test_clouds_are_read_as_sensor_msgs_py_reads_them(point_cloud2: Any, layout: str) -> None:
    message = cloud(layout)
    table = point_cloud2.read_points(message, field_names=["x", "y", "z"], skip_nans=True)
    wanted = np.stack([table[axis].astype(np.float32) for axis in "xyz"], axis=1)
    np.testing.assert_array_equal(cloud_from_message(message), wanted)
    assert len(wanted) == (500 if layout == "ours" else 490)


def test_images_are_read_as_cv_bridge_reads_them() -> None:
    # Broken beside NumPy 2 where it was built for NumPy 1: then it fails when it is imported.
    bridge = pytest.importorskip("cv_bridge", reason="cv_bridge is not installed (apt only)", exc_type=ImportError)
    message = image_to_message(picture(3), STAMP_NS, "camera")
    np.testing.assert_array_equal(image_from_message(message), bridge.CvBridge().imgmsg_to_cv2(message, "rgb8"))
    for encoding in ("bgr8", "mono8", "bayer_rggb8"):
        channels = 3 if encoding == "bgr8" else 1
        message.encoding, message.step = encoding, message.width * channels
        message.data = np.random.default_rng(1).bytes(message.height * message.step)
        wanted = bridge.CvBridge().imgmsg_to_cv2(message, "rgb8")
        np.testing.assert_array_equal(image_from_message(message), wanted)
