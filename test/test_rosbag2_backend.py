"""What ``ros2 bag record`` is asked for; needs no ROS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vpr_kd_ros.errors import ConfigError, DataError
from vpr_kd_ros.nodes.rosbag2_backend import parameters_of_file, record_command

PARAMETERS: dict[str, Any] = {"topics": ["a", "/b"], "output": "drive"}


def command(distribution: str = "jazzy", namespace: str = "", **parameters: Any) -> list[str]:
    return record_command(
        {**PARAMETERS, **parameters},
        namespace=namespace,
        use_sim_time=False,
        storage_config="mcap.yaml",
        distribution=distribution,
    )


@pytest.mark.parametrize(
    ("namespace", "first"), [("", "/a"), ("/", "/a"), ("robot1", "/robot1/a"), ("/r/s/", "/r/s/a")]
)
def test_relative_topics_are_of_the_namespace(namespace: str, first: str) -> None:
    assert command(namespace=namespace)[-3:] == ["--topics", first, "/b"]


@pytest.mark.parametrize("distribution", ["humble", "iron"])
def test_older_releases_want_the_topics_without_an_option(distribution: str) -> None:
    assert command(distribution)[-4:] == ["--output", "drive", "/a", "/b"]


def test_sizes_are_in_bytes_and_times_in_whole_seconds() -> None:
    line = " ".join(command(max_file_mb=2, max_file_s=0.2, max_queue_mb=1))
    assert "--max-bag-size 2097152 --max-bag-duration 1 --max-cache-size 1048576" in line
    assert "--max" not in " ".join(command(max_file_mb=0, max_file_s=0.0))


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"gate_distance_m": 0.5}, "'gate_distance_m': ros2 bag cannot .* use backend:=recorder"),
        ({"topics": []}, "parameter 'topics': wants a list"),
        ({"topics": "image"}, "parameter 'topics': wants a list of names such as .*got 'image'"),
        ({"topics": ["a", 3]}, "parameter 'topics'"),
        ({"max_file_mb": "big"}, "parameter 'max_file_mb': wants a number of at least 0, got 'big'"),
        ({"max_file_s": -1}, "parameter 'max_file_s'"),
        ({"max_file_s": float("nan")}, "parameter 'max_file_s'"),
        ({"max_queue_mb": True}, "parameter 'max_queue_mb'"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(parameters: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        command(**parameters)


def test_parameters_of_the_node_have_the_last_word(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(
        "/robot1/recorder: {ros__parameters: {max_file_mb: 2}}\n"
        "/**: {ros__parameters: {max_file_mb: 1, output: drive}}\n"
        "mapper: {ros__parameters: {output: other}}\n"
    )
    assert parameters_of_file(file) == {"max_file_mb": 2, "output": "drive"}


@pytest.mark.parametrize("text", ["", "topics: [a]", "- a", "/**: {ros__parameters: [a]}", "a: ["])
def test_what_is_no_parameter_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(DataError, match=r"params_file .*p\.yaml"):
        parameters_of_file(tmp_path / "p.yaml")
