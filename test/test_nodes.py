"""The nodes as they run on a robot: processes of their own, messages over DDS, signals."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from nav_msgs.msg import Odometry
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from rclpy.serialization import deserialize_message, serialize_message
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, PointCloud2
from std_srvs.srv import SetBool, Trigger
from visualization_msgs.msg import MarkerArray

from support.ros import Graph, NodeProcess, ros_graph, wait_until  # sets what ROS reads when it is imported
from support.tiny import picture, save_tiny_student
from vpr_kd_ros.conversions import cloud_to_message, image_to_message, odometry_to_message
from vpr_kd_ros.decode import image_from_message
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.place_map import PlaceMap
from vpr_kd_ros.playback import Bag
from vpr_kd_ros.recording import BagWriter
from vpr_kd_ros.student import Student

START_NS = 1_700_000_000_000_000_000
STEP_NS = 100_000_000
PLACES = 8
SIMILAR = 0.999


def pose_at(index: float) -> Pose:
    """Along a line, 5 m per picture, turning slowly."""
    return Pose.planar(5.0 * index, 2.0, 0.1 * index)


def image_at(index: int, stamp_ns: int | None = None) -> Image:
    """The picture of a place; padded rows for every other one, as many cameras send them."""
    message = image_to_message(picture(index), START_NS + index * STEP_NS if stamp_ns is None else stamp_ns, "camera")
    if index % 2:
        rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
        message.data = np.pad(rows, ((0, 0), (0, 6))).tobytes()
        message.step += 6
    return message


@pytest.fixture
def drive_bag(tmp_path: Path) -> Path:
    """A bag of one second: camera, LiDAR and a latched topic."""
    path = tmp_path / "drive"
    with BagWriter(path) as writer:
        for index in range(10):
            stamp = START_NS + index * STEP_NS
            cloud = cloud_to_message(np.full((50, 3), index, np.float32), None, stamp, "base_link")
            writer.write("/camera/image_raw", "sensor_msgs/msg/Image", stamp, serialize_message(image_at(index)))
            writer.write("/lidar/points", "sensor_msgs/msg/PointCloud2", stamp + 1, serialize_message(cloud))
    return path


@pytest.fixture(scope="module")
def town_map(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map of the pictures 0 to 7."""
    student = Student.load(tiny_student)
    place_map = PlaceMap(student.metadata.descriptor_dim, student.metadata.fingerprint, "map")
    for index in range(PLACES):
        descriptor = student.describe([picture(index)])[0]
        place_map.add(descriptor, pose_at(index), START_NS + index, "drive", picture(index))
    path = tmp_path_factory.mktemp("maps") / "town"
    place_map.save(path)
    return path


class Publishing:
    """Publishes in the background until the block ends."""

    def __init__(self, tick: Callable[[int], None], period_s: float) -> None:
        self._tick, self._period_s = tick, period_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.count = 0

    def __enter__(self) -> Publishing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._period_s):
            self._tick(self.count)
            self.count += 1


def newest_values(diagnostics: list[DiagnosticArray], node: str) -> dict[str, str]:
    """The values a node reported last; empty before it reported any."""
    arrays = [array for array in list(diagnostics) if array.status[0].hardware_id == node]
    return {value.key: value.value for value in arrays[-1].status[0].values} if arrays else {}


def be_heard(graph: Graph, diagnostics: list[DiagnosticArray], node: str, said: dict[str, Callable[[], None]]) -> None:
    """Publish until a node counts it: what DDS has not matched yet on both sides is lost."""
    for key, publish in said.items():
        graph.repeat_until(publish, lambda k=key: int(newest_values(diagnostics, node).get(k, 0)), f"{node}: {key}")


# --- recorder --------------------------------------------------------------------------------------------------------


