"""What the graph says of a topic: its type, what its publishers offer, and the stamp inside a serialized message."""

from __future__ import annotations

import importlib
import struct
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from vpr_kd_ros.bag_topics import TopicQos
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.nodes.recording_quality import Publishers


def message_class(type_name: str) -> Any:
    """The Python class of a type such as ``sensor_msgs/msg/Image``.

    Raises:
        DataError: the package is not installed or has no such message.
    """
    package, _, name = type_name.partition("/msg/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name)
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"message type {type_name!r} is not installed; apt install ros-$ROS_DISTRO-{package.replace('_', '-')}, "
            "or source its workspace"
        ) from error


def has_header(message_type: Any) -> bool:
    """Whether the first field is a ``std_msgs/Header``."""
    return next(iter(message_type.get_fields_and_field_types().values()), "") == "std_msgs/Header"


def header_stamp_ns(serialized: bytes) -> int:
    """The header stamp of a serialized (CDR) message whose first field is a header, nanoseconds."""
    # Byte 1 of the encapsulation tells the byte order; the stamp stands right behind the four bytes of it.
    seconds, nanoseconds = struct.unpack_from("<iI" if serialized[1] & 1 else ">iI", serialized, 4)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def publishers_of(node: Node, topic: str) -> Publishers:
    """Who publishes a topic, as the graph knows them now."""
    found = node.get_publishers_info_by_topic(topic)
    return Publishers(
        types=tuple(dict.fromkeys(str(publisher.topic_type) for publisher in found)),
        profiles=tuple(_offered(publisher.qos_profile) for publisher in found),
    )


def published_topics(node: Node) -> list[str]:
    """Names of the topics that somebody publishes, without the ones every node has."""
    hidden = ("/rosout", "/parameter_events", "/diagnostics")
    return sorted(
        name
        for name, _ in node.get_topic_names_and_types()
        if name not in hidden and not name.endswith("/transition_event") and node.count_publishers(name)
    )


def _offered(profile: QoSProfile) -> TopicQos:
    return TopicQos(
        reliable=profile.reliability == ReliabilityPolicy.RELIABLE,
        transient_local=profile.durability == DurabilityPolicy.TRANSIENT_LOCAL,
        # The graph does not tell the depth of a publisher in another process.
        depth=profile.depth,
    )


def qos_profile(qos: TopicQos, depth: int | None = None) -> QoSProfile:
    """The rclpy profile of a ``TopicQos``, with another depth where one is given."""
    return QoSProfile(
        depth=depth or qos.depth,
        reliability=ReliabilityPolicy.RELIABLE if qos.reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if qos.transient_local else DurabilityPolicy.VOLATILE,
    )
