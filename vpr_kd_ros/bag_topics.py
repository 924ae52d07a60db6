"""What a bag says of its topics beside their names: quality of service, and the definition of their type."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from vpr_kd_ros.message_definitions import message_definition, type_hash

FOREVER = {"sec": 9223372036, "nsec": 854775807}


@dataclass(frozen=True)
class TopicQos:
    """What a player needs to offer a topic again as it was: latched topics, for one, are transient_local.

    Attributes:
        reliable: reliable, else best effort.
        transient_local: late subscribers get the last messages, else volatile.
        depth: messages kept.
    """

    reliable: bool = True
    transient_local: bool = False
    depth: int = 10

    def to_yaml(self) -> str:
        """As rosbag2 writes an offered QoS profile: numbers of the rmw enumerations."""
        profile = {
            "history": 1,  # keep last
            "depth": self.depth,
            "reliability": 1 if self.reliable else 2,
            "durability": 1 if self.transient_local else 2,
            "deadline": dict(FOREVER),
            "lifespan": dict(FOREVER),
            "liveliness": 1,  # automatic
            "liveliness_lease_duration": dict(FOREVER),
            "avoid_ros_namespace_conventions": False,
        }
        return str(yaml.safe_dump([profile], default_flow_style=False, sort_keys=False))

    @classmethod
    def from_yaml(cls, text: str) -> TopicQos:
        """The first of the profiles that a bag has for a topic; the usual one where there is none to be read."""
        # Numbers (rosbag2 up to Iron) or names (from Jazzy on) of the rmw enumerations.
        try:
            profile = yaml.safe_load(text)[0]
            return cls(
                reliable=profile["reliability"] in (1, "reliable"),
                transient_local=profile["durability"] in (1, "transient_local"),
                depth=max(1, int(profile["depth"])),
            )
        except (yaml.YAMLError, KeyError, TypeError, IndexError, ValueError):
            return cls()


@dataclass(frozen=True)
class TypeDefinition:
    """What makes a type readable elsewhere: its text, the encoding of the text, and the ``RIHS01_...`` hash."""

    text: str
    encoding: str = "ros2msg"
    hash: str = ""

    @classmethod
    def installed(cls, type_name: str) -> TypeDefinition:
        """That of the message package on this machine.

        Raises:
            DataError: the package is not installed, or has no such message.
        """
        return cls(message_definition(type_name), hash=type_hash(type_name))