def robot(graph: Graph) -> tuple[Publishing, dict[str, list[Any]]]:
    """Camera (best effort), LiDAR and odometry at 20 Hz; and what was sent, by topic."""
    camera = graph.publisher(Image, "/camera/image_raw", qos_profile_sensor_data)
    lidar = graph.publisher(PointCloud2, "/lidar/points", 10)
    odometry = graph.publisher(Odometry, "/odom", 10)
    sent: dict[str, list[Any]] = {"/camera/image_raw": [], "/lidar/points": [], "/odom": []}

    def tick(index: int) -> None:
        stamp = START_NS + index * STEP_NS
        image = image_to_message(np.full((480, 640, 3), index % 256, np.uint8), stamp, "camera")
        cloud = cloud_to_message(np.full((1000, 3), index, np.float32), None, stamp - 4_000_000, "base_link")
        odom = odometry_to_message(pose_at(index), stamp, "odom", "base_link")
        for publisher, message in ((camera, image), (lidar, cloud), (odometry, odom)):
            sent[publisher.topic_name].append(message)
            publisher.publish(message)

    return Publishing(tick, 0.05), sent


def recorder(graph: Graph, output: Path, *topics: str) -> NodeProcess:
    return graph.start("recorder", {"output": output, "topics": topics, "min_free_mb": 0})


def test_recorder_writes_every_message_as_it_was_sent(graph: Graph, tmp_path: Path) -> None:
    publishing, sent = robot(graph)
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
    node = recorder(graph, tmp_path / "bag", "camera/image_raw", "lidar/points", "odom", "imu")
    for topic in sent:
        graph.wait_for_subscriber(topic)
    before = time.time_ns()
    with publishing:
        wait_until(lambda: publishing.count >= 40, "two seconds of driving")
        node.wait_for_output("nobody publishes /imu")
        node.wait_for_output("topics that are published: /camera/image_raw, /lidar/points, /odom")
    time.sleep(0.3)
    assert node.end(signal.SIGINT) == 0, node.output
    assert "parameter 'topics'" in node.output
    bag = Bag(tmp_path / "bag")
    assert bag.damage == {}
    recorded: dict[str, list[Any]] = {topic: [] for topic in sent}
    for message in bag.messages():
        recorded[message.topic].append(deserialize_message(message.data, type(sent[message.topic][0])))
        assert before < message.stamp_ns < time.time_ns()
    assert recorded == sent
    offsets = [
        float(value.value)
        for array in diagnostics
        for value in array.status[0].values
        if value.key == "camera_minus_lidar_median_ms"
    ]
    assert offsets[-1] == pytest.approx(4.0)


def test_killed_recorder_loses_little_and_the_rest_plays(graph: Graph, tmp_path: Path) -> None:
    publishing, sent = robot(graph)
    node = recorder(graph, tmp_path / "bag", "camera/image_raw", "lidar/points", "odom")
    for topic in sent:
        graph.wait_for_subscriber(topic)
    with publishing:
        wait_until(lambda: publishing.count >= 50, "a drive")
        node.end(signal.SIGKILL)
    bag = Bag(tmp_path / "bag")
    odometry = [deserialize_message(message.data, Odometry) for message in bag.messages() if message.topic == "/odom"]
    assert bag.damage
    # At 20 Hz and with a chunk each second, of 50 messages at least 25 are on the disk.
    assert len(odometry) >= 25
    assert odometry == sent["/odom"][: len(odometry)]
    replay = graph.start("replay", {"bag": tmp_path / "bag", "rate": 20.0})
    assert replay.wait() == 0
    assert "is cut off" in replay.output
    assert f"{sum(topic.count for topic in bag.topics.values())} messages played" in replay.output


def test_recorder_refuses_a_folder_that_exists_and_stays(graph: Graph, tmp_path: Path) -> None:
    (tmp_path / "bag").mkdir()
    node = recorder(graph, tmp_path / "bag", "odom")
    node.wait_for_output("exists already; name another folder")
    state = graph.call(GetState, "/recorder/get_state", GetState.Request())
    assert state.current_state.label == "unconfigured"
    assert node.end(signal.SIGTERM) == 0


