"""The command line of ``ros2 bag record`` for what the recorder's parameters ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from vpr_kd_ros.errors import ConfigError, DataError, MissingDependencyError

PACKAGES = ("ros2bag", "rosbag2_storage_mcap")
# These want the topics without an option; all later ones want --topics.
POSITIONAL_TOPICS = ("humble", "iron")
MEGABYTE = 1 << 20


def require_installed() -> None:
    """Raise ``MissingDependencyError`` unless ``ros2 bag`` and its MCAP storage are installed."""
    from ament_index_python.packages import get_packages_with_prefixes

    missing = sorted(set(PACKAGES) - set(get_packages_with_prefixes()))
    if missing:
        names = " ".join(f"ros-$ROS_DISTRO-{name.replace('_', '-')}" for name in missing)
        raise MissingDependencyError(
            f"backend:=rosbag2 needs {' and '.join(missing)}, which this machine does not have: apt install {names}; "
            "backend:=recorder, the default, needs nothing more"
        )


def parameters_of_file(path: str | Path, node: str = "recorder") -> dict[str, Any]:
    """Parameters that a ROS parameter file has for every node (``/**``) and for this one.

    Raises:
        DataError: it is not such a file.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        sections = [(key, value["ros__parameters"]) for key, value in content.items()]
        # What is said of the node itself has the last word.
        named = [s for key, s in sections if str(key).rsplit("/", 1)[-1] == node]
        merged: dict[str, Any] = {}
        for section in [*(s for key, s in sections if key == "/**"), *named]:
            merged.update(section or {})
    except (OSError, yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"params_file {path}: not a file of ROS parameters: {error}") from error
    return merged


def number_of(parameters: Mapping[str, Any], name: str) -> float:
    """A parameter that is 0 where it is not given.

    Raises:
        ConfigError: it is not a number, or negative.
    """
    value = parameters.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ConfigError(f"parameter {name!r}: wants a number of at least 0, got {value!r}")
    return float(value)


def record_command(
    parameters: Mapping[str, Any], *, namespace: str, use_sim_time: bool, storage_config: str, distribution: str
) -> list[str]:
    """``ros2 bag record`` with its arguments.

    Args:
        parameters: of the recorder, by name; those that are absent are as the recorder's defaults.
        namespace: of the topics whose names are relative.
        storage_config: path of the file with the options of the MCAP storage.
        distribution: of ROS 2, such as "jazzy"; decides how topics are given.

    Raises:
        ConfigError: a parameter is wrong, or asks for what ``ros2 bag record`` cannot do.
    """

    if number_of(parameters, "gate_distance_m"):
        raise ConfigError("'gate_distance_m': ros2 bag cannot record only while moving; use backend:=recorder")
    topics = parameters.get("topics") or []
    if not isinstance(topics, list) or not topics or not all(isinstance(topic, str) and topic for topic in topics):
        raise ConfigError(f"parameter 'topics': wants a list of names such as [camera/image_raw, odom], got {topics!r}")
    names = [
        topic if topic.startswith("/") else f"/{namespace.strip('/')}/{topic}".replace("//", "/") for topic in topics
    ]
    output = parameters.get("output") or datetime.now().strftime("recording_%Y%m%d_%H%M%S")
    command = ["ros2", "bag", "record", "--storage", "mcap", "--storage-config-file", storage_config]
    command += ["--output", str(Path(str(output)).expanduser())]
    for name, option, unit in (
        ("max_file_mb", "--max-bag-size", MEGABYTE),
        ("max_file_s", "--max-bag-duration", 1),
        ("max_queue_mb", "--max-cache-size", MEGABYTE),
    ):
        value = number_of(parameters, name)
        if value:
            command += [option, str(math.ceil(value * unit))]
    if use_sim_time:
        command.append("--use-sim-time")
    command += names if distribution in POSITIONAL_TOPICS else ["--topics", *names]
    return command
