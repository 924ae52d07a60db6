"""The launch files, run by ROS 2's own launch on a prefix laid out as colcon lays it out."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")
# Not "launch": our own folder of that name would do for it.
pytest.importorskip("launch_ros", reason="launch_ros is not installed (apt install ros-$ROS_DISTRO-launch-ros)")

from launch import LaunchContext
from launch.actions import DeclareLaunchArgument
from launch.launch_description_sources import get_launch_description_from_python_launch_file
from launch.utilities import perform_substitutions
from lifecycle_msgs.srv import GetState
from rcl_interfaces.srv import GetParameters
from rclpy.parameter import parameter_value_to_python
from sensor_msgs.msg import Image

from support.ros import REPOSITORY, Graph, wait_until
from support.tiny import picture
from vpr_kd_ros.conversions import image_to_message
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.nodes.launching import PARAMETERS, node
from vpr_kd_ros.place_map import PlaceMap
from vpr_kd_ros.playback import Bag
from vpr_kd_ros.student import Student

LAUNCH_FILES = sorted((REPOSITORY / "launch").glob("*.launch.py"))
PROFILES = "FASTRTPS_DEFAULT_PROFILES_FILE"
# A name that is given a value; not that of a topic, which is remapped.
NAMED = re.compile(r"(?<![/\w])(?<!-r )([a-z_]+):=")
RUN = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
arguments = [tuple(argument.split(":=", 1)) for argument in sys.argv[2:]]
service = LaunchService()
service.include_launch_description(LaunchDescription([
    IncludeLaunchDescription(PythonLaunchDescriptionSource(sys.argv[1]), launch_arguments=arguments)
]))
sys.exit(service.run())
"""


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installed package: marker, share folder, executables."""
    prefix = tmp_path_factory.mktemp("prefix")
    markers = prefix / "share" / "ament_index" / "resource_index" / "packages"
    share, executables = prefix / "share" / "vpr_kd_ros", prefix / "lib" / "vpr_kd_ros"
    for folder in (markers, share, executables):
        folder.mkdir(parents=True)
    (markers / "vpr_kd_ros").touch()
    for name in ("config", "launch"):
        (share / name).symlink_to(REPOSITORY / name)
    for name in ("localizer", "mapper", "recorder", "replay"):
        script = executables / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m vpr_kd_ros.nodes.{name} "$@"\n')
        script.chmod(0o755)
    return prefix


@pytest.fixture(autouse=True)
def _installed(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inherited = os.environ.get("AMENT_PREFIX_PATH", sys.prefix)
    monkeypatch.setenv("AMENT_PREFIX_PATH", os.pathsep.join([str(prefix), inherited]))


class Launched:
    """A launch file that runs, and what it and its nodes print."""

    def __init__(self, graph: Graph, name: str, environment: dict[str, str], *arguments: str) -> None:
        self._log = graph.folder / "launch.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", RUN, str(REPOSITORY / "launch" / f"{name}.launch.py"), *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=graph.folder,
                env={
                    **{key: value for key, value in os.environ.items() if key != PROFILES},
                    "ROS_DOMAIN_ID": str(graph.domain),
                    "ROS_LOG_DIR": str(graph.folder),
                    "OMP_NUM_THREADS": "1",
                    "PYTHONPATH": str(REPOSITORY),
                    **environment,
                },
            )

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for_output(self, text: str) -> None:
        wait_until(lambda: text in self.output or self.process.poll() is not None, f"{text!r} in {self.output}")
        assert text in self.output, self.output

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)

    def node_environment(self) -> dict[str, str]:
        """Of the process that launch says it started."""
        number = self.output.split("process started with pid [")[1].split("]")[0]
        entries = Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
        return dict(entry.decode().split("=", 1) for entry in entries if entry)


@pytest.fixture(scope="module")
def town_map(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    student = Student.load(tiny_student)
    place_map = PlaceMap(student.metadata.descriptor_dim, student.metadata.fingerprint, "map")
    place_map.add(student.describe([picture(0)])[0], Pose.planar(1.0, 2.0, 0.0), 1, "drive", picture(0))
    path = tmp_path_factory.mktemp("maps") / "town"
    place_map.save(path)
    return path


def arguments_of(path: Path) -> dict[str, DeclareLaunchArgument]:
    description = get_launch_description_from_python_launch_file(str(path))
    return {entity.name: entity for entity in description.entities if isinstance(entity, DeclareLaunchArgument)}


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.name)
def test_every_argument_is_described(path: Path) -> None:
    arguments = arguments_of(path).values()
    assert len(arguments) >= 5
    assert not [argument.name for argument in arguments if argument.description in ("", "no description given")]


def test_what_the_documents_say_can_be_given() -> None:
    """launch ignores an argument that no file declares, without a word."""
    arguments = {path.name: set(arguments_of(path)) for path in LAUNCH_FILES}
    parameters = {name: {field.name for field in dataclasses.fields(kind)} for name, kind in PARAMETERS.items()}
    documents = [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md"), *LAUNCH_FILES]
    documents += [*(REPOSITORY / "docs").rglob("*.Dockerfile"), *(REPOSITORY / "vpr_kd_ros" / "nodes").glob("*.py")]
    wrong, commands = [], 0
    for document in documents:
        text = re.sub(r"\\+\n[ #]*", " ", document.read_text(encoding="utf-8"))
        for command, kind, name, rest in re.findall(r"(ros2 (launch|run) vpr_kd_ros (\S+)(.*))", text):
            known = arguments[name] if kind == "launch" else parameters.get(name, set())
            wrong += [f"{document.name}: {command}: {given}" for given in NAMED.findall(rest) if given not in known]
            text = text.replace(command, "")
            commands += 1
        if document.suffix == ".md":
            anywhere = set().union(*arguments.values())
            wrong += [f"{document.name}: {given}" for given in NAMED.findall(text) if given not in anywhere]
    assert wrong == []
    assert commands >= 15


@pytest.mark.parametrize(
    ("group", "namespace", "logger"),
    [
        (None, "", "localizer"),
        (None, "robot1", "robot1.localizer"),
        (None, "/fleet/robot1/", "fleet.robot1.localizer"),
        ("/fleet", "robot1", "fleet.robot1.localizer"),
        ("/fleet", "/robot1", "robot1.localizer"),
    ],
)
def test_the_log_level_is_that_of_the_nodes_logger(group: str | None, namespace: str, logger: str) -> None:
    context = LaunchContext()
    given = {"namespace": namespace, "log_level": "debug", "use_sim_time": "", "autostart": "", "params_file": "x.yaml"}
    context.launch_configurations.update(given if group is None else {**given, "ros_namespace": group})
    (action,) = node("localizer").execute(context)
    assert f"{logger}:=debug" in [perform_substitutions(context, part) for part in action.cmd[1:] if _is_text(part)]


def _is_text(part: Any) -> bool:
    return all(hasattr(piece, "text") for piece in part)


def test_a_node_in_a_namespace_logs_from_the_level_that_is_asked_for(graph: Graph) -> None:
    arguments = ["autostart:=false", "namespace:=robot1", "log_level:=error"]
    with Launched(graph, "localize", {}, *arguments) as launched:
        graph.call(GetState, "/robot1/localizer/get_state", GetState.Request())
        assert launched.end() == 0
        assert "process has finished cleanly" in launched.output
        assert "waiting to be configured" not in launched.output


def test_arguments_reach_the_node_as_what_they_are(graph: Graph) -> None:
    arguments = {
        "session": "2026-11-27",
        "map": "001",
        "map_frame": "on",
        "student": "@student",
        "nav_origin": "[43, 7.5, 100]",
        "cameras": "[front=/front/image, rear=/rear/image]",
        "append": "true",
        "autostart": "false",
    }
    with Launched(graph, "map", {}, *(f"{name}:={text}" for name, text in arguments.items())) as launched:
        request = GetParameters.Request(names=list(arguments))
        values = graph.call(GetParameters, "/mapper/get_parameters", request).values
        assert launched.end() == 0
    assert dict(zip(arguments, map(parameter_value_to_python, values), strict=True)) == {
        **arguments,
        "nav_origin": [43.0, 7.5, 100.0],
        "cameras": ["front=/front/image", "rear=/rear/image"],
        "append": True,
        "autostart": False,
    }


def test_an_empty_list_and_odd_texts_reach_the_recorder(graph: Graph) -> None:
    with Launched(graph, "record", {}, "topics:=[]", "output:=12:30") as launched:
        launched.wait_for_output("parameter 'topics': it is empty")
        values = graph.call(GetParameters, "/recorder/get_parameters", GetParameters.Request(names=["output"])).values
        assert values[0].string_value == "12:30"
        assert launched.end() == 0


def test_localize_starts_the_node_on_its_topics(graph: Graph, tiny_student: Path, town_map: Path, prefix: Path) -> None:
    arguments = [f"student:={tiny_student}", f"map:={town_map}", "min_similarity:=0.9", "namespace:=robot1"]
    with Launched(graph, "localize", {}, *arguments, "image:=front/image") as launched:
        graph.wait_for_subscriber("/robot1/front/image")
        state = graph.call(GetState, "/robot1/localizer/get_state", GetState.Request())
        assert state.current_state.label == "active", launched.output
        assert launched.node_environment()[PROFILES] == str(prefix / "share" / "vpr_kd_ros" / "config" / "fastdds.xml")
        assert launched.end() == 0
        assert "process has finished cleanly" in launched.output, launched.output
        assert "has no effect" not in launched.output


def test_localize_starts_the_node_on_several_cameras(
    graph: Graph, tiny_student: Path, town_map: Path, tmp_path: Path
) -> None:
    for camera in ("front", "rear"):
        PlaceMap.load(town_map).save(tmp_path / "both" / camera)
    arguments = [f"student:={tiny_student}", f"map:={tmp_path / 'both'}", "min_similarity:=0.9", "namespace:=robot1"]
    cameras = "cameras:=[front=front/image, rear=/rear/image]"
    with Launched(graph, "localize", {}, *arguments, cameras) as launched:
        graph.wait_for_subscriber("/robot1/front/image")
        graph.wait_for_subscriber("/rear/image")
        assert launched.end() == 0
        assert "camera 'front': 1 places, camera 'rear': 1 places" in launched.output


def test_a_transport_profile_of_the_user_stays_and_autostart_can_be_off(graph: Graph, tmp_path: Path) -> None:
    own = tmp_path / "own.xml"
    own.write_text((REPOSITORY / "config" / "fastdds.xml").read_text())
    with Launched(graph, "map", {PROFILES: str(own)}, "autostart:=false") as launched:
        launched.wait_for_output("waiting to be configured")
        assert launched.node_environment()[PROFILES] == str(own)
        state = graph.call(GetState, "/mapper/get_state", GetState.Request())
        assert state.current_state.label == "unconfigured"
        assert launched.end() == 0


def test_record_then_demo_ends_with_the_drive(graph: Graph, tiny_student: Path, town_map: Path, tmp_path: Path) -> None:
    camera = graph.publisher(Image, "/camera/image_raw")
    with Launched(graph, "record", {}, "output:=drive", "topics:=[camera/image_raw]") as launched:
        graph.wait_for_subscriber("/camera/image_raw")
        for index in range(5):
            camera.publish(image_to_message(picture(0), 10**18 + index, "camera"))
        wait_until(lambda: "messages: /camera/image_raw" in launched.output, "messages")
        assert launched.end() == 0
    assert Bag(tmp_path / "drive").topics["/camera/image_raw"].count == 5
    graph.node.destroy_publisher(camera)
    arguments = [f"student:={tiny_student}", f"map:={town_map}", "min_similarity:=0.9", "bag:=drive"]
    with Launched(graph, "demo", {}, *arguments) as launched:
        assert launched.process.wait(60) == 0, launched.output
        assert "5 messages played" in launched.output
        assert launched.output.count("process has finished cleanly") == 2, launched.output


SLOW_NODE = """#!/bin/sh
trap 'echo finishing; sleep 7; echo saved; exit 0' INT TERM
echo begun
while :; do sleep 0.05; done
"""


@pytest.mark.parametrize(("name", "executable"), [("map", "mapper"), ("record", "recorder")])
def test_a_map_and_a_queue_are_given_time_to_be_saved(
    graph: Graph, prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, executable: str
) -> None:
    slow = tmp_path / "slow"
    shutil.copytree(prefix, slow, symlinks=True)
    (slow / "lib" / "vpr_kd_ros" / executable).write_text(SLOW_NODE)
    monkeypatch.setenv("AMENT_PREFIX_PATH", os.environ["AMENT_PREFIX_PATH"].replace(str(prefix), str(slow)))
    # The signal that the node is ended with comes after one second instead of five.
    with Launched(graph, name, {}, "sigterm_timeout:=1") as launched:
        launched.wait_for_output("begun")
        assert launched.end() == 0
        assert "] saved" in launched.output, launched.output
        assert "process has finished cleanly" in launched.output


# --- record with ros2 bag --------------------------------------------------------------------------------------------

FAKE_ROS2 = """#!/bin/sh
trap 'echo interrupted; exit 0' INT
trap 'echo terminated; exit 0' TERM
echo "ARGUMENTS $@"
while :; do sleep 0.05; done
"""


@pytest.fixture
def ros2bag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a machine that has ``ros2 bag``: one that prints what it is asked for."""
    markers = tmp_path / "apt" / "share" / "ament_index" / "resource_index" / "packages"
    markers.mkdir(parents=True)
    for name in ("ros2bag", "rosbag2_storage_mcap"):
        (markers / name).touch()
    monkeypatch.setenv("AMENT_PREFIX_PATH", os.pathsep.join([os.environ["AMENT_PREFIX_PATH"], str(tmp_path / "apt")]))
    script = tmp_path / "bin" / "ros2"
    script.parent.mkdir()
    script.write_text(FAKE_ROS2)
    script.chmod(0o755)
    return {"PATH": f"{script.parent}{os.pathsep}{os.environ['PATH']}", "ROS_DISTRO": "jazzy"}