# --- replay ----------------------------------------------------------------------------------------------------------


def test_replay_publishes_the_same_bytes_and_the_clock(graph: Graph, drive_bag: Path) -> None:
    images = graph.collect(Image, "/elsewhere", 10, raw=True)
    clouds = graph.collect(PointCloud2, "/lidar/points", 10, raw=True)
    clock = graph.collect(Clock, "/clock", 100)
    node = graph.start(
        "replay",
        {
            "bag": drive_bag,
            "start_offset_s": 0.45,
            "topics": ["/camera/image_raw:=/elsewhere", "/lidar/points"],
            "wait_for_subscribers": ["/elsewhere", "/lidar/points"],
        },
    )
    assert node.wait() == 0, node.output
    kept = [message for message in Bag(drive_bag).messages() if message.stamp_ns >= START_NS + 450_000_000]
    for received, topic in ((images, "/camera/image_raw"), (clouds, "/lidar/points")):
        sent = [message.data for message in kept if message.topic == topic]
        # The transport fills up to four bytes.
        assert [data[: len(wanted)] for data, wanted in zip(received, sent, strict=True)] == sent
    times = [message.clock.sec * 10**9 + message.clock.nanosec for message in clock]
    assert times == sorted(times)
    assert len(times) > 20
    assert times[-1] == START_NS + 9 * STEP_NS + 1


def test_a_replayed_drive_can_be_recorded_on_its_own_time(graph: Graph, drive_bag: Path, tmp_path: Path) -> None:
    topics = ["/camera/image_raw", "/lidar/points"]
    node = graph.start(
        "recorder", {"output": tmp_path / "again", "topics": topics, "use_sim_time": True, "min_free_mb": 0}
    )
    # At twice the speed: on the machine's clock the messages would be 50 ms apart, and of another decade.
    replay = graph.start("replay", {"bag": drive_bag, "rate": 2.0, "wait_for_subscribers": topics})
    assert replay.wait() == 0, replay.output
    time.sleep(0.3)
    assert node.end(signal.SIGINT) == 0, node.output
    again = Bag(tmp_path / "again")
    stamps = [message.stamp_ns for message in again.messages() if message.topic == "/camera/image_raw"]
    played = [message.stamp_ns for message in Bag(drive_bag).messages() if message.topic == "/camera/image_raw"]
    # Those that came before the first tick of the clock have no time.
    assert 8 <= len(stamps) <= len(played)
    late_s = (np.array(stamps) - np.array(played[-len(stamps) :])) * 1e-9
    assert np.all(np.abs(late_s) < 0.5)


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({}, "parameter 'bag'"),
        ({"bag": "nowhere"}, "nowhere: there is no such bag"),
        ({"topics": ["/camera/image_rwa"]}, "did you mean '/camera/image_raw'?"),
        ({"wait_for_subscribers": ["/image"]}, "'/image' is not played"),
    ],
)
def test_replay_ends_with_an_error_that_names_the_cause(
    graph: Graph, drive_bag: Path, parameters: dict[str, Any], text: str
) -> None:
    node = graph.start("replay", {"bag": drive_bag, **parameters} if parameters else {})
    assert node.wait() == 1
    assert text in node.output


# --- mapper ----------------------------------------------------------------------------------------------------------


