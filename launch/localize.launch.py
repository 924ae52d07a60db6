"""Localise a camera in a saved map.

ros2 launch vpr_kd_ros localize.launch.py student:=student.pt2 map:=town_map image:=/front/image_raw
ros2 launch vpr_kd_ros localize.launch.py student:=student.pt2 map:=town_map mode:=belief \\
    cameras:="[front=/front/image_raw, rear=/rear/image_raw]"
"""

from launch import LaunchDescription

from vpr_kd_ros.nodes.launching import argument, common_arguments, node, transport


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            *common_arguments("localizer.yaml"),
            argument("student", "", "the student artefact, a .pt2 file"),
            argument("map", "", "the place map, a folder that the mapper saved with the same student"),
            argument("image", "camera/image_raw", "topic of the camera; without /compressed, see image_transport"),
            argument("cameras", "", "several cameras, as [NAME=TOPIC, ...]; the map of each is MAP/NAME"),
            argument("image_transport", "", "raw or compressed"),
            argument("min_probability", "", "accept a match from this probability of being right on"),
            argument("min_similarity", "", "and from this similarity on; needed for students without a calibration"),
            argument("mode", "", "single: each image alone; belief: filtered over time, by odometry if any"),
            argument("search", "", "exact, approximate, or auto: exact up to 250,000 places"),
            argument("odom", "odom", "topic of the robot's odometry, for mode belief"),
            argument("publish_tf", "", "true: publish the transform from the map to the odometry's frame"),
            argument("device", "", "where the student runs: cpu, cuda, cuda:N or auto"),
            argument("backend", "", "what runs it: torch, onnxruntime, tensorrt, torch-tensorrt, or auto: the fastest"),
            argument("precision", "", "fp32, or fp16 on a CUDA device"),
            transport(),
            node(
                "localizer",
                parameters=[
                    *("student", "map", "cameras", "image_transport", "min_probability", "min_similarity"),
                    *("mode", "search", "publish_tf", "device", "backend", "precision"),
                ],
                remappings={"image": "image", "odom": "odom"},
            ),
        ]
    )
