"""Subscribing to a camera, raw or compressed, and saying what is wrong when no image comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image

from vpr_kd_ros.bag_topics import TopicQos
from vpr_kd_ros.nodes.listening import Listener
from vpr_kd_ros.nodes.topics import published_topics, qos_profile

TRANSPORTS = ("raw", "compressed")
# Best effort hears every publisher.
IMAGE_QOS = TopicQos(reliable=False)


def image_topic(node: Node, transport: str) -> str:
    """The topic that ``image`` is remapped to; as image_transport does, with ``/compressed`` appended for that one."""
    topic = str(node.resolve_topic_name("image"))
    return f"{topic}/compressed" if transport == "compressed" else topic


def subscribe_images(node: Node, transport: str, callback: Callable[[Any], None], depth: int = 1) -> Subscription:
    """Subscribe to ``image`` as the transport says, best effort, keeping the ``depth`` newest images."""
    message_type = CompressedImage if transport == "compressed" else Image
    return node.create_subscription(message_type, image_topic(node, transport), callback, qos_profile(IMAGE_QOS, depth))


def listen_for_images(node: Node, transport: str, callback: Callable[[bytes], None]) -> Listener:
    """Have the serialized bytes of the newest image of ``image``; for ``vpr_kd_ros.serialized_images``."""
    message_type = CompressedImage if transport == "compressed" else Image
    topic = image_topic(node, transport)
    return Listener(node, message_type, topic, callback, qos_profile(IMAGE_QOS, depth=1), serialized=True)


def why_no_image(node: Node, transport: str) -> str:
    """One line for the diagnostics of a node that hears no image."""
    topic = image_topic(node, transport)
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
        return f"{text}; image topics there are: {', '.join(images) or 'none'}; remap with -r image:=TOPIC"
    return f"{text}; large images need config/fastdds.xml, see FASTRTPS_DEFAULT_PROFILES_FILE"
