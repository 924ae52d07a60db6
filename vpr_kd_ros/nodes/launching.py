"""What the launch files share: described arguments, the message transport, and nodes with a parameter file.

An argument that is left empty leaves the parameter as the file, or the node, has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext
from launch.action import Action
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import EnvironmentVariable, LaunchConfiguration
from launch_ros.actions import Node

PACKAGE = "vpr_kd_ros"
PROFILES_VARIABLE = "FASTRTPS_DEFAULT_PROFILES_FILE"


def config_file(name: str) -> str:
    """Path of an installed file of ``config/``."""
    return str(Path(get_package_share_directory(PACKAGE)) / "config" / name)


def argument(name: str, default: str, description: str) -> DeclareLaunchArgument:
    """A described launch argument."""
    return DeclareLaunchArgument(name, default_value=default, description=description)


def common_arguments(params_file: str | None) -> list[DeclareLaunchArgument]:
    """Arguments of every launch file; ``params_file`` only where a node has one."""
    arguments = [
        argument("namespace", "", "namespace of the nodes and of all their topics"),
        argument("use_sim_time", "false", "take the time from /clock (simulation, replay)"),
        argument("autostart", "true", "configure and activate the nodes; false leaves that to a life-cycle manager"),
        argument("log_level", "info", "debug, info, warn, error or fatal"),
    ]
    if params_file is not None:
        arguments.append(argument("params_file", config_file(params_file), "file with the node's parameters"))
    return arguments


def transport() -> SetEnvironmentVariable:
    """Shared memory large enough for images, unless the user has a profile of their own."""
    default = config_file("fastdds.xml")
    return SetEnvironmentVariable(PROFILES_VARIABLE, EnvironmentVariable(PROFILES_VARIABLE, default_value=default))


def node(
    executable: str,
    *,
    parameters: Sequence[str] = (),
    remappings: Mapping[str, str] | None = None,
    wait_for: Sequence[str] = (),
    with_file: bool = True,
    on_exit: Iterable[Action] = (),
) -> OpaqueFunction:
    """One of our nodes.

    Args:
        executable: its name, which is the node's name too.
        parameters: launch arguments that are parameters of the same name.
        remappings: the node's topic to the launch argument that names the real one.
        wait_for: launch arguments naming topics that must have a subscriber before the replay starts.
        with_file: whether the argument ``params_file`` applies to it.
        on_exit: actions when the process ends.
    """

    def create(context: LaunchContext) -> list[Action]:
        def value(name: str) -> str:
            return str(LaunchConfiguration(name).perform(context))

        names = ("use_sim_time", "autostart", *parameters)
        # As ROS reads -p on the command line: numbers, booleans and lists by the rules of YAML.
        given: dict[str, Any] = {name: yaml.safe_load(value(name)) for name in names if value(name)}
        if wait_for:
            given["wait_for_subscribers"] = [value(name) for name in wait_for]
        return [
            Node(
                package=PACKAGE,
                executable=executable,
                name=executable,
                namespace=value("namespace"),
                output="screen",
                parameters=[*([value("params_file")] if with_file else []), given],
                remappings=[(topic, value(name)) for topic, name in (remappings or {}).items()],
                arguments=["--ros-args", "--log-level", f"{executable}:={value('log_level')}"],
                on_exit=list(on_exit) or None,
            )
        ]

    return OpaqueFunction(function=create)