def test_mapper_saves_the_places_where_the_camera_was(graph: Graph, tiny_student: Path, tmp_path: Path) -> None:
    camera = graph.publisher(Image, "/camera/image_raw")
    odometry = graph.publisher(Odometry, "/odom")
    node = graph.start(
        "mapper",
        {"student": tiny_student, "map": tmp_path / "map", "session": "monday", "max_pose_wait_s": 5},
        {"image": "/camera/image_raw", "pose": "/odom"},
    )
    markers = graph.collect(MarkerArray, "/mapper/keyframes")
    # A pose in another frame, and an image from before there were poses: heard, and dropped.
    wrong = odometry_to_message(Pose.planar(999.0, 0.0, 0.0), START_NS + 2 * STEP_NS, "somewhere", "base_link")
    early = image_at(0, START_NS - 10 * STEP_NS)
    said = {"poses": lambda: odometry.publish(wrong), "images": lambda: camera.publish(early)}
    be_heard(graph, graph.collect(DiagnosticArray, "/diagnostics"), "/mapper", said)
    # Poses lie between the images; the last image has no pose after it.
    half = STEP_NS // 2
    for index in range(PLACES):
        odometry.publish(
            odometry_to_message(pose_at(index - 0.5), START_NS + index * STEP_NS - half, "map", "base_link")
        )
        camera.publish(image_at(index))
        time.sleep(0.1)
    pausing = graph.call(SetBool, "/mapper/pause", SetBool.Request(data=True))
    assert pausing.success
    wait_until(lambda: markers and len(markers[-1].markers[0].points) == PLACES - 1, "markers of the keyframes")
    saved = graph.call(Trigger, "/mapper/save", Trigger.Request())
    assert saved.success, saved.message
    assert len(PlaceMap.load(tmp_path / "map")) == PLACES - 1
    assert node.end(signal.SIGINT) == 0, node.output
    place_map = PlaceMap.load(tmp_path / "map", Student.load(tiny_student).metadata.fingerprint)
    expected = [pose_at(index).position for index in range(PLACES - 1)]
    np.testing.assert_allclose(place_map.positions, expected, atol=1e-9)
    np.testing.assert_allclose([place_map.pose(i).yaw for i in place_map.ids], 0.1 * np.arange(PLACES - 1), atol=1e-9)
    assert "'somewhere'" in node.output
    assert "set 'map_frame'" in node.output


def test_mapper_appends_and_saves_when_it_is_terminated(
    graph: Graph, tiny_student: Path, town_map: Path, tmp_path: Path
) -> None:
    place_map = PlaceMap.load(town_map)
    place_map.save(tmp_path / "map")
    camera, odometry = graph.publisher(Image, "/image"), graph.publisher(Odometry, "/pose")
    node = graph.start("mapper", {"student": tiny_student, "map": tmp_path / "map", "append": True})
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
    pose = odometry_to_message(Pose.planar(500.0, 0.0, 0.0), START_NS + 40 * STEP_NS, "map", "base_link")
    said = {"poses": lambda: odometry.publish(pose), "keyframes": lambda: camera.publish(image_at(40))}
    be_heard(graph, diagnostics, "/mapper", said)
    assert node.end(signal.SIGTERM) == 0, node.output
    appended = PlaceMap.load(tmp_path / "map")
    assert len(appended) == PLACES + 1
    np.testing.assert_allclose(appended.positions[-1], [500.0, 0.0, 0.0])


# --- localizer -------------------------------------------------------------------------------------------------------


class LocalizerBench:
    """A localizer that runs, and what it says."""

    def __init__(self, graph: Graph, student: Path, place_map: Path) -> None:
        self.graph = graph
        self.camera = graph.publisher(Image, "/camera/image_raw")
        self.poses = graph.collect(PoseWithCovarianceStamped, "/localizer/pose")
        self.clouds = graph.collect(PointCloud2, "/localizer/candidates")
        self.pictures = graph.collect(CompressedImage, "/localizer/match_image/compressed")
        self.markers = graph.collect(MarkerArray, "/localizer/markers")
        self.diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
        self.node = graph.start(
            "localizer",
            {"student": student, "map": place_map, "min_similarity": SIMILAR, "candidates": 3, "candidate": 4},
            {"image": "/camera/image_raw"},
        )
        heard = (self.poses, self.clouds, self.pictures, self.markers, self.diagnostics)
        hello = image_at(0, START_NS + 99 * STEP_NS)
        graph.repeat_until(lambda: self.camera.publish(hello), lambda: all(heard), "everything of the localizer")

    def show(self, message: Image) -> PointCloud2:
        """Publish an image and return the candidates that answer it."""
        stamp = message.header.stamp

        def answer() -> PointCloud2 | None:
            return next((cloud for cloud in list(self.clouds) if cloud.header.stamp == stamp), None)

        return self.graph.repeat_until(lambda: self.camera.publish(message), answer, "candidates of the image")

    def values(self) -> dict[str, str]:
        """The newest diagnostics."""
        return newest_values(self.diagnostics, "/localizer")


