"""A robot with two cameras: one mapper, one localizer, real processes over DDS."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import Trigger

from support.ros import Graph, wait_until  # sets what ROS reads when it is imported
from support.tiny import SHY, picture, save_tiny_student
from vpr_kd_ros.conversions import image_to_message, odometry_to_message
from vpr_kd_ros.errors import ConfigError
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.nodes.cameras import map_folders, parse_cameras
from vpr_kd_ros.nodes.newest import NewestWorker
from vpr_kd_ros.place_map import PlaceMap

START_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000
PLACES = 18
CAMERAS = ["front=/front/image_raw", "rear=/rear/image_raw"]
FIRST_PICTURE = {"front": 0, "rear": 100}


class Robot:
    """Two cameras, the rear one 50 ms behind, and odometry around their images."""

    def __init__(self, graph: Graph, node: str, frame: str) -> None:
        self.node, self.frame = node, frame
        self.cameras = {name: graph.publisher(Image, f"/{name}/image_raw") for name in FIRST_PICTURE}
        self.wheels = graph.publisher(Odometry, "/wheels")
        self.diagnostics = graph.collect(DiagnosticArray, "/diagnostics")

    def be_at(self, place: int, cameras: tuple[str, ...] = ("front", "rear")) -> dict[str, int]:
        """Publish what is seen at a place; the stamps of the images."""
        stamp = START_NS + place * SECOND_NS
        for shift in (-0.1, 0.1):
            pose = Pose.planar(5.0 * (place + shift), 0.0, 0.0)
            self.wheels.publish(odometry_to_message(pose, stamp + int(shift * SECOND_NS), self.frame, "base_link"))
        stamps = {name: stamp + (SECOND_NS // 20 if name == "rear" else 0) for name in cameras}
        for name, taken in stamps.items():
            self.cameras[name].publish(image_to_message(picture(FIRST_PICTURE[name] + place), taken, name))
        return stamps

    @property
    def status(self) -> tuple[str, dict[str, str]]:
        """Message and values that the node reported last."""
        arrays = [array for array in list(self.diagnostics) if array.status[0].hardware_id == self.node]
        if not arrays:
            return "", {}
        return arrays[-1].status[0].message, {value.key: value.value for value in arrays[-1].status[0].values}


def test_two_cameras_are_mapped_and_localised_and_one_may_fail(graph: Graph, tmp_path: Path) -> None:
    save_tiny_student(tmp_path / "student.pt2", calibration=SHY)
    common = {"student": tmp_path / "student.pt2", "map": tmp_path / "town", "cameras": CAMERAS}
    robot = Robot(graph, "/mapper", "map")
    mapper = graph.start("mapper", common | {"image_timeout_s": 60.0}, {"pose": "/wheels"})

    def mapped(places: int) -> bool:
        return robot.status[1].get("map_places") == str(places)

    graph.repeat_until(lambda: robot.be_at(0), lambda: mapped(2), "a place of each camera")
    for place in range(1, PLACES):
        graph.repeat_until(lambda p=place: robot.be_at(p), lambda p=place: mapped(2 * p + 2), f"place {place}")
    assert graph.call(Trigger, "/mapper/save", Trigger.Request()).success
    assert mapper.end(signal.SIGINT) == 0, mapper.output
    for camera in FIRST_PICTURE:
        place_map = PlaceMap.load(tmp_path / "town" / camera)
        assert len(place_map) == PLACES
        assert [place_map.stamp_ns(i) % SECOND_NS for i in place_map.ids.tolist()] == [
            SECOND_NS // 20 if camera == "rear" else 0
        ] * PLACES

    poses = graph.collect(PoseWithCovarianceStamped, "/localizer/pose")
    pictures = graph.collect(CompressedImage, "/localizer/match_image/compressed")
    robot = Robot(graph, "/localizer", "odom")
    node = graph.start(
        "localizer", common | {"mode": "belief", "min_probability": 0.8, "image_timeout_s": 1.0}, {"odom": "/wheels"}
    )

    def answered(place: int, cameras: tuple[str, ...] = ("front", "rear")) -> list[float]:
        """Announced positions along the street of the images of a place, the match images being there for all."""
        stamps: dict[str, int] = {}

        def publish() -> None:
            stamps.update(robot.be_at(place, cameras))

        def seen(messages: list[CompressedImage] | list[PoseWithCovarianceStamped]) -> dict[int, object]:
            found = {m.header.stamp.sec * SECOND_NS + m.header.stamp.nanosec: m for m in list(messages)}
            return {stamp: m for stamp, m in found.items() if stamp in stamps.values()}

        graph.repeat_until(publish, lambda: len(seen(pictures)) == len(cameras), f"answers at place {place}")
        return [m.pose.pose.position.x for m in seen(poses).values()]  # type: ignore[attr-defined]

    graph.repeat_until(lambda: robot.be_at(0), lambda: robot.status[1].get("odometry", "0") != "0", "odometry")
    both = [answered(place) for place in range(8)]
    assert len(both[-1]) == 2
    assert both[-1] == pytest.approx([35.0, 35.0], abs=2.5)
    assert {picture.header.frame_id for picture in list(pictures)} == {"front", "rear"}
    # The rear camera fails. The warning names its topic, and the front one alone goes on being accepted.
    stop = threading.Event()

    def place_after(place: int) -> int:
        assert answered(place, ("front",)) or place < 10, node.output
        return place + 1

    place = 8
    while "camera 'rear': no image on /rear/image_raw" not in robot.status[0]:
        assert place < PLACES, robot.status
        place = place_after(place)
        stop.wait(0.4)
    assert "camera 'front'" not in robot.status[0]
    node.wait_for_output("camera 'rear': no image on /rear/image_raw (best effort")
    assert answered(place, ("front",)) == pytest.approx([5.0 * place], abs=2.5)
    # It comes back, and is heard again.
    answered(place + 1)
    wait_until(lambda: robot.be_at(place + 1) and robot.status[0] == "localising", "no warning any more")
    assert float(robot.status[1]["rear_rate_hz"]) > 0
    assert node.end(signal.SIGTERM) == 0, node.output
    assert "Traceback" not in node.output


def test_the_maps_and_the_cameras_must_belong_together(graph: Graph, tmp_path: Path) -> None:
    metadata = save_tiny_student(tmp_path / "student.pt2", calibration=SHY)
    PlaceMap(metadata.descriptor_dim, metadata.fingerprint, "map").save(tmp_path / "town")
    node = graph.start("localizer", {"student": tmp_path / "student.pt2", "map": tmp_path / "town", "cameras": CAMERAS})
    node.wait_for_output("is the map of one camera, and 'cameras' names front, rear; move it to")
    assert node.end(signal.SIGINT) == 0


def test_cameras_are_read_and_checked(tmp_path: Path) -> None:
    assert parse_cameras([]) == {"": "image"}
    assert parse_cameras(("front=/a/image", "rear=b")) == {"front": "/a/image", "rear": "b"}
    for wrong in (["front"], ["=topic"], ["front="], ["../x=topic"], ["a b=topic"], ["front=a topic"]):
        with pytest.raises(ConfigError, match="wants NAME=TOPIC"):
            parse_cameras(wrong)
    for twice in (["a=x", "a=y"], ["a=x", "b=x"]):
        with pytest.raises(ConfigError, match="another camera has"):
            parse_cameras(twice)
    assert map_folders(tmp_path, [""]) == {"": tmp_path}
    assert map_folders(tmp_path, ["a", "b"]) == {"a": tmp_path / "a", "b": tmp_path / "b"}
    PlaceMap(4, "ab" * 32, "map").save(tmp_path / "rear")
    with pytest.raises(ConfigError, match="holds the maps of rear; give rear=TOPIC"):
        map_folders(tmp_path, [""])
    PlaceMap(4, "ab" * 32, "map").save(tmp_path / "rear" / "inner")
    assert map_folders(tmp_path / "rear", [""]) == {"": tmp_path / "rear"}


def test_a_worker_of_several_sources_serves_them_in_turn() -> None:
    """A camera that is faster than the student must not starve the other."""
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()
    seen: list[str] = []

    def process(item: str) -> None:
        seen.append(item)
        begun.set()
        go_on.wait(10.0)
        if len(seen) == 4:
            done.set()

    worker: NewestWorker[str] = NewestWorker(process)
    worker.put("front 0", "front")
    assert begun.wait(10.0)
    for item in ("front 1", "rear 1", "front 2", "left 1", "rear 2", "front 3"):
        worker.put(item, item.split()[0])
    go_on.set()
    assert done.wait(10.0)
    worker.stop()
    assert seen == ["front 0", "front 3", "rear 2", "left 1"]
    assert worker.replaced == 3


def test_the_rate_is_of_each_source() -> None:
    seen: list[str] = []
    three = threading.Event()

    def process(item: str) -> None:
        seen.append(item)
        if len(seen) == 3:
            three.set()

    worker: NewestWorker[str] = NewestWorker(process, max_rate_hz=0.001)
    worker.put("front", "front")
    worker.put("rear", "rear")
    worker.put("left", "left")
    assert three.wait(10.0)
    worker.put("front again", "front")
    assert not threading.Event().wait(0.1)
    worker.stop()
    assert sorted(seen) == ["front", "left", "rear"]
