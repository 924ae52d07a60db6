"""A mapper that cannot save, that saves while it maps, that meets a killed save's map or a clock that is set back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from nav_msgs.msg import Odometry
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from support.ros import Graph, NodeProcess, wait_until  # sets what ROS reads when it is imported
from support.tiny import picture
from support.town import SECOND_NS, START_NS, image_of, pose_at, save_town
from vpr_kd_ros.conversions import image_to_message, odometry_to_message
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.nodes.map_saver import MapSaver
from vpr_kd_ros.nodes.mapper import MAX_WAITING, MapperNode
from vpr_kd_ros.place_map import PlaceMap

SUCCESS = TransitionCallbackReturn.SUCCESS
SPEED_MPS = 5.0

StartMapper = Callable[..., MapperNode]


def obstruct(place_map: Path) -> Path:
    """Put a folder where the map is to be saved that a save does not touch, and return the file in it."""
    place_map.mkdir()
    (place_map / "thesis.tex").write_text("years of work")
    return place_map / "thesis.tex"


def mapper_with_keyframes(graph: Graph, student: Path, place_map: Path) -> NodeProcess:
    """A mapper that has mapped something, and saves when it is asked and when it ends."""
    camera, odometry = graph.publisher(Image, "/image"), graph.publisher(Odometry, "/pose")
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
    node = graph.start("mapper", {"student": student, "map": place_map, "save_every": 0})

    def drive() -> None:
        for index in range(3):
            stamp = START_NS + index * SECOND_NS
            odometry.publish(odometry_to_message(pose_at(index), stamp, "map", "base_link"))
            camera.publish(image_of(index, index))

    def unsaved() -> bool:
        values = {value.key: value.value for array in list(diagnostics)[-1:] for value in array.status[0].values}
        return int(values.get("unsaved", 0)) >= 3

    graph.repeat_until(drive, unsaved, "keyframes")
    return node


def change(graph: Graph, transition: int) -> bool:
    request = ChangeState.Request(transition=Transition(id=transition))
    return bool(graph.call(ChangeState, "/mapper/change_state", request).success)


def state(graph: Graph) -> str:
    return str(graph.call(GetState, "/mapper/get_state", GetState.Request()).current_state.label)


def save(graph: Graph) -> Trigger.Response:
    return graph.call(Trigger, "/mapper/save", Trigger.Request())


# --- processes -------------------------------------------------------------------------------------------------------


def test_a_map_that_cannot_be_saved_stays_in_memory_until_it_can(
    graph: Graph, tiny_student: Path, tmp_path: Path
) -> None:
    path = tmp_path / "map"
    node = mapper_with_keyframes(graph, tiny_student, path)
    foreign = obstruct(path)
    assert change(graph, Transition.TRANSITION_DEACTIVATE)
    assert not change(graph, Transition.TRANSITION_CLEANUP)
    assert state(graph) == "inactive"
    node.wait_for_output("keyframes stay in memory: mend that and call ~/save")
    assert "exists and is not a place map" in save(graph).message
    assert foreign.read_text() == "years of work"
    foreign.unlink()
    assert save(graph).success
    assert len(PlaceMap.load(path)) >= 3
    assert change(graph, Transition.TRANSITION_CLEANUP)
    assert state(graph) == "unconfigured"
    assert node.end(signal.SIGINT) == 0, node.output
    assert "Traceback" not in node.output


@pytest.mark.parametrize("end", ["signal", "transition"])
def test_a_mapper_that_cannot_save_at_its_end_saves_elsewhere_and_says_where(
    graph: Graph, tiny_student: Path, tmp_path: Path, end: str
) -> None:
    path = tmp_path / "map"
    node = mapper_with_keyframes(graph, tiny_student, path)
    foreign = obstruct(path)
    if end == "transition":
        change(graph, Transition.TRANSITION_ACTIVE_SHUTDOWN)
        node.wait_for_output("map.rescued")
        assert node.end(signal.SIGTERM) == 0, node.output
    else:
        assert node.end(signal.SIGTERM) == 1, node.output
    assert f"{path}: could not be saved; the map is in {path}.rescued, copy it from there" in node.output
    assert len(PlaceMap.load(tmp_path / "map.rescued")) >= 3
    assert foreign.read_text() == "years of work"
    assert "Traceback" not in node.output


def test_a_mapper_finds_the_map_that_a_killed_save_left_aside(graph: Graph, tiny_student: Path, tmp_path: Path) -> None:
    save_town(tmp_path / "map", tiny_student)
    (tmp_path / "map").rename(tmp_path / ".map.old")
    parameters = {"student": tiny_student, "map": tmp_path / "map"}
    refusing = graph.start("mapper", parameters)
    refusing.wait_for_output(f"parameter 'map': {tmp_path}/map exists; set 'append' to add to it")
    assert refusing.end() == 0
    appending = graph.start("mapper", {**parameters, "append": True})
    appending.wait_for_output("8 places in")
    assert save(graph).success
    assert appending.end() == 0
    assert len(PlaceMap.load(tmp_path / "map")) == 8
    assert not (tmp_path / ".map.old").exists()


def test_a_mapper_says_at_once_that_its_map_cannot_be_replaced(
    graph: Graph, tiny_student: Path, small_disk: Path
) -> None:
    node = graph.start("mapper", {"student": tiny_student, "map": small_disk})
    node.wait_for_output(
        f"cannot configure: {small_disk}: is a mount point, which a save cannot replace; name a folder"
    )
    assert node.end() == 0


# --- in this process -------------------------------------------------------------------------------------------------


@pytest.fixture
def start_mapper(tiny_student: Path, tmp_path: Path) -> Iterator[StartMapper]:
    """Starts a mapper, with parameters, in this process; nobody spins it: the test hands it its messages."""
    started: list[MapperNode] = []

    def start(**parameters: object) -> MapperNode:
        arguments = {"student": tiny_student, "map": tmp_path / "map", **parameters}
        rclpy.init(
            args=["--ros-args", *(part for item in arguments.items() for part in ("-p", "{}:={}".format(*item)))]
        )
        started.append(MapperNode())
        assert started[-1].start()
        return started[-1]

    try:
        yield start
    finally:
        for node in started:
            node.finish()
            node.destroy_node()
        rclpy.try_shutdown()


def be_at(node: MapperNode, stamp_ns: int, pose: Pose, image: int) -> None:
    """Hand a mapper a pose and an image of its stamp."""
    node._on_pose(odometry_to_message(pose, stamp_ns, "map", "base_link"))
    node._on_image(node._views[""], image_to_message(picture(image), stamp_ns, "camera"))


def test_images_go_on_while_the_map_is_saved_and_no_keyframe_is_lost(
    start_mapper: StartMapper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    at_once: list[int] = []
    running = 0
    save_map = PlaceMap.save

    def slow_save(place_map: PlaceMap, path: Path) -> None:
        nonlocal running
        running += 1
        at_once.append(running)
        begun.set()
        assert go_on.wait(60.0)
        save_map(place_map, path)
        running -= 1

    monkeypatch.setattr(PlaceMap, "save", slow_save)
    node = start_mapper(save_every=2)
    for index in range(6):
        be_at(node, START_NS + index * SECOND_NS, pose_at(index), index)
    assert begun.wait(60.0)
    wait_until(lambda: node._keyframes == 6, "keyframes while the map is saved")
    # Of images that wait for a pose only so many are kept, and the reason names the save.
    for index in range(MAX_WAITING + 2):
        node._on_image(node._views[""], image_to_message(picture(0), START_NS + (7 + index) * SECOND_NS, "camera"))
    assert node._drops.most_common() == "2 dropped: image: too many waited while the map was saved"
    threading.Timer(0.2, go_on.set).start()
    assert node.trigger_deactivate() == SUCCESS
    assert node.trigger_cleanup() == SUCCESS
    assert len(PlaceMap.load(tmp_path / "map")) == 6
    assert max(at_once) == 1
    assert running == 0


def test_a_save_that_fails_while_mapping_is_reported_and_tried_again(start_mapper: StartMapper, tmp_path: Path) -> None:
    node = start_mapper(save_every=2)
    foreign = obstruct(tmp_path / "map")
    for index in range(2):
        be_at(node, START_NS + index * SECOND_NS, pose_at(index), index)
    wait_until(lambda: "exists and is not a place map" in node._drops.most_common(), "the report")
    foreign.unlink()
    be_at(node, START_NS + 2 * SECOND_NS, pose_at(2), 2)
    wait_until(lambda: (tmp_path / "map" / "map.json").exists(), "the next save")
    assert len(PlaceMap.load(tmp_path / "map")) == 3


def test_a_map_that_cannot_be_saved_may_be_given_up(start_mapper: StartMapper, tmp_path: Path) -> None:
    node = start_mapper(save_every=0)
    be_at(node, START_NS, pose_at(0), 0)
    wait_until(lambda: node._unsaved == 1, "a keyframe")
    foreign = obstruct(tmp_path / "map")
    assert node.trigger_deactivate() == SUCCESS
    assert node.trigger_cleanup() == TransitionCallbackReturn.FAILURE
    assert (tmp_path / ".map.lock").exists(), "the map stays this mapper's"
    assert node.set_parameters([Parameter("save_on_exit", value=False)])[0].successful
    assert node.trigger_cleanup() == SUCCESS
    assert node.state == "unconfigured"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map"]
    assert foreign.read_text() == "years of work"


def test_an_earlier_rescue_is_not_overwritten_and_temporary_files_are_the_last_resort(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def saver(name: str) -> MapSaver:
        place_map = PlaceMap(4, "ab" * 32, "map")
        place_map.add(np.eye(4, dtype=np.float32)[0], Pose.planar(0, 0, 0), 0, "drive")
        made = MapSaver(place_map, tmp_path / name / "town")
        made.count_added()
        return made

    assert [saver("maps").rescue() for _ in range(2)] == [
        tmp_path / "maps" / "town.rescued",
        tmp_path / "maps" / "town.rescued-2",
    ]
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    stuck = saver("file")
    assert stuck.rescue() == tmp_path / "temporary" / "town.rescued"
    assert stuck.unsaved == 0
    assert len(PlaceMap.load(tmp_path / "temporary" / "town.rescued")) == 1
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    lost = saver("file")
    with pytest.raises(DataError, match=r"town\.rescued: the map cannot be written: .*; .*town\.rescued"):
        lost.rescue()
    assert lost.unsaved == 1


@pytest.mark.parametrize("pose_first", [True, False])
def test_no_place_is_wrong_after_the_clock_was_set_back(
    start_mapper: StartMapper, tmp_path: Path, pose_first: bool
) -> None:
    """By 2 s and by 8 s, at 10 Hz; a pose is heard before or after the image that was taken 5 ms earlier."""
    node = start_mapper()
    set_back, where = 0.0, {}
    for tick in range(60):
        set_back += {20: 2.013, 40: 8.017}.get(tick, 0.0)
        stamp = START_NS + round((tick / 10 - set_back) * SECOND_NS)
        pose = Pose.planar(SPEED_MPS * (tick / 10 + 0.005), 0, 0)
        said = [
            partial(node._on_pose, odometry_to_message(pose, stamp + SECOND_NS // 200, "map", "base_link")),
            partial(node._on_image, node._views[""], image_to_message(picture(tick % 8), stamp, "camera")),
        ]
        where[stamp] = SPEED_MPS * tick / 10
        for say in said if pose_first else reversed(said):
            say()
        wait_until(lambda: not node._views[""].waiting, "the image's turn")
    assert node._drops._reasons["time jumped back: waiting images and older poses"] == 2
    node.finish()
    place_map = PlaceMap.load(tmp_path / "map")
    stamps = [place_map.stamp_ns(i) for i in place_map.ids.tolist()]
    assert len(stamps) >= 10
    np.testing.assert_allclose(place_map.positions[:, 0], [where[stamp] for stamp in stamps], atol=1e-6)
