"""The parts of the nodes that need no ROS: pose buffer, newest-frame worker, statistics, stamp offsets."""

from __future__ import annotations

import math
import threading
import time

import numpy as np
import pytest

from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.nodes.newest import FRESH, NewestWorker, start_of
from vpr_kd_ros.nodes.pose_buffer import Missing, PoseBuffer
from vpr_kd_ros.nodes.statistics import Drops, Rate, Window
from vpr_kd_ros.nodes.sync import StampOffset
from vpr_kd_ros.stamps import JUMP_NS

SECOND = 1_000_000_000
EPOCH = 1_700_000_000 * SECOND


def test_poses_are_interpolated_whatever_order_they_come_in() -> None:
    # All of them within the time by which messages overtake each other.
    step = JUMP_NS // 20
    buffer = PoseBuffer(seconds=100.0, max_gap_s=1.5)
    for index in np.random.default_rng(0).permutation(20).tolist():
        assert buffer.add(EPOCH + index * step, Pose.planar(3.0 * index, -index, 0.1 * index))
    assert len(buffer) == 20
    for share in (0.0, 0.25, 0.999):
        pose = buffer.at(EPOCH + 7 * step + int(share * step))
        assert isinstance(pose, Pose)
        np.testing.assert_allclose(pose.position, [3.0 * (7 + share), -(7 + share), 0.0], atol=1e-6)
        assert pose.yaw == pytest.approx(0.1 * (7 + share), abs=1e-6)


def test_a_pose_is_never_extrapolated_or_made_up_over_a_gap() -> None:
    buffer = PoseBuffer(seconds=100.0, max_gap_s=0.5)
    assert buffer.at(EPOCH) is Missing.NOT_YET
    for seconds in (10.0, 10.4, 11.0):
        buffer.add(EPOCH + int(seconds * SECOND), Pose.planar(seconds, 0.0, 0.0))
    assert buffer.at(EPOCH + int(11.1 * SECOND)) is Missing.NOT_YET
    assert buffer.at(EPOCH + int(9.9 * SECOND)) is Missing.TOO_OLD
    assert buffer.at(EPOCH + int(10.7 * SECOND)) is Missing.GAP
    assert isinstance(buffer.at(EPOCH + int(10.2 * SECOND)), Pose)
    # A stamp that a pose has needs no neighbour.
    assert isinstance(buffer.at(EPOCH + 11 * SECOND), Pose)


