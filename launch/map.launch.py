"""Build a place map from a camera and poses.

ros2 launch vpr_kd_ros map.launch.py student:=student.pt2 map:=town_map pose:=/ground_truth/odom
ros2 launch vpr_kd_ros map.launch.py student:=student.pt2 map:=town_map pose:=/ground_truth/odom \\
    cameras:="[front=/front/image_raw, rear=/rear/image_raw]"
"""

from launch import LaunchDescription

from vpr_kd_ros.nodes.launching import argument, common_arguments, node, transport


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            *common_arguments("mapper.yaml"),
            argument("student", "", "the student artefact, a .pt2 file"),
            argument("map", "", "folder of the place map to save"),
            argument("append", "", "true: add to the map that is there"),
            argument("session", "", "name of this drive"),
            argument("image", "camera/image_raw", "topic of the camera; without /compressed, see image_transport"),
            argument("cameras", "", "several cameras, as [NAME=TOPIC, ...]; the map of each is MAP/NAME"),
            argument("image_transport", "", "raw or compressed"),
            argument("pose", "odom", "topic of the robot's pose in the map's frame"),
            argument("pose_source", "", "its type: odometry, pose, pose_with_covariance or fix; or tf"),
            argument("nav_origin", "", "for fix: the map's origin, [LATITUDE, LONGITUDE, ALTITUDE]: degrees, metres"),
            argument("map_frame", "", "frame of the map, which is the frame of the poses"),
            argument("device", "", "where the student runs: cpu, cuda, cuda:N or auto"),
            argument("backend", "", "what runs it: torch, onnxruntime, tensorrt, torch-tensorrt, or auto: the fastest"),
            argument("precision", "", "fp32, or fp16 on a CUDA device"),
            transport(),
            node(
                "mapper",
                parameters=[
                    "student",
                    "map",
                    "cameras",
                    "append",
                    "session",
                    "image_transport",
                    "pose_source",
                    "nav_origin",
                    "map_frame",
                    "device",
                    "backend",
                    "precision",
                ],
                remappings={"image": "image", "pose": "pose"},
            ),
        ]
    )
