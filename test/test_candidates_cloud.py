"""The candidates' cloud that is written over an earlier one, against the message made whole."""

from __future__ import annotations

import os

os.environ["ROS_PYTHON_CHECK_FIELDS"] = "1"

import math

import numpy as np
import pytest
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import PointCloud2, PointField

from vpr_kd_ros.errors import DataError
from vpr_kd_ros.match import Candidates, Match
from vpr_kd_ros.nodes.candidates import candidates_cloud

NAMES = ["x", "y", "z", "yaw", "similarity", "probability", "place_id"]


def match_of(count: int, stamp_ns: int, seed: int) -> Match:
    rng = np.random.default_rng(seed)
    candidates = Candidates(
        rng.integers(0, 2**31 - 1, count),
        rng.random(count, dtype=np.float32),
        rng.random(count),
        rng.normal(0, 1e3, (count, 3)),
        rng.uniform(-3, 3, count),
    )
    return Match(stamp_ns, False, "", None, None, candidates, None, math.nan, math.nan, {})


@pytest.mark.parametrize("frame_id", ["map", "", "the_ångström_map/of_a_long_street"])
def test_every_cloud_holds_its_own_stamp_and_candidates(frame_id: str) -> None:
    stamps = [1, 2_000_000_000_999_999_999, 17_000_000_000]
    matches = [match_of(count, stamps[i % 3], i) for i, count in enumerate([3, 0, 10, 3, 0, 1, 10, 40])]
    serialized = [candidates_cloud(match, frame_id) for match in matches]
    for match, cloud in zip(matches, (deserialize_message(found, PointCloud2) for found in serialized), strict=True):
        found = match.candidates
        assert cloud.header.frame_id == frame_id
        assert cloud.header.stamp.sec * 10**9 + cloud.header.stamp.nanosec == match.stamp_ns
        assert (cloud.height, cloud.width, cloud.point_step, cloud.row_step) == (1, len(found), 28, 28 * len(found))
        assert cloud.is_dense
        assert [field.name for field in cloud.fields] == NAMES
        assert [field.offset for field in cloud.fields] == list(range(0, 28, 4))
        assert [field.datatype for field in cloud.fields] == [*[PointField.FLOAT32] * 6, PointField.INT32]
        table = np.frombuffer(cloud.data, dtype=[(name, "<f4" if name != "place_id" else "<i4") for name in NAMES])
        wanted = np.column_stack([found.positions, found.yaws, found.similarities, found.probabilities])
        for column, name in zip(wanted.T.astype(np.float32), NAMES[:6], strict=True):
            np.testing.assert_array_equal(table[name], column)
        np.testing.assert_array_equal(table["place_id"], found.place_ids)


def test_a_stamp_that_no_message_can_hold_is_refused() -> None:
    with pytest.raises(DataError, match="stamp"):
        candidates_cloud(match_of(2, -1, 0), "map")
