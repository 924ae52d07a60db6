"""Subscribing to a camera, raw or compressed, and saying what is wrong when no image comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image

from vpr_kd_ros.bag_topics import TopicQos
from vpr_kd_ros.nodes.cameras import IMAGE_TOPIC
from vpr_kd_ros.nodes.listening import Listener
from vpr_kd_ros.nodes.topics import published_topics, qos_profile

# Best effort hears every publisher.
IMAGE_QOS = TopicQos(reliable=False)


def image_topic(node: Node, transport: str, topic: str = IMAGE_TOPIC) -> str:
    """What the topic is remapped to; as image_transport does, with ``/compressed`` appended for that one."""
    name = str(node.resolve_topic_name(topic))
    return f"{name}/compressed" if transport == "compressed" else name


def subscribe_images(
    node: Node, transport: str, callback: Callable[[Any], None], depth: int = 1, topic: str = IMAGE_TOPIC
) -> Subscription:
    """Subscribe to a topic of images as the transport says, best effort, keeping the ``depth`` newest images."""
    message_type = CompressedImage if transport == "compressed" else Image
    name = image_topic(node, transport, topic)
    return node.create_subscription(message_type, name, callback, qos_profile(IMAGE_QOS, depth))


def listen_for_images(
    node: Node, transport: str, callback: Callable[[bytes], None], topic: str = IMAGE_TOPIC
) -> Listener:
    """Have the serialized bytes of the newest image of a topic; for ``vpr_kd_ros.serialized_images``."""
    message_type = CompressedImage if transport == "compressed" else Image
    name = image_topic(node, transport, topic)
    return Listener(node, message_type, name, callback, qos_profile(IMAGE_QOS, depth=1), serialized=True)


def why_no_image(node: Node, transport: str, topic: str = IMAGE_TOPIC) -> str:
    """One line for the diagnostics of a node that hears no image."""
    wanted_topic, topic = topic, image_topic(node, transport, topic)
    wanted = "sensor_msgs/msg/CompressedImage" if transport == "compressed" else "sensor_msgs/msg/Image"
    publishers = node.get_publishers_info_by_topic(topic)
    text = f"no image on {topic} (best effort, {wanted}, {len(publishers)} publishers)"
    others = {publisher.topic_type for publisher in publishers} - {wanted}
    if others:
        return f"{text}; it carries {', '.join(sorted(others))}: set parameter 'image_transport'"
    if not publishers:
        images = [
            name
            for name in published_topics(node)
            if any("Image" in info.topic_type for info in node.get_publishers_info_by_topic(name))
        ]
        mend = "remap with -r image:=TOPIC" if wanted_topic == IMAGE_TOPIC else "see parameter 'cameras'"
        return f"{text}; image topics there are: {', '.join(images) or 'none'}; {mend}"
    return f"{text}; large images need config/fastdds.xml, see FASTRTPS_DEFAULT_PROFILES_FILE"