@pytest.fixture(scope="module")
def bench(tiny_student: Path, town_map: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalizerBench]:
    with ros_graph(tmp_path_factory.mktemp("localizer")) as graph:
        yield LocalizerBench(graph, tiny_student, town_map)


def columns(cloud: PointCloud2) -> np.ndarray[Any, Any]:
    """The fields of a cloud, read as the message describes them."""
    types = {7: "<f4", 5: "<i4"}
    layout = np.dtype(
        {
            "names": [field.name for field in cloud.fields],
            "formats": [types[field.datatype] for field in cloud.fields],
            "offsets": [field.offset for field in cloud.fields],
            "itemsize": cloud.point_step,
        }
    )
    return np.frombuffer(cloud.data, layout)


def test_localizer_finds_the_place_of_each_picture(bench: LocalizerBench) -> None:
    for index in range(PLACES):
        stamp = START_NS + (100 + index) * STEP_NS
        cloud = bench.show(image_at(index, stamp))
        rows = columns(cloud)
        assert cloud.header.frame_id == "map"
        # Three were asked for; twice as many come where those three are all within the cluster radius of 10 m.
        one_place = (abs(rows["x"][:3] - rows["x"][0]) <= 10.0).all()
        assert len(rows) == (6 if one_place else 3)
        assert rows["place_id"][0] == index
        assert rows["similarity"][0] > SIMILAR
        assert rows["x"][0] == pytest.approx(5.0 * index)
        assert rows["yaw"][0] == pytest.approx(0.1 * index, abs=1e-6)
        pose = wait_until(lambda s=cloud.header.stamp: [p for p in bench.poses if p.header.stamp == s], "a pose")[0]
        assert pose.header.frame_id == "map"
        assert np.linalg.eigvalsh(np.reshape(pose.pose.covariance, (6, 6))).min() > 0


def test_localizer_gives_no_pose_for_a_place_it_does_not_know(bench: LocalizerBench) -> None:
    cloud = bench.show(image_at(1000, START_NS + 200 * STEP_NS))
    assert columns(cloud)["similarity"][0] < SIMILAR
    # A pose that should not be would come before the one of the next image.
    known = bench.show(image_at(3, START_NS + 201 * STEP_NS))
    wait_until(lambda: [pose for pose in bench.poses if pose.header.stamp == known.header.stamp], "a pose")
    assert not [pose for pose in bench.poses if pose.header.stamp == cloud.header.stamp]


def test_localizer_shows_its_match_to_those_who_look(bench: LocalizerBench) -> None:
    bench.show(image_at(2, START_NS + 210 * STEP_NS))
    jpeg = wait_until(lambda: bench.pictures, "a picture")[-1]
    height, width = image_from_message(jpeg).shape[:2]
    assert width == 2 * height * 90 // 60
    places = [marker for array in bench.markers for marker in array.markers if marker.ns == "places"]
    assert len(places[0].points) == PLACES


def test_localizer_drops_poisoned_images_and_goes_on(bench: LocalizerBench) -> None:
    before = int(wait_until(bench.values, "diagnostics").get("dropped_bad", 0))
    short = image_at(2, START_NS + 301 * STEP_NS)
    short.data = short.data[:-7]
    unknown = image_at(2, START_NS + 302 * STEP_NS)
    unknown.encoding = "rbg8"
    empty = Image()
    for count, message in enumerate((short, unknown, empty), start=1):
        bench.camera.publish(message)
        wait_until(lambda n=count: int(bench.values().get("dropped_bad", 0)) == before + n, f"counted drop {count}")
    assert columns(bench.show(image_at(5, START_NS + 303 * STEP_NS)))["place_id"][0] == 5
    assert "image dropped: data holds" in bench.node.output


