"""Angles and trajectories against SciPy's rotations and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation, Slerp

from vpr_kd_ros.errors import DataError
from vpr_kd_ros.geometry import Pose, Trajectory, quaternion_from_yaw, wrap_angle, yaw_from_quaternion

EPOCH_NS = 1_700_000_000_000_000_000


def test_yaw_is_scipys() -> None:
    rotations = Rotation.random(200, random_state=0)
    wanted = rotations.as_euler("ZYX")[:, 0]
    found = yaw_from_quaternion(rotations.as_quat())
    np.testing.assert_allclose(np.exp(1j * found), np.exp(1j * wanted), atol=1e-9)
    assert yaw_from_quaternion(rotations.as_quat().reshape(10, 20, 4)).shape == (10, 20)


def test_yaw_and_quaternion_are_inverse() -> None:
    yaws = np.linspace(-3.1, 3.1, 50).reshape(5, 10)
    quaternions = quaternion_from_yaw(yaws)
    assert quaternions.shape == (5, 10, 4)
    np.testing.assert_allclose(yaw_from_quaternion(quaternions), yaws, atol=1e-12)
    pose = Pose.planar(1.0, 2.0, -2.5, z=3.0)
    assert pose.yaw == pytest.approx(-2.5)
    # Heading along yaw: the body's x axis points there.
    axis = Rotation.from_quat(pose.quaternion).apply([1, 0, 0])
    np.testing.assert_allclose(axis, [math.cos(-2.5), math.sin(-2.5), 0], atol=1e-12)


@given(st.floats(-1e6, 1e6))
@settings(deadline=None)
def test_wrapped_angles_point_the_same_way(angle: float) -> None:
    wrapped = float(wrap_angle(np.array(angle)))
    assert -math.pi <= wrapped < math.pi
    assert math.cos(wrapped) == pytest.approx(math.cos(angle), abs=1e-8)
    assert math.sin(wrapped) == pytest.approx(math.sin(angle), abs=1e-8)


def test_wrap_at_its_edges() -> None:
    edges = np.array([math.pi, -math.pi, np.nextafter(-math.pi, -4), 3 * math.pi, 0.0])
    wrapped = wrap_angle(edges)
    assert ((wrapped >= -math.pi) & (wrapped < math.pi)).all()
    assert wrapped[-1] == 0.0


def drive(seed: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    stamps = EPOCH_NS + np.cumsum(rng.integers(10**6, 3 * 10**8, count))
    return stamps, rng.uniform(-50, 50, (count, 3)), Rotation.random(count, random_state=seed).as_quat()


def test_interpolation_against_a_loop() -> None:
    stamps, positions, quaternions = drive(0, 60)
    shuffled = np.random.default_rng(1).permutation(60)
    # Lengths other than 1 are normalised.
    trajectory = Trajectory(stamps[shuffled], positions[shuffled], 3.0 * quaternions[shuffled])
    asked = np.concatenate(
        [np.random.default_rng(2).integers(stamps[0] - 10**9, stamps[-1] + 10**9, 300), stamps[[0, 30, -1]]]
    )
    max_gap = 200_000_000
    found_p, found_q, valid = trajectory.at(asked, max_gap)
    for n, t in enumerate(asked.tolist()):
        hit = np.flatnonzero(stamps == t)
        if len(hit):
            expected = positions[hit[0]], Rotation.from_quat(quaternions[hit[0]])
        else:
            left = int(np.searchsorted(stamps, t)) - 1
            if left < 0 or left + 1 >= 60 or stamps[left + 1] - stamps[left] > max_gap:
                assert not valid[n]
                assert np.isnan(found_p[n]).all()
                assert np.isnan(found_q[n]).all()
                continue
            share = (t - int(stamps[left])) / (int(stamps[left + 1]) - int(stamps[left]))
            rotation = Slerp([0, 1], Rotation.from_quat(quaternions[left : left + 2]))(share)
            expected = (1 - share) * positions[left] + share * positions[left + 1], rotation
        assert valid[n]
        np.testing.assert_allclose(found_p[n], expected[0], atol=1e-6)
        assert (Rotation.from_quat(found_q[n]) * expected[1].inv()).magnitude() < 1e-6
    assert 50 < valid.sum() < 300


def test_of_equal_stamps_the_last_counts() -> None:
    trajectory = Trajectory(np.array([5, 5, 9, 5]), np.arange(12.0).reshape(4, 3), np.tile([0.0, 0, 0, 1], (4, 1)))
    assert len(trajectory) == 2
    positions, _, valid = trajectory.at(np.array([5]), 0)
    assert valid.all()
    np.testing.assert_array_equal(positions[0], [9, 10, 11])


def test_a_single_pose_answers_its_own_time_only() -> None:
    trajectory = Trajectory(np.array([7]), np.ones((1, 3)), np.array([[0.0, 0, 2, 0]]))
    positions, quaternions, valid = trajectory.at(np.array([6, 7, 8]), 10**12)
    assert valid.tolist() == [False, True, False]
    np.testing.assert_array_equal(positions[1], [1, 1, 1])
    np.testing.assert_array_equal(quaternions[1], [0, 0, 1, 0])


def test_bad_trajectories_are_refused() -> None:
    stamps, positions, quaternions = drive(3, 4)
    broken = positions.copy()
    broken[2, 1] = np.nan
    for arguments in (
        (stamps[:3], positions, quaternions),
        (stamps[:0], positions[:0], quaternions[:0]),
        (stamps, broken, quaternions),
        (stamps, positions, 0 * quaternions),
    ):
        with pytest.raises(DataError, match="trajectory"):
            Trajectory(*arguments)
