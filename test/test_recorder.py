"""The recorder as it runs on a robot: a process of its own, under load, killed, on a full disk."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from mcap.reader import make_reader
from nav_msgs.msg import Odometry
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import Reader
from sensor_msgs.msg import Image, Imu
from std_msgs.msg import String

from support.ros import Graph, NodeProcess, wait_until  # sets what ROS reads when it is imported
from training.ingest.recover import recover
from vpr_kd_ros.conversions import image_to_message, odometry_to_message, pose_stamped_to_message
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.playback import Bag

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
CAMERA, ODOMETRY = "/camera/image_raw", "/odom"


class Robot:
    """Publishes camera images (noise, which no disk can compress) and odometry until the block ends."""

    def __init__(self, graph: Graph, hertz: float, height: int = 120, width: int = 160) -> None:
        self._camera = graph.publisher(Image, CAMERA, qos_profile_sensor_data)
        self._odometry = graph.publisher(Odometry, ODOMETRY, 10)
        self._period_s, self._size = 1.0 / hertz, (height, width, 3)
        self._x = 0.0
        self.moves = True
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.sent: dict[str, list[bytes]] = {CAMERA: [], ODOMETRY: []}

    def __enter__(self) -> Robot:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def count(self) -> int:
        return len(self.sent[ODOMETRY])

    def _run(self) -> None:
        rng = np.random.default_rng(0)
        while not self._stop.wait(self._period_s):
            stamp = time.time_ns()
            image = image_to_message(rng.integers(0, 256, self._size, dtype=np.uint8), stamp, "camera")
            self._x += 0.1 * self.moves
            pose = odometry_to_message(Pose.planar(self._x, 0.0, 0.0), stamp, "odom", "base_link")
            for publisher, message in ((self._camera, image), (self._odometry, pose)):
                data = serialize_message(message)
                self.sent[publisher.topic_name].append(data)
                publisher.publish(data)


def recorder(graph: Graph, output: Path, *topics: str, **parameters: Any) -> NodeProcess:
    values = {"output": output, "topics": topics or (CAMERA, ODOMETRY), "min_free_mb": 0, **parameters}
    node = graph.start("recorder", values)
    for topic in topics or (CAMERA, ODOMETRY):
        graph.wait_for_subscriber(topic)
    return node


def recorded(path: Path) -> dict[str, list[bytes]]:
    """By topic, what can be read."""
    found: dict[str, list[bytes]] = {CAMERA: [], ODOMETRY: []}
    for message in Bag(path).messages():
        found.setdefault(message.topic, []).append(message.data)
    return found


def is_run_of(part: list[bytes], whole: list[bytes]) -> bool:
    """Whether it is a piece of the whole without a hole, to within the padding of the transport."""
    # Discovery may lose the first ones.
    first = next((number for number, data in enumerate(whole) if part and part[0][: len(data)] == data), None)
    return first is not None and all(a[: len(b)] == b for a, b in zip(part, whole[first:], strict=False))


def status(diagnostics: list[DiagnosticArray]) -> tuple[str, dict[str, str]]:
    """Message and values that the recorder reported last."""
    found = [s for array in list(diagnostics) for s in array.status if s.hardware_id == "/recorder"]
    return (found[-1].message, {value.key: value.value for value in found[-1].values}) if found else ("", {})


def is_heard(diagnostics: list[DiagnosticArray], topic: str) -> bool:
    return int(status(diagnostics)[1].get(f"{topic} messages", 0)) > 5


# --- killed, and out of disk -----------------------------------------------------------------------------------------


def test_killed_under_load_only_the_last_file_is_damaged_and_what_it_holds_comes_back(
    graph: Graph, tmp_path: Path
) -> None:
    with Robot(graph, hertz=60.0, height=240, width=320) as robot:
        node = recorder(graph, tmp_path / "bag", max_file_s=1.5)

        def readable() -> int:
            try:
                return len(recorded(tmp_path / "bag")[ODOMETRY])
            except Exception:  # it is being written
                return 0

        # What the recorder has is on the disk within about a second, and stays when it is killed.
        seen = wait_until(lambda: (count := readable()) > 200 and count, "200 messages on the disk")
        node.end(signal.SIGKILL)
        killed_at = robot.count
    files = sorted((tmp_path / "bag").glob("*.mcap"), key=lambda file: int(file.stem.rsplit("_", 1)[1]))
    assert len(files) >= 3
    assert not (tmp_path / "bag" / "metadata.yaml").exists()
    for file in files[:-1]:
        with file.open("rb") as stream:
            reader = make_reader(stream, validate_crcs=True)
            assert sum(1 for _ in reader.iter_messages()) == reader.get_summary().statistics.message_count > 0
    found = recover(tmp_path / "bag", tmp_path / "recovered")
    assert found.lost_chunks == 0
    read = recorded(tmp_path / "recovered")
    for topic, data in read.items():
        assert is_run_of(data, robot.sent[topic]), topic
        assert len(data) == found.written[topic]
    assert len(read[ODOMETRY]) >= seen
    # At 60 Hz a second is 60 messages; a machine that is busy may be late with a chunk, but not by this much.
    heard = killed_at - robot.sent[ODOMETRY].index(read[ODOMETRY][0])
    print(f"killed after {heard} of each topic, recovered {dict(found.written)}")
    assert heard - len(read[ODOMETRY]) < 0.5 * heard


def test_the_watch_over_the_disk_ends_the_recording_while_it_can_be_ended(graph: Graph, small_disk: Path) -> None:
    with Robot(graph, hertz=10.0) as robot:
        node = recorder(graph, small_disk / "bag", min_free_mb=1, chunk_mb=1)
        assert node.wait() == 1
    assert "MB left on the disk, stopping ('min_free_mb')" in node.output
    assert "the disk is full in" in node.output
    with Reader(small_disk / "bag") as reader:
        count = reader.message_count
    read = recorded(small_disk / "bag")
    assert sum(map(len, read.values())) == count > 40
    assert all(is_run_of(data, robot.sent[topic]) for topic, data in read.items())
    assert "dropped" not in node.output


def test_a_disk_that_is_full_costs_nothing_that_was_written(graph: Graph, small_disk: Path) -> None:
    with Robot(graph, hertz=30.0) as robot:
        node = recorder(graph, small_disk / "bag", max_file_mb=1, chunk_mb=1)
        assert node.wait() == 1
    assert "No space left on device; what was written before is readable" in node.output
    read = recorded(small_disk / "bag")
    assert all(is_run_of(data, robot.sent[topic]) for topic, data in read.items())
    # Of 4 MB of images of 58 kB each, all but about a chunk.
    assert len(read[CAMERA]) >= 45
    assert f"{CAMERA}: {len(read[CAMERA])} messages" in node.output
    assert f"{ODOMETRY}: {len(read[ODOMETRY])} messages" in node.output


def test_it_does_not_begin_on_a_disk_that_is_nearly_full(graph: Graph, tmp_path: Path) -> None:
    node = graph.start("recorder", {"output": tmp_path / "a" / "b", "min_free_mb": 10**9})
    node.wait_for_output("recording stops at 1000000000 MB ('min_free_mb')")
    assert not (tmp_path / "a").exists()
    assert node.end(signal.SIGINT) == 0


# --- gate ------------------------------------------------------------------------------------------------------------


def test_it_records_while_the_robot_moves_and_what_is_latched_always(graph: Graph, tmp_path: Path) -> None:
    latched = graph.publisher(String, "/latched", LATCHED)
    gate = {"gate_distance_m": 0.5, "gate_standing_s": 1.0, "gate_buffer_s": 0.5}
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
    latched.publish(String(data="before"))
    with Robot(graph, 30.0, 24, 32) as robot:
        node = recorder(graph, tmp_path / "bag", CAMERA, ODOMETRY, "/latched", **gate)
        for topic in (CAMERA, ODOMETRY):
            wait_until(partial(is_heard, diagnostics, topic), f"{topic} to be heard")
        assert status(diagnostics)[0] == "recording"
        parked, robot.moves = robot.count, False
        node.wait_for_output("the robot stands: not recording until it moves by 0.5 m")
        latched.publish(String(data="while standing"))
        wait_until(lambda: status(diagnostics)[0] == "standing, not recording", "the state in the diagnostics")
        left_out = f"{CAMERA} left out while standing"
        wait_until(lambda: int(status(diagnostics)[1][left_out]) > 10, "images that are left out")
        drives_on, robot.moves = robot.count, True
        node.wait_for_output("the robot moves: recording")
        wait_until(lambda: robot.count > drives_on + 30, "driving on")
    time.sleep(0.3)
    assert node.end(signal.SIGINT) == 0, node.output
    read = recorded(tmp_path / "bag")
    assert len(read["/latched"]) == 2
    for topic in (CAMERA, ODOMETRY):
        numbers = {data: number for number, data in enumerate(robot.sent[topic])}
        size = len(robot.sent[topic][0])
        kept = [numbers[data[:size]] for data in read[topic]]
        assert kept == sorted(set(kept))
        # All of both drives, and a hole where it stood: it ends before half a metre is driven.
        assert kept[-1] == len(robot.sent[topic]) - 1
        (hole,) = [(a, b) for a, b in itertools.pairwise(kept) if b != a + 1]
        assert kept[0] < parked < hole[0] < hole[1] <= drives_on + 4
        assert f"{topic}: {len(kept)} messages, {hole[1] - hole[0] - 1} left out while standing" in node.output


def test_a_gate_without_odometry_records_everything_and_says_so(graph: Graph, tmp_path: Path) -> None:
    graph.publisher(Imu, "/imu")
    with Robot(graph, 30.0, 24, 32) as robot:
        gate = {"gate_distance_m": 0.5, "gate_standing_s": 0.2}
        silent = recorder(graph, tmp_path / "silent", CAMERA, **gate, gate_topic="/nothing")
        wrong = graph.start(
            "recorder",
            {"output": tmp_path / "wrong", "topics": (CAMERA,), "min_free_mb": 0, **gate, "gate_topic": "/imu"},
        )
        silent.wait_for_output("nobody publishes /nothing ('gate_topic'); everything is recorded")
        wrong.wait_for_output("/imu: as 'gate_topic' it should be one of nav_msgs/msg/Odometry")
        count = robot.count
        wait_until(lambda: robot.count > count + 30, "a drive")
    for node, name in ((silent, "silent"), (wrong, "wrong")):
        assert node.end(signal.SIGINT) == 0
        assert is_run_of(recorded(tmp_path / name)[CAMERA], robot.sent[CAMERA])
        assert len(recorded(tmp_path / name)[CAMERA]) > 30


# --- what is wrong with topics ---------------------------------------------------------------------------------------


def test_it_names_topics_that_are_silent_and_stamps_that_jump_and_hears_publishers_that_offer_less(
    graph: Graph, tmp_path: Path
) -> None:
    graph.publisher(Image, CAMERA, qos_profile_sensor_data)
    poses = graph.publisher(PoseStamped, "/pose", 10)
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
    node = recorder(graph, tmp_path / "bag", CAMERA, "/pose")

    def publish(publisher: Any, offset_s: float) -> None:
        stamp = time.time_ns() + int(offset_s * 1e9)
        publisher.publish(pose_stamped_to_message(Pose.planar(0.0, 0.0, 0.0), stamp, "map"))

    def messages() -> int:
        return int(status(diagnostics)[1].get("/pose messages", 0))

    graph.repeat_until(lambda: publish(poses, 0.0), messages, "the first pose")
    for offset_s in (0.0, -3600.0, -3600.0, 0.0):
        publish(poses, offset_s)
    jumps = wait_until(
        lambda: (text := status(diagnostics)[1]["/pose stamp_jumps"]) != "0 back, 0 forward" and text, "the jumps"
    )
    wait_until(lambda: status(diagnostics)[1]["/pose stamp_jumps"] == "1 back, 1 forward", f"both jumps, not {jumps}")
    said, values = status(diagnostics)
    assert "/pose: its stamps jumped back 1 times, by up to 3.6e+03 s" in said
    assert values["/pose publishers"] == "1 publisher(s): reliable, volatile; subscribed reliable, volatile"

    # A reliable subscription does not hear a publisher of best effort.
    less = graph.publisher(PoseStamped, "/pose", qos_profile_sensor_data)
    node.wait_for_output(
        "/pose is listened to as best effort, volatile from now on, for all of "
        "2 publisher(s): best effort, volatile; reliable, volatile"
    )
    before = messages()
    graph.repeat_until(lambda: publish(less, 0.0), lambda: messages() > before, "a pose of best effort")

    silence = f"{CAMERA}: no message although there are 1 publisher(s): best effort, volatile"
    node.wait_for_output(silence)
    assert silence in status(diagnostics)[0]
    assert node.end(signal.SIGINT) == 0


def test_messages_that_the_transport_loses_are_counted(graph: Graph, tmp_path: Path) -> None:
    with Robot(graph, 100.0, 24, 32) as robot:
        node = recorder(graph, tmp_path / "bag", CAMERA)
        wait_until(lambda: node.output.count("recording /camera") and robot.count > 50, "the recorder to listen")
        time.sleep(1.0)
        # A hundred images wait for it; the rest is gone when it goes on.
        node.process.send_signal(signal.SIGSTOP)
        count = robot.count
        wait_until(lambda: robot.count > count + 180, "more than it keeps")
        node.process.send_signal(signal.SIGCONT)
        node.wait_for_output("messages lost before the recorder (best effort, volatile)")
    time.sleep(0.3)
    assert node.end(signal.SIGINT) == 0
    size = len(robot.sent[CAMERA][0])
    numbers = {data: number for number, data in enumerate(robot.sent[CAMERA])}
    kept = [numbers[data[:size]] for data in recorded(tmp_path / "bag")[CAMERA]]
    lost = kept[-1] - kept[0] + 1 - len(kept)
    assert lost > 50
    assert f"{CAMERA}: {len(kept)} messages, {lost} lost before the recorder" in node.output
    information = yaml.safe_load((tmp_path / "bag" / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert information["custom_data"] == {f"lost {CAMERA}": str(lost)}
