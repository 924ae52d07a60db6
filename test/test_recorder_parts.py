"""The parts of the recorder that need no ROS: the gate that opens while the robot moves, and what ails the topics."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vpr_kd_ros.bag_topics import TopicQos
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.nodes.recording_gate import Arrival, MovementGate
from vpr_kd_ros.nodes.recording_quality import Losses, MachineClock, Publishers, Stamps, TopicQuality
from vpr_kd_ros.nodes.sync import StampOffset

SECOND = 1_000_000_000
EPOCH = 1_700_000_000 * SECOND
RELIABLE, BEST_EFFORT = TopicQos(), TopicQos(reliable=False)
LATCHED = TopicQos(transient_local=True, depth=1)


# --- gate ------------------------------------------------------------------------------------------------------------


def drive(gate: MovementGate, poses: list[Pose | None], period_s: float = 0.1) -> list[int]:
    """Drive along the poses (None: none comes), one message with each; numbers of those let through, in their order."""
    through: list[int] = []
    for number, pose in enumerate(poses):
        now_ns = EPOCH + int(number * period_s * SECOND)
        if pose is not None:
            gate.pose(now_ns, pose)
        through += [int(m.data) for m in gate.pass_on(Arrival("/camera", "", now_ns, str(number).encode()))]
    return through


def test_the_gate_opens_while_the_robot_moves_and_keeps_what_was_just_before() -> None:
    # 3 s standing, 3 s at 1 m/s, 5 s standing, 1 s moving.
    x = np.cumsum([0.0] * 30 + [0.1] * 30 + [0.0] * 50 + [0.1] * 10)
    gate = MovementGate(distance_m=0.45, standing_s=2.0, buffer_s=1.0, max_buffer_bytes=1 << 20)
    through = drive(gate, [Pose.planar(value, 0.0, 0.0) for value in x])
    assert through[:20] == list(range(20))
    # Half a metre is done every fifth step, the last time at 59; it stands 20 steps later. Kept are the 10 steps before
    # the last one that was held back.
    assert through == [*range(20), *range(33 - 10, 59 + 20), *range(113 - 10, 120)]
    assert gate.left_out == {"/camera": 120 - len(through)}


def test_a_turn_on_the_spot_is_movement_also_across_the_seam_of_angles() -> None:
    yaw = math.pi - 0.1 + np.arange(60) * 0.02
    gate = MovementGate(distance_m=1.0, standing_s=2.0, buffer_s=0.0, max_buffer_bytes=1 << 20)
    assert drive(gate, [Pose.planar(0.0, 0.0, float(value)) for value in yaw]) == list(range(60))


def test_noise_of_standing_odometry_is_no_movement() -> None:
    noise = np.random.default_rng(0).normal(0.0, 0.02, (200, 2))
    gate = MovementGate(distance_m=0.5, standing_s=2.0, buffer_s=1.0, max_buffer_bytes=1 << 20)
    assert drive(gate, [Pose.planar(float(x), float(y), 0.0) for x, y in noise]) == list(range(20))


def test_without_odometry_everything_is_recorded() -> None:
    gate = MovementGate(distance_m=0.5, standing_s=2.0, buffer_s=1.0, max_buffer_bytes=1 << 20)
    assert drive(gate, [None] * 100) == list(range(100))
    # It stands, and then its odometry breaks down: what was held back comes with the rest.
    gate = MovementGate(distance_m=0.5, standing_s=2.0, buffer_s=1.0, max_buffer_bytes=1 << 20)
    through = drive(gate, [Pose.planar(0.0, 0.0, 0.0)] * 50 + [None] * 50)
    assert through == [*range(20), *range(49 - 10, 100)]


@pytest.mark.parametrize("late", [1, 7, 15])
def test_poses_that_are_late_cost_nothing(late: int) -> None:
    """The same drive with poses that are processed long after the messages of their time: the machine hangs."""
    x = np.cumsum([0.0] * 30 + [0.1] * 30 + [0.0] * 50 + [0.1] * 30)
    gate = MovementGate(distance_m=0.45, standing_s=2.0, buffer_s=1.0, max_buffer_bytes=1 << 20)
    through: list[int] = []
    for number in range(len(x)):
        if number >= late:
            gate.pose(EPOCH + (number - late) * SECOND // 10, Pose.planar(x[number - late], 0.0, 0.0))
        message = Arrival("/camera", "", EPOCH + number * SECOND // 10, str(number).encode())
        through += [int(m.data) for m in gate.pass_on(message)]
    gate.close()
    wanted = [*range(20), *range(33 - 10, 59 + 20), *range(113 - 10, 140)]
    assert through[: len(wanted)] == wanted
    assert gate.left_out == {"/camera": 140 - len(wanted)}


def test_the_buffer_is_bounded_by_bytes() -> None:
    gate = MovementGate(distance_m=0.5, standing_s=1.0, buffer_s=100.0, max_buffer_bytes=350)
    gate.pose(EPOCH, Pose.planar(0.0, 0.0, 0.0))
    gate.pose(EPOCH + 5 * SECOND, Pose.planar(0.0, 0.0, 0.0))
    for number in range(10):
        assert gate.pass_on(Arrival("/lidar", "", EPOCH + 5 * SECOND + number, bytes([number]) * 100)) == []
    assert gate.left_out == {"/lidar": 7}
    gate.pose(EPOCH + 5 * SECOND + 20, Pose.planar(1.0, 0.0, 0.0))
    passed = gate.pass_on(Arrival("/lidar", "", EPOCH + 5 * SECOND + 21, b"now"))
    assert [message.data[:1] for message in passed] == [b"\x07", b"\x08", b"\x09", b"n"]


def test_a_clock_that_is_set_back_opens_the_gate_and_closes_it_again() -> None:
    gate = MovementGate(distance_m=0.5, standing_s=1.0, buffer_s=0.0, max_buffer_bytes=1 << 20)
    gate.pose(EPOCH, Pose.planar(0.0, 0.0, 0.0))
    gate.pose(EPOCH + 2 * SECOND, Pose.planar(0.0, 0.0, 0.0))
    assert gate.stands(EPOCH + 2 * SECOND)
    now = EPOCH - 3600 * SECOND
    assert not gate.stands(now)
    assert gate.pass_on(Arrival("/camera", "", now, b"1"))
    gate.pose(now, Pose.planar(0.0, 0.0, 0.0))
    assert gate.pass_on(Arrival("/camera", "", now + SECOND // 2, b"2"))
    gate.pose(now + 2 * SECOND, Pose.planar(0.0, 0.0, 0.0))
    assert gate.stands(now + 2 * SECOND)
    assert not gate.pass_on(Arrival("/camera", "", now + 2 * SECOND, b"3"))


# --- quality ---------------------------------------------------------------------------------------------------------


def stamps_of(steps_s: list[float], arrival_steps_s: list[float], age_s: float = 0.01) -> Stamps:
    stamps = Stamps()
    arrivals = EPOCH + (np.cumsum(arrival_steps_s) * SECOND).astype(np.int64)
    for stamp, arrival in zip(EPOCH + (np.cumsum(steps_s) * SECOND).astype(np.int64), arrivals, strict=True):
        stamps.add(int(stamp), int(arrival + age_s * SECOND))
    return stamps


def test_stamps_that_go_on_as_time_does_are_fine_whatever_the_pauses() -> None:
    jitter = np.random.default_rng(1).uniform(-0.04, 0.04, 50)
    steps = np.full(50, 0.1)
    steps[20] = 30.0  # the driver paused
    stamps = stamps_of(list(steps), list(steps + jitter))
    assert list(stamps.problems()) == []
    assert (stamps.back, stamps.forward) == (0, 0)


def test_stamps_that_jump_are_counted_by_direction() -> None:
    steps = [0.1] * 10 + [-3600.0] + [0.1] * 10 + [3601.0] + [0.1] * 10
    stamps = stamps_of(steps, [0.1] * len(steps))
    assert (stamps.back, stamps.forward) == (1, 1)
    assert stamps.largest_jump_s == pytest.approx(3600.9)
    problems = "; ".join(stamps.problems())
    assert "jumped back 1 times, by up to 3.6e+03 s" in problems
    assert "jumped forward 1 times" in problems


def test_stamps_of_another_clock_and_none_at_all_are_named() -> None:
    assert "7.5 s behind this machine's time" in next(stamps_of([0.1] * 9, [0.1] * 9, 7.5).problems())
    assert "7.5 s ahead of this machine's time" in next(stamps_of([0.1] * 9, [0.1] * 9, -7.5).problems())
    stamps = Stamps()
    stamps.add(0, EPOCH)
    assert "1 messages without a stamp" in next(stamps.problems())


def test_losses_are_the_numbers_that_never_came() -> None:
    losses = Losses()
    numbers = [*range(40, 90), *range(95, 120), *range(121, 130)]
    for number in numbers:
        losses.add(number, 1)
    assert losses.count == 6
    # The publisher begins again.
    for number in range(1, 20):
        losses.add(number, 1)
    assert losses.count == 6


@pytest.mark.parametrize("publishers", [1, 2])
def test_numbers_of_several_publishers_and_no_numbers_are_no_losses(publishers: int) -> None:
    losses = Losses()
    # The second is there before the graph tells of it.
    for number in range(100):
        losses.add(5000 + number, publishers)
        losses.add(1 + number, publishers)
        losses.add(None, publishers)
    assert losses.count == 0


def test_a_topic_says_what_is_wrong_with_it() -> None:
    def problems(quality: TopicQuality, now_s: float) -> str:
        return "; ".join(quality.problems(now_s))

    camera = TopicQuality("sensor_msgs/msg/Image", BEST_EFFORT, Publishers(("sensor_msgs/msg/Image",), (BEST_EFFORT,)))
    camera.since_s = 100.0
    assert problems(camera, 101.0) == ""
    said = problems(camera, 103.0)
    assert "no message although there are 1 publisher(s): best effort, volatile" in said
    assert "the subscription is best effort, volatile" in said
    assert "fastdds.xml" in said
    for index in range(20):
        camera.rate.tick(103.0 + 0.1 * index)
    assert problems(camera, 105.0) == ""
    assert "silent for 5 s" in problems(camera, 109.9)
    camera.publishers = Publishers(("sensor_msgs/msg/Image",), ())
    assert problems(camera, 105.0) == "its publishers are gone"
    camera.publishers = Publishers(("sensor_msgs/msg/Image", "std_msgs/msg/String"), (BEST_EFFORT, LATCHED))
    assert "published as std_msgs/msg/String too" in problems(camera, 105.0)
    assert "not all latch" in problems(camera, 105.0)
    # What is latched is said once.
    static = TopicQuality("tf2_msgs/msg/TFMessage", LATCHED, Publishers(("tf2_msgs/msg/TFMessage",), (LATCHED,)))
    static.rate.tick(100.0)
    assert problems(static, 1000.0) == ""


def test_a_subscription_asks_for_what_all_publishers_offer() -> None:
    assert Publishers(("t",), (RELIABLE, BEST_EFFORT)).least == TopicQos(reliable=False, depth=10)
    assert Publishers(("t",), (LATCHED, LATCHED)).least == TopicQos(transient_local=True, depth=10)
    # A player has to latch as many messages as there are publishers that each latched one.
    assert Publishers(("t",), (LATCHED,) * 25).least.depth == 25


def test_a_machine_clock_that_is_set_is_noticed_once() -> None:
    clock = MachineClock()
    wall, monotonic = EPOCH, 5 * SECOND
    assert clock.check(wall, monotonic) == 0.0
    assert clock.check(wall + SECOND // 4, monotonic + SECOND // 4) == 0.0
    assert clock.check(wall + 100 * SECOND, monotonic + SECOND) == pytest.approx(99.0, abs=0.3)
    assert clock.check(wall + 101 * SECOND, monotonic + 2 * SECOND) == 0.0
    assert clock.jumps == 1


@pytest.mark.parametrize("shift_ms", [0.0, 12.0, -40.0])
def test_offsets_compare_the_same_seconds_however_fast_the_sensors_are(shift_ms: float) -> None:
    offset = StampOffset()
    for index in range(900):
        offset.camera(EPOCH + index * SECOND // 30)
        if index % 3 == 0:
            offset.lidar(EPOCH + index * SECOND // 30 - int(shift_ms * 1e6))
    summary = offset.summary()
    nearest = (shift_ms + 50 / 3) % (100 / 3) - 50 / 3  # to the nearest image of a 30 Hz camera
    assert summary["camera_minus_lidar_median_ms"] == pytest.approx(nearest, abs=0.01)
    assert abs(summary["camera_minus_lidar_largest_ms"]) < 34.0


def test_clocks_that_are_hours_apart_are_not_hidden_by_comparing_the_same_seconds() -> None:
    offset = StampOffset()
    for index in range(50):
        offset.camera(EPOCH + index * SECOND // 10)
        offset.lidar(EPOCH + index * SECOND // 10 - 7200 * SECOND)
    assert offset.summary()["camera_minus_lidar_median_ms"] == pytest.approx(7.2e6, rel=0.01)
