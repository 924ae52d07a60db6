"""Dataclasses as ROS parameters."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

import rclpy
import yaml
from rclpy.node import Node
from rclpy.parameter import Parameter

from vpr_kd_ros.errors import ConfigError
from vpr_kd_ros.nodes.localizer_parameters import LocalizerParameters
from vpr_kd_ros.nodes.mapper_parameters import MapperParameters
from vpr_kd_ros.nodes.recording_parameters import RecorderParameters
from vpr_kd_ros.nodes.replay_parameters import ReplayParameters
from vpr_kd_ros.parameters import declare, from_text, parameter, read, warn_of_unknown

BLOCK_PIP = """
import sys
blocked = "cv2 faiss mcap onnxruntime pyarrow rosbags safetensors scipy torch zstandard".split()
sys.modules.update(dict.fromkeys(blocked))
"""


@dataclasses.dataclass(frozen=True)
class Example:
    speed: float = parameter(2.0, "metres per second", low=0.0, high=5.0)
    count: int = parameter(3, "how many", low=1)
    mode: str = parameter("fast", "how", choices=("fast", "careful"))
    enabled: bool = parameter(True, "whether")
    topics: tuple[str, ...] = parameter(("a", "b"), "which")
    extra: tuple[str, ...] = parameter((), "which more")


@contextmanager
def node_with(*arguments: str) -> Iterator[Node]:
    context = rclpy.Context()
    given = [part for argument in arguments for part in ("-p", argument)]
    rclpy.init(context=context, args=["--ros-args", *given])
    node = Node("example", context=context)
    try:
        declare(node, Example)
        yield node
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)


def test_defaults_come_back() -> None:
    with node_with() as node:
        assert read(node, Example) == Example()


def test_given_values_come_back_and_a_whole_number_is_a_number() -> None:
    with node_with("speed:=1", "count:=7", "mode:=careful", "enabled:=false", "topics:=[c]", "extra:=[d, e]") as node:
        config = read(node, Example)
    assert config == Example(1.0, 7, "careful", False, ("c",), ("d", "e"))
    assert isinstance(config.speed, float)


def test_an_empty_list_is_a_list() -> None:
    with node_with("topics:=[]") as node:
        assert read(node, Example).topics == ()


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("speed:=9.0", r"'speed': wants a value from 0.0 to 5.0, got 9.0"),
        ("speed:=9", r"'speed': wants a value from 0.0 to 5.0, got 9.0"),
        ("speed:=.nan", r"'speed': wants a value from 0.0 to 5.0, got nan"),
        ("speed:=fast", r"'speed': wants a number, got 'fast'"),
        ("count:=0", r"'count': wants a value at least 1, got 0"),
        ("count:=1.5", r"'count': wants a whole number, got 1.5"),
        ("count:=true", r"'count': wants a whole number, got True"),
        ("mode:=carefull", r"'mode': wants one of fast, careful, got 'carefull' \(did you mean 'careful'\?\)"),
        ("enabled:=1", r"'enabled': wants true or false, got 1"),
        ("topics:=[1, 2]", r"'topics': wants a list of texts"),
    ],
)
def test_a_wrong_value_is_named(argument: str, text: str) -> None:
    with node_with(argument) as node, pytest.raises(ConfigError, match=text):
        read(node, Example)


def test_a_wrong_value_can_be_mended_while_the_node_runs() -> None:
    with node_with("speed:=9.0") as node:
        node.set_parameters([Parameter("speed", value=4.5)])
        assert read(node, Example).speed == 4.5


def test_ranges_and_descriptions_are_told_to_the_tools() -> None:
    with node_with() as node:
        speed, count, mode = (node.describe_parameter(name) for name in ("speed", "count", "mode"))
        assert speed.description == "metres per second"
        assert (speed.floating_point_range[0].from_value, speed.floating_point_range[0].to_value) == (0.0, 5.0)
        assert count.integer_range[0].from_value == 1
        assert mode.additional_constraints == "one of fast, careful"
        refused = node.set_parameters([Parameter("count", value=0)])[0]
        assert not refused.successful
        assert read(node, Example).count == 3


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        *((str, text, text) for text in ("2026-11-27", "@drive", "001", "12:30", "on", "'a'", "a: b", "[a]")),
        (bool, "true", True),
        (bool, "False", False),
        (int, "007", 7),
        (float, "1e3", 1000.0),
        (float, "2", 2.0),
        (tuple[str, ...], "[front=/a, 001, 'b c']", ["front=/a", "001", "b c"]),
        (tuple[str, ...], "/odom", ["/odom"]),
        (tuple[str, ...], "[]", []),
        (tuple[float, ...], "[43, 7.5, -1e2]", [43.0, 7.5, -100.0]),
    ],
)
def test_a_text_is_read_as_the_kind_that_is_wanted(kind: Any, text: str, value: Any) -> None:
    found = from_text("name", kind, text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("kind", "text", "wants"),
    [
        (bool, "maybe", "true or false"),
        (bool, "@", "true or false"),
        (int, "1.5", "a whole number"),
        (int, "12:30", "a whole number"),
        (float, "fast", "a number"),
        (tuple[str, ...], "[a, [b]]", "a list of texts"),
        (tuple[str, ...], "[a: b]", "a list of texts"),
        (tuple[str, ...], "[a", "a list of texts"),
        (tuple[float, ...], "[1, north]", "a list of numbers"),
    ],
)
def test_a_text_of_another_kind_is_named(kind: Any, text: str, wants: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"parameter 'speed': wants {wants}, got {text!r}")):
        from_text("speed", kind, text)


def test_parameters_are_known_without_what_pip_installs() -> None:
    """For ``ros2 launch``, which runs by apt's Python whichever the nodes run by."""
    names = ("localizer_parameters", "mapper_parameters", "recording_parameters", "replay_parameters")
    code = BLOCK_PIP + f"from vpr_kd_ros.nodes import {', '.join(names)}"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_unknown_parameters_are_reported() -> None:
    with node_with("sped:=1.0", "qos_overrides./image.subscription.depth:=3") as node:
        assert warn_of_unknown(node) == ["sped"]


@pytest.mark.parametrize("config_type", [LocalizerParameters, MapperParameters, RecorderParameters, ReplayParameters])
def test_the_defaults_of_every_node_are_allowed_values(config_type: type) -> None:
    context = rclpy.Context()
    rclpy.init(context=context, args=[])
    node = Node("example", context=context)
    try:
        declare(node, config_type)
        assert read(node, config_type) == config_type()
        assert all(node.describe_parameter(field.name).description for field in dataclasses.fields(config_type))
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)


@pytest.mark.parametrize(
    ("name", "config_type"),
    [("localizer", LocalizerParameters), ("mapper", MapperParameters), ("recorder", RecorderParameters)],
)
def test_the_parameter_files_hold_every_parameter_and_its_default(name: str, config_type: type) -> None:
    path = Path(__file__).parents[1] / "config" / f"{name}.yaml"
    values = yaml.safe_load(path.read_text())["/**"]["ros__parameters"]
    defaults = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(config_type()).items()
    }
    assert values == defaults
