"""What the graph says of a topic: its type, what its publishers offer, and the stamp inside a serialized message."""

from __future__ import annotations

import importlib
import struct
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from vpr_kd_ros.errors import DataError
from vpr_kd_ros.recording import TopicQos


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


def topic_type(node: Node, topic: str) -> str | None:
    """The type of a topic as its publishers announce it; None where nobody publishes it."""
    publishers = node.get_publishers_info_by_topic(topic)
    return str(publishers[0].topic_type) if publishers else None


def published_topics(node: Node) -> list[str]:
    """Names of the topics that somebody publishes, without the ones every node has."""
    hidden = ("/rosout", "/parameter_events", "/diagnostics")
    return sorted(
        name
        for name, _ in node.get_topic_names_and_types()
        if name not in hidden and not name.endswith("/transition_event") and node.count_publishers(name)
    )


def offered_qos(node: Node, topic: str) -> TopicQos:
    """What all the publishers of a topic offer at least: a subscription with it hears every one of them."""
    profiles = [publisher.qos_profile for publisher in node.get_publishers_info_by_topic(topic)]
    return TopicQos(
        reliable=all(profile.reliability == ReliabilityPolicy.RELIABLE for profile in profiles),
        transient_local=all(profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for profile in profiles),
        depth=max((profile.depth for profile in profiles), default=0) or 10,
    )


def qos_profile(qos: TopicQos, depth: int | None = None) -> QoSProfile:
    """The rclpy profile of a ``TopicQos``, with another depth where one is given."""
    return QoSProfile(
        depth=depth or qos.depth,
        reliability=ReliabilityPolicy.RELIABLE if qos.reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if qos.transient_local else DurabilityPolicy.VOLATILE,
    )
