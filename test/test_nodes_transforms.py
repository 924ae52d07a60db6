"""Transforms and parameters of the running nodes: map -> odom, poses from tf and fixes, changes that are refused."""

from __future__ import annotations

import importlib.util
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped, TransformStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from nav_msgs.msg import Odometry
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, NavSatFix, PointCloud2
from std_srvs.srv import Trigger

from support.ros import Graph, wait_until  # sets what ROS reads when it is imported
from support.town import SECOND_NS, SIMILAR, START_NS, image_of, pose_at, save_town
from vpr_kd_ros.conversions import header, odometry_to_message
from vpr_kd_ros.decode import pose_from_message
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.nodes.pose_buffer import Missing
from vpr_kd_ros.nodes.transforms import AHEAD_S, MapFromOdomBroadcaster, TransformPoses
from vpr_kd_ros.place_map import PlaceMap

FAKE_TF2 = Path(__file__).parent / "support" / "fake_tf2"


def matrix(pose: Any) -> np.ndarray[Any, Any]:
    """A planar (3, 3) matrix of x, y and yaw."""
    x, y, yaw = pose
    return np.array([[math.cos(yaw), -math.sin(yaw), x], [math.sin(yaw), math.cos(yaw), y], [0, 0, 1]])


def set_parameter(graph: Graph, node: str, name: str, value: Any) -> Any:
    request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
    return graph.call(SetParameters, f"/{node}/set_parameters", request).results[0]


