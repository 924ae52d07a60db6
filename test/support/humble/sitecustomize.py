"""Makes of Jazzy's rclpy what Humble's is, in every process that has this folder on its path.

After the branch ``humble`` of ros2/rclpy: nodes lack what came later, an executor calls back with the message alone,
and what is known of a message has two entries, of which Humble's Cyclone DDS leaves the one 0.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

import rclpy.lifecycle
from rclpy.executors import Executor, await_or_execute
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.subscription import Subscription

LATER_MODULES = (
    "clock_type",
    "destroyable",
    "event_handler",
    "logging_service",
    "parameter_client",
    "parameter_event_handler",
    "service_introspection",
    "type_description_service",
    "type_hash",
)
LATER = (
    "add_post_set_parameters_callback",
    "add_pre_set_parameters_callback",
    "count_clients",
    "count_services",
    "get_fully_qualified_node_names",
    "list_parameters",
    "remove_post_set_parameters_callback",
    "remove_pre_set_parameters_callback",
    "wait_for_node",
)
take_with_numbers = rclpy_implementation.Subscription.take_message


def take_message(subscription: Any, message_type: Any, raw: bool) -> tuple[Any, dict[str, int]] | None:
    taken = take_with_numbers(subscription, message_type, raw)
    return taken and (taken[0], {"source_timestamp": taken[1]["source_timestamp"], "received_timestamp": 0})


def take_subscription(executor: Executor, subscription: Subscription) -> Callable[[], Awaitable[None]]:
    with subscription.handle:
        taken = subscription.handle.take_message(subscription.msg_type, subscription.raw)

    async def execute() -> None:
        if taken is not None:
            await await_or_execute(subscription.callback, taken[0])

    return execute


for name in LATER_MODULES:
    # Jazzy's own have been imported by now; nobody else can.
    sys.modules[f"{rclpy.__name__}.{name}"] = None
for name in LATER:
    delattr(Node, name)
# Any callback is taken there; how many arguments it wants shows when it is called.
del Subscription.callback, Subscription.CallbackType, Subscription.get_publisher_count
rclpy_implementation.Subscription.take_message = take_message
Executor._take_subscription = take_subscription
