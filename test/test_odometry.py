"""The odometry around an image, without ROS: when to wait for it, and when it has started over."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.nodes.odometry import Odometry, OdometryPose
from vpr_kd_ros.stamps import JUMP_NS, NewestStamps

SECOND = 1_000_000_000
EPOCH = 1_700_000_000 * SECOND
# Nothing waits that long in a test; what waits at all would not be done in time.
FOR_EVER_S = 600.0


class Wheels:
    """Odometry of 50 poses a second, along x at one metre a second, that counts how often it starts over."""

    def __init__(self, max_speed_mps: float = 5.0, wait_s: float = FOR_EVER_S) -> None:
        self.starts = 0
        self.odometry = Odometry(max_speed_mps, self._on_start, wait_s)

    def _on_start(self) -> None:
        self.starts += 1

    def drive(self, begin_s: float, end_s: float, x: float = 0.0, frame: str = "odom") -> None:
        for tick in range(round(begin_s * 50), round(end_s * 50) + 1):
            self.odometry.add(EPOCH + tick * SECOND // 50, Pose.planar(x + tick / 50, 0.0, 0.0), frame)

    def at(self, seconds: float, camera: str = "") -> OdometryPose | None:
        return self.odometry.at(EPOCH + round(seconds * SECOND), camera)


def in_time(ask: Callable[[], OdometryPose | None]) -> OdometryPose | None:
    """What a question is answered with; fails where it is not, long before it would have waited for ever."""
    answers: list[OdometryPose | None] = []
    thread = threading.Thread(target=lambda: answers.append(ask()), daemon=True)
    thread.start()
    thread.join(30.0)
    assert answers, "it waits"
    return answers[0]


def test_an_image_does_not_wait_for_odometry_that_has_died() -> None:
    wheels = Wheels(wait_s=0.01)
    wheels.drive(0.0, 1.0)
    # The first may have overtaken the pose after it.
    assert wheels.at(1.6) is None
    wheels.odometry._wait_s = FOR_EVER_S
    for silent_s in (0.6, 60.0, 3600.0):
        assert in_time(lambda s=silent_s: wheels.at(1.0 + s)) is None
    # It is back: what lies between is too far from both.
    wheels.drive(3700.0, 3701.0)
    found = in_time(lambda: wheels.at(3700.51))
    assert found is not None
    assert found.pose.position[0] == pytest.approx(3700.51)


def test_an_image_does_not_wait_for_odometry_that_never_came() -> None:
    assert in_time(lambda: Wheels().at(0.0)) is None


@pytest.mark.parametrize("pause_s", [0.02, 1.0])
def test_an_image_waits_for_the_pose_after_it(pause_s: float) -> None:
    """Also where it overtakes the first one after a pause."""
    wheels = Wheels()
    wheels.drive(0.0, 1.0)
    taken = 1.03 + pause_s
    answers: list[OdometryPose | None] = []
    asking = threading.Thread(target=lambda: answers.append(wheels.at(taken)), daemon=True)
    asking.start()
    asking.join(0.2)
    assert not answers
    wheels.drive(1.0 + pause_s, taken + 1.0)
    asking.join(30.0)
    assert answers[0] is not None
    assert answers[0].pose.position[0] == pytest.approx(taken)
    assert answers[0].frame_id == "odom"


@pytest.mark.parametrize(
    ("begin_s", "x", "yaw", "frame"),
    [(1.02, 100.0, 0.0, "odom"), (4.0, -100.0, 0.0, "odom"), (1.02, 1.02, 1.6, "odom"), (1.02, 1.02, 0.0, "other")],
)
def test_odometry_that_jumps_has_started_over(begin_s: float, x: float, yaw: float, frame: str) -> None:
    wheels = Wheels(wait_s=0.0)
    wheels.drive(0.0, 1.0)
    before = wheels.at(0.75)
    assert before is not None
    assert wheels.starts == 0
    assert not wheels.odometry.add(EPOCH + round(begin_s * SECOND), Pose.planar(x, 0.0, yaw), frame)
    assert wheels.starts == 1
    assert wheels.odometry.start != before.start
    # Nothing lies between two frames.
    assert wheels.at(1.01) is None
    after = wheels.at(begin_s)
    assert after is not None
    assert (after.pose.position[0], after.frame_id, after.start) == (x, frame, wheels.odometry.start)


def test_odometry_whose_time_jumps_back_has_started_over() -> None:
    wheels = Wheels(wait_s=0.0)
    wheels.drive(0.0, 1.0)
    wheels.drive(0.5, 0.7, x=-0.2)
    assert wheels.starts == 1
    found = wheels.at(0.6)
    assert found is not None
    assert found.pose.position[0] == pytest.approx(0.4)
    assert wheels.at(0.3) is None


def test_a_robot_that_drives_and_turns_does_not_start_over() -> None:
    wheels = Wheels(max_speed_mps=10.0)
    for tick in range(200):
        stamp = EPOCH + tick * SECOND // 10
        assert wheels.odometry.add(stamp, Pose.planar(0.9 * tick, 0.0, 0.3 * tick), "odom")
        # What the network brought late is no jump.
        assert wheels.odometry.add(stamp - SECOND // 20, Pose.planar(0.9 * tick - 0.4, 0.0, 0.3 * tick), "odom")
    assert wheels.starts == 0


def test_images_whose_time_jumps_back_are_of_another_drive() -> None:
    wheels = Wheels(wait_s=0.0)
    wheels.drive(0.0, 2.0)
    assert wheels.at(1.5, "front") is not None
    # Each camera has its own time, and a hair is no jump.
    assert wheels.at(1.2, "rear") is not None
    assert wheels.at(1.5 - 1e-9, "front") is not None
    assert wheels.starts == 0
    assert wheels.at(1.3, "front") is None
    assert wheels.starts == 1
    assert wheels.at(0.5, "rear") is None
    assert wheels.starts == 1


def test_stamps_of_cameras() -> None:
    stamps = NewestStamps()
    assert stamps.since_s(EPOCH) == 0.0
    stamps.add(EPOCH, "front")
    stamps.add(EPOCH + SECOND, "rear")
    stamps.add(EPOCH - SECOND, "rear")
    assert stamps.since_s(EPOCH + 3 * SECOND) == pytest.approx(2.0)
    assert stamps.before_ns(EPOCH - 5, "front") == 5
    assert stamps.before_ns(EPOCH + 5, "front") == 0
    assert not stamps.jumped_back(EPOCH - JUMP_NS, "front")
    assert stamps.jumped_back(EPOCH - JUMP_NS - 1, "front")
    assert stamps.jumped_back(EPOCH, "rear")
    assert not stamps.jumped_back(EPOCH - 3600 * SECOND, "left")
    stamps.clear()
    assert not stamps.jumped_back(0, "front")
