"""Record a drive.

ros2 launch vpr_kd_ros record.launch.py output:=drive1 topics:="[camera/image_raw, lidar/points, odom]"
ros2 launch vpr_kd_ros record.launch.py output:=drive1 max_file_mb:=4000 gate_distance_m:=0.5
ros2 launch vpr_kd_ros record.launch.py output:=drive1 backend:=rosbag2
"""

import os
import signal

from launch import LaunchContext, LaunchDescription
from launch.action import Action
from launch.actions import EmitEvent, ExecuteProcess, OpaqueFunction, TimerAction
from launch.events.process import SignalProcess
from launch.substitutions import LaunchConfiguration

from vpr_kd_ros.errors import ConfigError
from vpr_kd_ros.nodes.launching import (
    argument,
    common_arguments,
    config_file,
    given_parameters,
    node,
    patience,
    transport,
)
from vpr_kd_ros.nodes.rosbag2_backend import number_of, parameters_of_file, record_command, require_installed

PARAMETERS = {
    "output": "folder of the bag; empty: named by date and time, in the working folder",
    "topics": "topics to record, as a YAML list",
    "max_duration_s": "stop after this many seconds",
    "max_file_mb": "begin another file of the bag when one has about this size, MB",
    "max_file_s": "begin another file of the bag after this many seconds",
    "gate_distance_m": "record only while the robot moves by this much, metres, or turns",
    "gate_topic": "odometry that tells whether the robot moves",
}


def record(context: LaunchContext) -> list[Action]:
    def value(name: str) -> str:
        return str(LaunchConfiguration(name).perform(context))

    backend = value("backend")
    if backend == "recorder":
        return [node("recorder", parameters=list(PARAMETERS))]
    if backend != "rosbag2":
        raise ConfigError(f"backend: wants recorder or rosbag2, got {backend!r}")
    require_installed()
    given = given_parameters(context, "recorder", ("use_sim_time", *PARAMETERS))
    parameters = {**parameters_of_file(value("params_file")), **given}
    command = record_command(
        parameters,
        namespace=value("namespace"),
        use_sim_time=given.get("use_sim_time", False),
        storage_config=config_file("rosbag2_mcap.yaml"),
        distribution=os.environ.get("ROS_DISTRO", ""),
    )
    process_options = {"cmd": command, "output": "screen", "sigkill_timeout": patience("recorder")}
    seconds = number_of(parameters, "max_duration_s")
    if not seconds:
        return [ExecuteProcess(**process_options)]
    # As if interrupted on the console, by which the bag is finished; the rest of what was launched goes on.
    interrupt = SignalProcess(signal_number=signal.SIGINT, process_matcher=lambda action: action is process)
    timer = TimerAction(period=seconds, actions=[EmitEvent(event=interrupt)])
    process = ExecuteProcess(**process_options, on_exit=[OpaqueFunction(function=lambda _: timer.cancel())])
    return [process, timer]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            *common_arguments("recorder.yaml"),
            argument(
                "backend", "recorder", "recorder: the package's own; rosbag2: ros2 bag record, where it is installed"
            ),
            *(argument(name, "", description) for name, description in PARAMETERS.items()),
            transport(),
            OpaqueFunction(function=record),
        ]
    )