def test_old_poses_are_forgotten_and_a_jump_back_starts_again() -> None:
    buffer = PoseBuffer(seconds=2.0)
    for index in range(100):
        assert buffer.add(EPOCH + index * SECOND // 10, Pose.planar(index, 0.0, 0.0))
    assert len(buffer) == 21
    assert buffer.at(EPOCH) is Missing.TOO_OLD
    assert not buffer.add(EPOCH, Pose.planar(5.0, 0.0, 0.0))
    assert len(buffer) == 1
    pose = buffer.at(EPOCH)
    assert isinstance(pose, Pose)
    assert pose.position[0] == 5.0


@pytest.mark.parametrize(("back_s", "jumps"), [(0.09, False), (0.11, True), (2.013, True), (9.9, True), (11.0, True)])
def test_a_clock_set_back_by_little_starts_again_too(back_s: float, jumps: bool) -> None:
    buffer = PoseBuffer()
    for index in range(200):
        buffer.add(EPOCH + index * SECOND // 10, Pose.planar(index, 0.0, 0.0))
    stamp = EPOCH + 199 * SECOND // 10 - int(back_s * SECOND)
    assert buffer.add(stamp, Pose.planar(200.0, 0.0, 0.0)) is not jumps
    assert (len(buffer) == 1) is jumps
    pose = buffer.at(stamp)
    assert isinstance(pose, Pose)
    assert pose.position[0] == 200.0
    # Between the new pose and an old one lies no pose of the robot.
    assert isinstance(buffer.at(stamp + SECOND // 100), Pose) is not jumps


def test_of_two_poses_with_one_stamp_the_last_counts() -> None:
    buffer = PoseBuffer()
    buffer.add(EPOCH, Pose.planar(1.0, 0.0, 0.0))
    buffer.add(EPOCH, Pose.planar(2.0, 0.0, 0.0))
    pose = buffer.at(EPOCH)
    assert isinstance(pose, Pose)
    assert pose.position[0] == 2.0


def test_a_busy_worker_skips_to_the_newest_item() -> None:
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()
    seen: list[int] = []

    def process(item: int) -> None:
        seen.append(item)
        begun.set()
        go_on.wait(10.0)
        if item == 9:
            done.set()

    worker: NewestWorker[int] = NewestWorker(process)
    worker.put(0)
    assert begun.wait(10.0)
    for item in range(1, 10):
        worker.put(item)
    go_on.set()
    assert done.wait(10.0)
    worker.stop()
    assert seen == [0, 9]
    assert worker.replaced == 8


def test_a_slowed_worker_takes_the_newest_item_when_it_is_due() -> None:
    seen: list[int] = []
    second = threading.Event()

    def process(item: int) -> None:
        seen.append(item)
        if len(seen) == 2:
            second.set()

    worker: NewestWorker[int] = NewestWorker(process, max_rate_hz=2.0)
    worker.put(0)
    while not seen:
        second.wait(0.001)
    for item in range(1, 50):
        worker.put(item)
    assert second.wait(10.0)
    worker.stop()
    assert seen == [0, 49]


def answers(run_s: float, period_s: float, patient: bool) -> tuple[np.ndarray, np.ndarray]:
    """Of a worker that is busy for ``run_s`` with each frame: when its answers come, and how old their frames are."""
    arrivals = period_s * np.arange(4000)
    ends, ages = [], []
    now, taken = 0.0, -1
    while taken < len(arrivals) - 10:
        newest = max(int(np.searchsorted(arrivals, now, side="right")) - 1, taken + 1)
        now = max(now, arrivals[newest])
        start = start_of(now, arrivals[newest], period_s) if patient else now
        if start > now:
            newest += 1
            now = arrivals[newest]
        now += run_s
        ends.append(now)
        ages.append(now - arrivals[newest])
        taken = newest
    return np.array(ends), np.array(ages)


@pytest.mark.parametrize("run", [0.4, 0.95, 1.05, 1.3, 1.55, 1.7, 2.2, 3.6])
def test_leaving_old_frames_makes_what_is_known_newer(run: float) -> None:
    """In periods: how old what is known is, over all moments, and at worst as it comes."""

    def staleness(ends: np.ndarray, ages: np.ndarray) -> float:
        gaps = np.diff(ends)
        return float(((ages[:-1] + gaps / 2) * gaps).sum() / gaps.sum())

    plain, patient = answers(run, 1.0, patient=False), answers(run, 1.0, patient=True)
    assert patient[1].max() <= run + FRESH + 1e-6
    assert staleness(*patient) <= staleness(*plain) + 1e-9
    assert len(patient[0]) >= len(plain[0]) * 3 / 4
    if run < 1:
        np.testing.assert_allclose(patient[1], run)


class Busy:
    """A worker that is busy with its first item, ``(0, "front")``, until it is told to go on."""

    def __init__(self, max_rate_hz: float = 0.0) -> None:
        self.seen: list[int] = []
        self._begun, self._go_on = threading.Event(), threading.Event()
        self.worker: NewestWorker[int] = NewestWorker(self._process, max_rate_hz)
        self.worker.put(0, "front")
        assert self._begun.wait(10.0)

    def _process(self, item: int) -> None:
        self.seen.append(item)
        self._begun.set()
        assert self._go_on.wait(10.0)

    def has_waited(self, item: int, source: str, seconds: float, period_s: float) -> None:
        """Offer an item as if that long ago, of a source of that period."""
        self.worker.put(item, source)
        arrivals, arrived = Rate(), time.monotonic() - seconds
        arrivals.tick(arrived - period_s)
        arrivals.tick(arrived)
        self.worker._arrivals[source] = arrivals

    def go_on(self, number: int) -> None:
        """Wait until ``number`` items were begun."""
        self._go_on.set()
        end = time.monotonic() + 10.0
        while len(self.seen) < number and time.monotonic() < end:
            time.sleep(0.001)


def test_an_item_that_is_old_at_its_turn_is_left_for_the_next() -> None:
    busy = Busy()
    busy.has_waited(1, "front", 60.0, period_s=100.0)
    busy.go_on(1)
    time.sleep(0.1)
    assert busy.seen == [0]
    busy.worker.put(2, "front")
    busy.go_on(2)
    busy.worker.stop()
    assert busy.seen == [0, 2]
    assert busy.worker.replaced == 1


@pytest.mark.parametrize("waited", [40.0, 149.9, 160.0])
def test_an_item_that_is_fresh_or_the_last_is_taken(waited: float) -> None:
    busy = Busy()
    busy.has_waited(1, "front", waited, period_s=100.0)
    busy.go_on(2)
    busy.worker.stop()
    assert busy.seen == [0, 1]


def test_of_several_sources_none_is_held() -> None:
    busy = Busy()
    busy.has_waited(1, "front", 60.0, period_s=100.0)
    busy.has_waited(2, "rear", 60.0, period_s=100.0)
    busy.go_on(3)
    busy.worker.stop()
    assert busy.seen == [0, 1, 2]


def test_an_item_that_waited_for_the_limit_on_the_rate_is_taken() -> None:
    busy = Busy(max_rate_hz=10.0)
    busy.has_waited(1, "front", 60.0, period_s=100.0)
    busy.go_on(2)
    busy.worker.stop()
    assert busy.seen == [0, 1]


def test_stopping_does_not_wait_for_the_period() -> None:
    worker: NewestWorker[int] = NewestWorker(lambda _: None, max_rate_hz=0.001)
    worker.put(0)
    worker.put(1)
    stopper = threading.Thread(target=worker.stop, daemon=True)
    stopper.start()
    stopper.join(10.0)
    assert not stopper.is_alive()


def test_rates_and_gaps() -> None:
    rate = Rate(window=10)
    assert (rate.hertz, rate.silent_s(5.0)) == (0.0, math.inf)
    for index in range(50):
        rate.tick(index * 0.1)
    assert rate.hertz == pytest.approx(10.0)
    assert rate.gaps == 0
    rate.tick(4.9 + 1.5)
    assert (rate.gaps, rate.count) == (1, 51)
    assert rate.longest_gap_s == pytest.approx(1.5)
    assert rate.silent_s(7.0) == pytest.approx(0.6)


def test_percentiles_are_of_the_last_values() -> None:
    window = Window(size=100)
    assert math.isnan(window.percentile(50))
    for value in range(1000):
        window.add(float(value))
    assert window.percentile(0) == 900.0
    assert window.percentile(50) == 949.5


def test_drops_stay_few_and_complete_whatever_the_reasons() -> None:
    drops = Drops()
    for index in range(1000):
        drops.add(f"value {index} is wrong\nand more lines")
        drops.add("always the same")
    assert drops.total == 2000
    assert drops.most_common() == "1000 dropped: always the same"
    assert len(drops._reasons) <= Drops.MAX_REASONS + 1


def test_drops_of_long_ago_are_counted_and_over() -> None:
    drops = Drops()
    assert drops.recent(0.0) == ""
    for second in range(5):
        drops.add("a burst at the start", float(second))
    drops.add("one later", 8.0)
    assert drops.recent(9.0) == "5 dropped in the last 10 s: a burst at the start"
    assert drops.recent(14.5) == "1 dropped in the last 10 s: one later"
    assert drops.recent(18.5) == ""
    assert (drops.total, drops.most_common()) == (6, "5 dropped: a burst at the start")
    # A stream of them does not fill the memory.
    for _ in range(3 * Drops.MAX_RECENT):
        drops.add("again", 20.0)
    assert drops.recent(20.0) == f"{Drops.MAX_RECENT} dropped in the last 10 s: again"
    drops.add("now")
    assert drops.recent() == "1 dropped in the last 10 s: now"


def test_offsets_are_to_the_nearest_camera_stamp() -> None:
    random = np.random.default_rng(3)
    camera = np.cumsum(random.integers(30, 40, 60)) * 1_000_000 + EPOCH
    lidar = np.cumsum(random.integers(90, 110, 15)) * 1_000_000 + EPOCH
    offset = StampOffset()
    for stamp in camera.tolist():
        offset.camera(stamp)
    assert offset.summary() == {}
    for stamp in lidar.tolist():
        offset.lidar(stamp)
    expected = [min(((int(c) - int(stamp)) / 1e6 for c in camera), key=abs) for stamp in lidar]
    np.testing.assert_allclose(np.abs(offset.offsets_ms()), np.abs(expected))
    assert offset.summary()["camera_minus_lidar_largest_ms"] == pytest.approx(
        max(offset.offsets_ms().tolist(), key=abs)
    )
