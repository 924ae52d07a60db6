"""Messages made of arrays, read back by other code than made them."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import Image, PointCloud2

from vpr_kd_ros import decode
from vpr_kd_ros.conversions import (
    cloud_to_message,
    columns_to_cloud,
    image_to_message,
    odometry_to_message,
    pose_stamped_to_message,
    pose_with_covariance_to_message,
    stamp_from_ns,
)
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.geometry import Pose

STAMP_NS = 1_700_000_000_123_456_789


def test_an_image_survives_the_wire() -> None:
    # A view with strides of its own: what is sent is the picture, not the memory.
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)[::2, ::-1]
    message = deserialize_message(serialize_message(image_to_message(picture, STAMP_NS, "camera")), Image)
    assert (message.height, message.width, message.step, message.encoding) == (20, 60, 180, "rgb8")
    assert message.header.frame_id == "camera"
    assert decode.stamp_ns(message.header) == STAMP_NS
    np.testing.assert_array_equal(decode.image_from_message(message), picture)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 4), (5, 3)])
def test_an_image_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="wants RGB"):
        image_to_message(np.zeros(shape, np.uint8), 0, "camera")


@pytest.mark.parametrize("with_intensity", [True, False])
def test_a_cloud_survives_the_wire(with_intensity: bool) -> None:
    random = np.random.default_rng(1)
    points = random.normal(size=(100, 3)).astype(np.float32)
    intensity = random.random(100).astype(np.float32) if with_intensity else None
    message = deserialize_message(
        serialize_message(cloud_to_message(points, intensity, STAMP_NS, "lidar")), PointCloud2
    )
    np.testing.assert_array_equal(decode.cloud_from_message(message), points)
    assert [field.name for field in message.fields] == ["x", "y", "z"] + ["intensity"] * with_intensity
    if intensity is not None:
        # By hand: the fourth float of every point.
        np.testing.assert_array_equal(np.frombuffer(message.data, "<f4")[3::4], intensity)


def test_an_empty_cloud_is_a_cloud() -> None:
    message = cloud_to_message(np.empty((0, 3), np.float32), None, STAMP_NS, "lidar")
    assert (message.width, message.height, len(message.data)) == (0, 1, 0)
    assert decode.cloud_from_message(message).shape == (0, 3)


def test_columns_of_different_types_keep_their_values() -> None:
    values = {"similarity": np.array([0.25, -1.0], np.float32), "place_id": np.array([7, -(2**31)], np.int32)}
    message = columns_to_cloud(values, STAMP_NS, "map")
    assert np.frombuffer(message.data, "<f4")[0::2].tolist() == [0.25, -1.0]
    assert np.frombuffer(message.data, "<i4")[1::2].tolist() == [7, -(2**31)]


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"x": np.zeros(2, np.float32), "y": np.zeros(3, np.float32)}, "differ in length"),
        ({"x": np.zeros(2, np.float64)}, "'x' is float64"),
    ],
)
def test_columns_that_do_not_fit_are_refused(columns: dict[str, np.ndarray], text: str) -> None:
    with pytest.raises(DataError, match=text):
        columns_to_cloud(columns, 0, "map")


def test_poses_come_back_from_every_message() -> None:
    pose = Pose(np.array([1.5, -2.5, 0.25]), np.array([0.5, -0.5, 0.5, 0.5]))
    covariance = np.arange(36.0).reshape(6, 6)
    with_covariance = pose_with_covariance_to_message(pose, covariance, STAMP_NS, "map")
    odometry = odometry_to_message(pose, STAMP_NS, "map", "base_link")
    for message in (odometry, pose_stamped_to_message(pose, STAMP_NS, "map"), with_covariance):
        back = decode.pose_from_message(message)
        np.testing.assert_allclose(back.position, pose.position)
        np.testing.assert_allclose(back.quaternion, pose.quaternion)
        assert (decode.stamp_ns(message.header), message.header.frame_id) == (STAMP_NS, "map")
    assert odometry.child_frame_id == "base_link"
    # Row-major: the element of row x, column y is the second.
    assert with_covariance.pose.covariance[1] == 1.0
    assert with_covariance.pose.covariance[6] == 6.0


@pytest.mark.parametrize("stamp_ns", [-1, 2**31 * 10**9])
def test_a_stamp_that_does_not_fit_is_refused(stamp_ns: int) -> None:
    with pytest.raises(DataError, match="does not fit"):
        stamp_from_ns(stamp_ns)
