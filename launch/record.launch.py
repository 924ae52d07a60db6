"""Record a drive.

ros2 launch vpr_kd_ros record.launch.py output:=drive1 topics:="[camera/image_raw, lidar/points, odom]"
"""

from launch import LaunchDescription

from vpr_kd_ros.nodes.launching import argument, common_arguments, node, transport


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            *common_arguments("recorder.yaml"),
            argument("output", "", "folder of the bag; empty: named by date and time, in the working folder"),
            argument("topics", "", "topics to record, as a YAML list"),
            argument("max_duration_s", "", "stop after this many seconds"),
            transport(),
            node("recorder", parameters=["output", "topics", "max_duration_s"]),
        ]
    )