class Robot:
    """A localizer that publishes map -> odom, its camera and its wheels."""

    def __init__(self, graph: Graph, student: Path, place_map: Path) -> None:
        self.graph = graph
        self.camera, self.wheels = graph.publisher(Image, "/image"), graph.publisher(Odometry, "/odom")
        self.transforms = graph.collect(TransformStamped, "/fake_tf", 100)
        self.clouds = graph.collect(PointCloud2, "/localizer/candidates")
        self.poses = graph.collect(PoseWithCovarianceStamped, "/localizer/pose")
        self.diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
        parameters = {"student": student, "map": place_map, "min_similarity": SIMILAR, "publish_tf": True}
        self.node = graph.start("localizer", parameters, python_path=[FAKE_TF2])

    def move(self, seconds: float, pose: tuple[float, float, float]) -> None:
        """Two messages of the odometry, a tenth of a second apart, around a moment."""
        for shift in (-SECOND_NS // 20, SECOND_NS // 20):
            stamp = START_NS + int(seconds * SECOND_NS) + shift
            self.wheels.publish(odometry_to_message(Pose.planar(*pose), stamp, "odom", "base_link"))

    def be_at(self, place: int, seconds: float, odometry: tuple[float, float, float] | None) -> None:
        """Publish the picture of a place, with odometry around it."""
        if odometry is not None:
            self.move(seconds, odometry)
        self.camera.publish(image_of(place, seconds))

    def show(self, place: int, seconds: float, odometry: tuple[float, float, float] | None) -> None:
        """Be at a place until that is answered."""
        stamp = image_of(place, seconds).header.stamp
        self.graph.repeat_until(
            lambda: self.be_at(place, seconds, odometry),
            lambda: [cloud for cloud in list(self.clouds) if cloud.header.stamp == stamp],
            "candidates",
        )

    def new_transform(self, place: int, seconds: float, odometry: tuple[float, float, float]) -> TransformStamped:
        """Be at a place until a transform comes that is another than the last; the first such."""
        known = list(self.transforms[-1:])

        def changed() -> list[TransformStamped]:
            return [t for t in list(self.transforms) if not known or t.transform != known[0].transform]

        return self.graph.repeat_until(lambda: self.be_at(place, seconds, odometry), changed, "another transform")[0]

    def now_ns(self) -> int:
        return int(self.graph.node.get_clock().now().nanoseconds)

    def sent_after(self, moment_ns: int) -> list[TransformStamped]:
        """The transforms that were sent after a moment: all are stamped that much ahead."""
        return [t for t in list(self.transforms) if stamp_of(t) > moment_ns + int(AHEAD_S * SECOND_NS)]

    def status(self) -> tuple[bytes, str, dict[str, str]]:
        """Level, message and values of the newest diagnostics."""
        statuses = [array.status[0] for array in list(self.diagnostics) if array.status[0].hardware_id == "/localizer"]
        if not statuses:
            return b"", "", {}
        return statuses[-1].level, statuses[-1].message, {v.key: v.value for v in statuses[-1].values}


def stamp_of(transform: TransformStamped) -> int:
    return int(transform.header.stamp.sec * SECOND_NS + transform.header.stamp.nanosec)


def test_map_to_odom_is_published_when_match_and_odometry_agree_and_goes_on(
    graph: Graph, tiny_student: Path, tmp_path: Path
) -> None:
    save_town(tmp_path / "map", tiny_student)
    robot = Robot(graph, tiny_student, tmp_path / "map")
    robot.show(3, 1.0, None)
    robot.show(1000, 2.0, (1.0, 2.0, 0.5))
    time.sleep(0.5)
    assert not robot.transforms
    before = robot.now_ns()
    found = robot.new_transform(3, 3.0, (1.0, 2.0, 0.5))
    assert (found.header.frame_id, found.child_frame_id) == ("map", "odom")
    # Ahead of now, whatever the image's stamp: now must lie between two transforms.
    assert stamp_of(found) >= before + int(AHEAD_S * SECOND_NS)
    taken = image_of(3, 3.0).header.stamp
    same = wait_until(lambda: [pose for pose in list(robot.poses) if pose.header.stamp == taken], "its pose")[0]
    place = pose_from_message(same)
    expected = matrix((*place.position[:2], place.yaw)) @ np.linalg.inv(matrix((1.0, 2.0, 0.5)))
    at, turn = found.transform.translation, found.transform.rotation
    np.testing.assert_allclose(matrix((at.x, at.y, 2.0 * math.atan2(turn.z, turn.w))), expected, atol=1e-6)
    np.testing.assert_allclose(place.position[:2], pose_at(3).position[:2], atol=5.0)
    # It goes on without a match, and is the same: the frames have not moved because nothing was recognised.
    robot.show(1000, 4.0, (1.0, 2.0, 0.5))
    moment = robot.now_ns()
    wait_until(lambda: len(robot.sent_after(moment)) >= 5, "transforms without a match")
    assert all(transform.transform == found.transform for transform in list(robot.transforms))
    # The next match replaces it.
    robot.new_transform(5, 5.0, (2.0, 2.0, 0.5))
    stamps = [stamp_of(transform) for transform in list(robot.transforms)]
    assert (np.diff(stamps) > 0).all()
    assert robot.node.end(signal.SIGTERM) == 0, robot.node.output
    assert "Traceback" not in robot.node.output


def test_map_to_odom_ends_when_it_may_not_hold_any_more(graph: Graph, tiny_student: Path, tmp_path: Path) -> None:
    save_town(tmp_path / "map", tiny_student)
    robot = Robot(graph, tiny_student, tmp_path / "map")

    def call(service: str) -> Callable[[], object]:
        return lambda: graph.call(Trigger, f"/localizer/{service}", Trigger.Request())

    def change(label: str) -> None:
        request = ChangeState.Request(transition=Transition(label=label))
        assert graph.call(ChangeState, "/localizer/change_state", request).success, robot.node.output

    def odometry_jumps() -> None:
        restarts = int(robot.status()[2]["odometry_restarts"])
        # The time goes on, and the place is another: its driver has been started again.
        graph.repeat_until(
            lambda: robot.move(30.2, (500.0, 0.0, 0.0)),
            lambda: int(robot.status()[2]["odometry_restarts"]) > restarts,
            "a restart",
        )

    def live_again() -> None:
        change("deactivate")
        change("activate")

    for seconds, end in enumerate((call("reset"), call("reload_map"), odometry_jumps, live_again), start=1):
        moment = robot.now_ns()
        graph.repeat_until(
            lambda s=seconds: robot.be_at(3, 10.0 * s, (1.0, 2.0, 0.5)),
            lambda m=moment: robot.sent_after(m),
            "a transform",
        )
        end()
        moment = robot.now_ns()
        time.sleep(0.5)
        assert not robot.sent_after(moment)
    assert robot.node.end(signal.SIGTERM) == 0, robot.node.output
    assert "Traceback" not in robot.node.output
    assert "odom: it has started over" in robot.node.output


def test_diagnostics_tell_of_missing_odometry_and_forget_old_drops(
    graph: Graph, tiny_student: Path, tmp_path: Path
) -> None:
    save_town(tmp_path / "map", tiny_student)
    robot = Robot(graph, tiny_student, tmp_path / "map")
    broken = image_of(3, 0.0)
    broken.encoding = "rbg8"

    def told(text: str, odometry: bool, message: Image) -> tuple[bytes, str, dict[str, str]]:
        def publish() -> None:
            if odometry:
                robot.move(1.0, (1.0, 2.0, 0.5))
            robot.camera.publish(message)

        return graph.repeat_until(publish, lambda: text in robot.status()[1] and robot.status(), text)

    missing = "no odometry on /odom (nav_msgs/msg/Odometry, 1 publishers), which parameter 'publish_tf' needs; remap"
    level, _, _ = told(missing, odometry=False, message=image_of(3, 1.0))
    assert level == b"\1"
    level, _, values = told("dropped in the last 10 s: ", odometry=True, message=broken)
    assert level == b"\1"
    assert int(values["dropped_bad"]) > 0
    level, _, values = told("localising", odometry=True, message=image_of(3, 1.0))
    assert level == b"\0"
    assert int(values["dropped_bad"]) > 0
    assert "dropped: " in values["dropped_most"]
    told(missing, odometry=False, message=image_of(3, 1.0))


@pytest.fixture
def fake_tf2(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stand-in for tf2_ros, in this process."""
    monkeypatch.syspath_prepend(FAKE_TF2)
    monkeypatch.delitem(sys.modules, "tf2_ros", raising=False)
    yield
    sys.modules.pop("tf2_ros", None)


def transform_at(seconds: int) -> TransformStamped:
    message = TransformStamped(header=header(seconds * SECOND_NS, "map"), child_frame_id="robot")
    message.transform.translation.x = float(seconds)
    return message


class Transforms:
    """The poses of tf in this process, and those who publish transforms and the time."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._tf, self._clock = graph.publisher(TransformStamped, "/fake_tf"), graph.publisher(Clock, "/clock")
        self.poses = TransformPoses(graph.node, "map", "robot")

    def come(self, seconds: int) -> None:
        """Publish a transform until its pose is there."""
        found = self._graph.repeat_until(
            lambda: self._tf.publish(transform_at(seconds)), lambda: self.pose(seconds), f"the pose at {seconds} s"
        )
        assert found.position[0] == seconds

    def pose(self, seconds: int) -> Pose | None:
        pose = self.poses.at(seconds * SECOND_NS)
        return pose if isinstance(pose, Pose) else None

    def set_clock(self, seconds: int) -> None:
        """Publish simulated time until it is taken over."""
        message = Clock()
        message.clock.sec = seconds
        clock = self._graph.node.get_clock()
        self._graph.repeat_until(
            lambda: self._clock.publish(message), lambda: clock.now().nanoseconds == seconds * SECOND_NS, "the time"
        )


@pytest.mark.usefixtures("fake_tf2")
def test_poses_of_tf_come_again_after_time_jumped_back(graph: Graph) -> None:
    transforms = Transforms(graph)
    assert graph.node.set_parameters([Parameter("use_sim_time", value=True)])[0].successful
    transforms.set_clock(100)
    transforms.come(100)
    transforms.set_clock(101)
    assert transforms.pose(100) is not None
    # The simulation is reset.
    transforms.set_clock(20)
    transforms.come(20)
    assert transforms.poses.at(100 * SECOND_NS) is Missing.NO_TRANSFORM
    # A bag is played without the time; who sees the images says that it starts again.
    transforms.come(30)
    transforms.poses.clear()
    transforms.come(5)
    # Closed, it heeds the clock no more.
    transforms.poses.close()
    transforms.set_clock(2)
    assert transforms.pose(5) is not None


@pytest.mark.usefixtures("fake_tf2")
def test_an_image_without_a_stamp_gets_no_pose_of_tf(graph: Graph, capfd: pytest.CaptureFixture[str]) -> None:
    transforms = Transforms(graph)
    transforms.come(100)
    assert transforms.poses.at(0) is Missing.TOO_OLD
    wait_until(lambda: "its header carries no stamp" in "".join(capfd.readouterr()), "the warning")
    transforms.poses.close()


@pytest.mark.usefixtures("fake_tf2")
def test_map_to_odom_is_not_sent_twice_for_one_moment(graph: Graph) -> None:
    """Simulated time that stands: tf2 would warn of each transform that comes again."""
    assert graph.node.set_parameters([Parameter("use_sim_time", value=True)])[0].successful
    transforms = graph.collect(TransformStamped, "/fake_tf", 100)
    broadcaster = MapFromOdomBroadcaster(graph.node)
    wait_until(lambda: graph.node.count_subscribers("/fake_tf"), "a subscriber")
    broadcaster.send()
    broadcaster.keep(Pose.planar(1.0, 2.0, 0.0), "map", "odom")
    for _ in range(5):
        broadcaster.send()
    wait_until(lambda: transforms, "the transform")
    time.sleep(0.3)
    assert [(t.header.frame_id, t.child_frame_id, stamp_of(t)) for t in transforms] == [
        ("map", "odom", int(AHEAD_S * SECOND_NS))
    ]


@pytest.mark.skipif(importlib.util.find_spec("tf2_ros") is not None, reason="tf2_ros is installed here")
def test_without_tf2_the_parameters_that_need_it_are_refused(graph: Graph, tiny_student: Path, tmp_path: Path) -> None:
    save_town(tmp_path / "map", tiny_student)
    node = graph.start(
        "localizer",
        {"student": tiny_student, "map": tmp_path / "map", "min_similarity": SIMILAR, "publish_tf": True},
    )
    node.wait_for_output("parameter 'publish_tf': it needs tf2_ros")
    mapper = graph.start("mapper", {"student": tiny_student, "map": tmp_path / "new", "pose_source": "tf"})
    mapper.wait_for_output("parameter 'pose_source': it needs tf2_ros")
    for process in (node, mapper):
        assert "apt install ros-$ROS_DISTRO-tf2-ros" in process.output
        assert "Traceback" not in process.output
        assert process.end(signal.SIGINT) == 0


def test_mapper_takes_the_poses_of_tf_at_the_stamps_of_the_images(
    graph: Graph, tiny_student: Path, tmp_path: Path
) -> None:
    camera, tf = graph.publisher(Image, "/image"), graph.publisher(TransformStamped, "/fake_tf", 100)
    node = graph.start(
        "mapper",
        {"student": tiny_student, "map": tmp_path / "map", "pose_source": "tf", "base_frame": "robot"},
        python_path=[FAKE_TF2],
    )
    for topic in ("/image", "/fake_tf"):
        graph.wait_for_subscriber(topic)

    def drive() -> None:
        for index in range(4):
            message = TransformStamped(header=header(START_NS + index * SECOND_NS, "map"), child_frame_id="robot")
            pose = pose_at(index)
            message.transform.translation.x, message.transform.translation.y = (float(v) for v in pose.position[:2])
            rotation = message.transform.rotation
            rotation.x, rotation.y, rotation.z, rotation.w = (float(v) for v in pose.quaternion)
            tf.publish(message)
            camera.publish(image_of(index, index))

    graph.repeat_until(drive, lambda: _saved(graph) >= 4, "four places")
    assert node.end(signal.SIGINT) == 0, node.output
    place_map = PlaceMap.load(tmp_path / "map")
    for position in place_map.positions:
        assert min(np.linalg.norm(position - pose_at(i).position) for i in range(4)) < 1e-6


def _saved(graph: Graph) -> int:
    """Places in the mapper's map, after saving it."""
    answer = graph.call(Trigger, "/mapper/save", Trigger.Request())
    return int(answer.message.rsplit(": ", 1)[1].split()[0]) if answer.success else 0


def test_mapper_takes_satellite_fixes_as_metres_and_heads_where_it_drives(
    graph: Graph, tiny_student: Path, tmp_path: Path
) -> None:
    camera, receiver = graph.publisher(Image, "/image"), graph.publisher(NavSatFix, "/pose")
    latitude, longitude = 48.0, 11.0
    parameters = {"student": tiny_student, "map": tmp_path / "map", "pose_source": "fix", "max_pose_gap_s": 2.0}
    node = graph.start("mapper", parameters)
    for topic in ("/image", "/pose"):
        graph.wait_for_subscriber(topic)

    def drive() -> None:
        # North, 1e-4 degrees (11.1 m) a second.
        for index in range(5):
            stamp = START_NS + index * SECOND_NS
            fix = NavSatFix(header=header(stamp, "gps"), latitude=latitude + 1e-4 * index, longitude=longitude)
            fix.status.status = 0
            receiver.publish(fix)
            time.sleep(0.02)
            camera.publish(image_of(index, index))

    graph.repeat_until(drive, lambda: _saved(graph) >= 3, "three places")
    assert node.end(signal.SIGINT) == 0, node.output
    assert "nav_origin (48.0" in node.output
    assert "a fix tells no heading until" in node.output
    place_map = PlaceMap.load(tmp_path / "map")
    # One degree of latitude at 48 degrees is 111.2 km.
    steps = place_map.positions[:, 1] / 11.12
    np.testing.assert_allclose(steps, np.round(steps), atol=0.01)
    assert np.ptp(steps) > 1.9
    np.testing.assert_allclose(place_map.positions[:, 0], 0.0, atol=1e-6)
    appending = graph.start("mapper", {**parameters, "append": True})
    appending.wait_for_output("parameter 'nav_origin': it is not given")


def test_only_one_mapper_writes_a_map_and_it_may_be_read_meanwhile(
    graph: Graph, tiny_student: Path, tmp_path: Path
) -> None:
    save_town(tmp_path / "map", tiny_student)
    parameters = {"student": tiny_student, "map": tmp_path / "map", "append": True}
    first = graph.start("mapper", parameters)
    first.wait_for_output("places in")
    second = graph.start("mapper", parameters, {"__node": "another"})
    second.wait_for_output(f"process {first.process.pid} is writing this map")
    assert len(PlaceMap.load(tmp_path / "map")) == 8
    first.end(signal.SIGKILL)
    third = graph.start("mapper", parameters, {"__node": "third"})
    third.wait_for_output("places in")
    assert third.end() == 0


def test_parameters_are_checked_when_they_are_set_and_refusals_say_why(
    graph: Graph, tiny_student: Path, tmp_path: Path
) -> None:
    save_town(tmp_path / "map", tiny_student)
    camera = graph.publisher(Image, "/image")
    clouds = graph.collect(PointCloud2, "/localizer/candidates")
    node = graph.start("localizer", {"student": tiny_student, "map": tmp_path / "map", "min_similarity": SIMILAR})
    graph.repeat_until(lambda: camera.publish(image_of(1, 1.0)), lambda: clouds, "candidates")
    for name, value, reason in (
        ("max_rate_hz", -1.0, "out of range"),
        ("max_rate_hz", "often", "wants a number"),
        ("image_transport", "raw", "read when the node is configured, and the node is active"),
        ("mode", "blief", "did you mean 'belief'?"),
        ("min_similarity", -1.0, "carries no calibration"),
    ):
        result = set_parameter(graph, "localizer", name, value)
        assert not result.successful
        assert reason in result.reason
    assert set_parameter(graph, "localizer", "max_rate_hz", 2.0).successful
    time.sleep(0.6)
    before, began = len(clouds), time.monotonic()
    for index in range(60):
        camera.publish(image_of(index % 8, 2.0 + index))
        time.sleep(0.05)
    # At 20 images a second for three seconds, every tenth.
    assert 2 <= len(clouds) - before <= 2.0 * (time.monotonic() - began) + 2
    assert node.end() == 0, node.output
