"""Play a recorded drive to the localizer, on the drive's own time; ends when the drive does.

ros2 launch vpr_kd_ros demo.launch.py bag:=drive2 student:=student.pt2 map:=town_map rviz:=true
"""

from launch import LaunchDescription
from launch.actions import Shutdown
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from vpr_kd_ros.nodes.launching import argument, common_arguments, config_file, node, transport


def generate_launch_description() -> LaunchDescription:
    # The bag brings its own time; the rest as everywhere.
    common = [entry for entry in common_arguments("localizer.yaml") if entry.name != "use_sim_time"]
    return LaunchDescription(
        [
            *common,
            argument("use_sim_time", "true", "take the time from the drive's /clock"),
            argument("bag", "", "the drive: a rosbag2 folder or an .mcap file"),
            argument("rate", "1.0", "how many times faster than it was recorded"),
            argument("loop", "false", "start again at the end"),
            argument("student", "", "the student artefact, a .pt2 file"),
            argument("map", "", "the place map, a folder that the mapper saved with the same student"),
            argument("image", "/camera/image_raw", "topic of the camera in the bag"),
            argument("min_similarity", "", "accept from this similarity on; for students without a calibration"),
            argument("rviz", "false", "show map, candidates and matches in RViz"),
            transport(),
            node("localizer", parameters=["student", "map", "min_similarity"], remappings={"image": "image"}),
            node(
                "replay",
                parameters=["bag", "rate", "loop"],
                wait_for=["image"],
                with_file=False,
                on_exit=[Shutdown(reason="the drive is over")],
            ),
            Node(
                package="rviz2",
                executable="rviz2",
                arguments=["-d", config_file("vpr_kd_ros.rviz")],
                condition=IfCondition(LaunchConfiguration("rviz")),
            ),
        ]
    )