def test_localizer_survives_transitions_that_its_state_does_not_allow(bench: LocalizerBench) -> None:
    for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_CLEANUP, 250):
        request = ChangeState.Request(transition=Transition(id=transition))
        assert not bench.graph.call(ChangeState, "/localizer/change_state", request).success
    assert "refused: the node is active" in bench.node.output
    for label in ("deactivate", "cleanup", "configure", "activate"):
        request = ChangeState.Request(transition=Transition(label=label))
        assert bench.graph.call(ChangeState, "/localizer/change_state", request).success, bench.node.output
    assert columns(bench.show(image_at(6, START_NS + 400 * STEP_NS)))["place_id"][0] == 6


def test_localizer_keeps_its_map_when_the_new_one_is_damaged(bench: LocalizerBench, town_map: Path) -> None:
    text = (town_map / "map.json").read_text()
    try:
        (town_map / "map.json").write_text(text[: len(text) // 2])
        answer = bench.graph.call(Trigger, "/localizer/reload_map", Trigger.Request())
        assert not answer.success
        assert str(town_map) in answer.message
        assert columns(bench.show(image_at(1, START_NS + 500 * STEP_NS)))["place_id"][0] == 1
    finally:
        (town_map / "map.json").write_text(text)
    assert bench.graph.call(Trigger, "/localizer/reload_map", Trigger.Request()).success
    assert columns(bench.show(image_at(4, START_NS + 501 * STEP_NS)))["place_id"][0] == 4


def test_localizer_says_that_no_image_comes_and_where_some_are(bench: LocalizerBench) -> None:
    def warning() -> str:
        statuses = [array.status[0] for array in bench.diagnostics if array.status[0].name.startswith("localizer")]
        return statuses[-1].message if statuses and statuses[-1].level != b"\0" else ""

    wait_until(lambda: "no image on /camera/image_raw (best effort" in warning(), "the warning")
    assert "1 publishers" in warning()


def test_localizer_tells_of_parameters_it_does_not_have_and_ends_cleanly(bench: LocalizerBench) -> None:
    # The last of the tests that share the process.
    assert "'candidate' is not one of this node's (did you mean 'candidates'?)" in bench.node.output
    assert bench.node.end(signal.SIGINT) == 0, bench.node.output
    assert "Traceback" not in bench.node.output


def test_localizer_refuses_the_map_of_another_student_and_can_be_mended(
    graph: Graph, tiny_student: Path, town_map: Path, tmp_path: Path
) -> None:
    save_tiny_student(tmp_path / "other.pt2", seed=7)
    camera = graph.publisher(CompressedImage, "/image/compressed")
    clouds = graph.collect(PointCloud2, "/localizer/candidates")
    node = graph.start("localizer", {"student": tmp_path / "other.pt2", "map": town_map, "min_similarity": SIMILAR})
    node.wait_for_output("was made with the student")
    state = graph.call(GetState, "/localizer/get_state", GetState.Request())
    assert state.current_state.label == "unconfigured"
    assert "Traceback" not in node.output
    values = {"student": str(tiny_student), "image_transport": "compressed"}
    request = SetParameters.Request(
        parameters=[Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
    )
    assert all(result.successful for result in graph.call(SetParameters, "/localizer/set_parameters", request).results)
    for label in ("configure", "activate"):
        change = ChangeState.Request(transition=Transition(label=label))
        assert graph.call(ChangeState, "/localizer/change_state", change).success, node.output
    _, png = cv2.imencode(".png", np.ascontiguousarray(picture(6)[:, :, ::-1]))
    image = CompressedImage(header=image_at(6).header, format="png", data=png.tobytes())
    answers = graph.repeat_until(lambda: camera.publish(image), lambda: clouds, "candidates")
    assert columns(answers[0])["place_id"][0] == 6
    assert node.end(signal.SIGTERM) == 0