def test_record_hands_the_recorders_arguments_to_ros2_bag(graph: Graph, ros2bag: dict[str, str], prefix: Path) -> None:
    arguments = ["output:=drive", "topics:=[image, /lidar/points]", "namespace:=robot1", "use_sim_time:=true"]
    arguments += ["max_file_mb:=100", "max_file_s:=60.5", "backend:=rosbag2"]
    with Launched(graph, "record", ros2bag, *arguments) as launched:
        launched.wait_for_output("ARGUMENTS")
        config = prefix / "share" / "vpr_kd_ros" / "config" / "rosbag2_mcap.yaml"
        assert config.is_file()
        assert (
            f"ARGUMENTS bag record --storage mcap --storage-config-file {config} --output drive "
            "--max-bag-size 104857600 --max-bag-duration 61 --max-cache-size 268435456 --use-sim-time "
            "--topics /robot1/image /lidar/points\n"
        ) in launched.output
        assert launched.node_environment()[PROFILES].endswith("fastdds.xml")
        assert launched.end() == 0
        # On a console the interruption reaches it by itself; here launch terminates it after some seconds.
        assert "] terminated" in launched.output, launched.output


def test_ros2_bag_is_given_time_to_finish(graph: Graph, ros2bag: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "bin" / "ros2").write_text(SLOW_NODE)
    with Launched(graph, "record", ros2bag, "backend:=rosbag2", "sigterm_timeout:=1") as launched:
        launched.wait_for_output("begun")
        assert launched.end() == 0
        assert "] saved" in launched.output, launched.output


def test_record_ends_ros2_bag_when_the_time_is_over(graph: Graph, ros2bag: dict[str, str]) -> None:
    with Launched(graph, "record", ros2bag, "backend:=rosbag2", "max_duration_s:=0.5") as launched:
        assert launched.process.wait(60) == 0
        # The topics of the parameter file.
        assert "--topics /camera/image_raw /lidar/points /odom /ground_truth/odom" in launched.output
        assert "] interrupted" in launched.output
        assert "process has finished cleanly" in launched.output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["backend:=rosbag2"],
            "needs ros2bag and rosbag2_storage_mcap, which this machine does not have: apt install",
        ),
        (["backend:=rosbag"], "backend: wants recorder or rosbag2, got 'rosbag'"),
        (["max_file_mb:=large"], "parameter 'max_file_mb': wants a whole number, got 'large'"),
        (["autostart:=2026-11-27"], "parameter 'autostart': wants true or false, got '2026-11-27'"),
    ],
)
def test_record_says_why_it_cannot(graph: Graph, arguments: list[str], text: str) -> None:
    with Launched(graph, "record", {}, *arguments) as launched:
        assert launched.process.wait(60) == 1
        assert text in launched.output
        assert "process started" not in launched.output
