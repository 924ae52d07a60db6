"""What the launch files share: described arguments, the message transport, and nodes with a parameter file.

An argument that is left empty leaves the parameter as the file, or the node, has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext
from launch.action import Action
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import EnvironmentVariable, LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.utilities import prefix_namespace

from vpr_kd_ros.nodes.localizer_parameters import LocalizerParameters
from vpr_kd_ros.nodes.mapper_parameters import MapperParameters
from vpr_kd_ros.nodes.recording_parameters import RecorderParameters
from vpr_kd_ros.nodes.replay_parameters import ReplayParameters
from vpr_kd_ros.parameters import from_text

PACKAGE = "vpr_kd_ros"
PROFILES_VARIABLE = "FASTRTPS_DEFAULT_PROFILES_FILE"
PARAMETERS: dict[str, Any] = {
    "localizer": LocalizerParameters,
    "mapper": MapperParameters,
    "recorder": RecorderParameters,
    "replay": ReplayParameters,
}
# How long a large map and the recorder's queue may take to reach a slow card, seconds; launch's own patience is five.
FINISH_S = {"mapper": 120, "recorder": 120}


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


def patience(executable: str) -> LaunchConfiguration:
    """Seconds that a node may take to finish, after which launch kills it; the user's own, where there is one.

    SIGTERM, which launch sends long before, tells our nodes nothing new.
    """
    return LaunchConfiguration("sigkill_timeout", default=str(FINISH_S.get(executable, 5)))


def given_parameters(context: LaunchContext, executable: str, names: Iterable[str]) -> dict[str, Any]:
    """The launch arguments that are not empty, as the kinds that the node's parameters of these names have.

    Raises:
        ConfigError: an argument is of another kind; the message names it and what it wants.
    """
    kinds = {"use_sim_time": bool, "autostart": bool, **get_type_hints(PARAMETERS[executable])}
    texts = {name: str(LaunchConfiguration(name).perform(context)) for name in names}
    return {name: from_text(name, kinds[name], text) for name, text in texts.items() if text}


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

        given = given_parameters(context, executable, ("use_sim_time", "autostart", *parameters))
        # launch_ros refuses a bare list without items.
        given = {name: ParameterValue(item) if item == [] else item for name, item in given.items()}
        if wait_for:
            given["wait_for_subscribers"] = [value(name) for name in wait_for]
        # Within the group's namespace, if it is launched in one, as launch_ros does with the node's.
        namespace = prefix_namespace(context.launch_configurations.get("ros_namespace"), value("namespace")) or ""
        logger = ".".join([*filter(None, namespace.split("/")), executable])
        return [
            Node(
                package=PACKAGE,
                executable=executable,
                name=executable,
                namespace=value("namespace"),
                output="screen",
                parameters=[*([value("params_file")] if with_file else []), given],
                remappings=[(topic, value(name)) for topic, name in (remappings or {}).items()],
                arguments=["--ros-args", "--log-level", f"{logger}:={value('log_level')}"],
                sigkill_timeout=patience(executable),
                on_exit=list(on_exit) or None,
            )
        ]

    return OpaqueFunction(function=create)
