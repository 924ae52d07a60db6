"""A frozen dataclass declared as ROS parameters: name, type, default, range and description stand in one place.

    @dataclass(frozen=True)
    class LocalizerParameters:
        candidates: int = parameter(10, "places looked up per image", low=1, high=1000)

``declare`` makes the parameters, ``read`` gives them back as the dataclass, ``check`` judges one new value, and
``from_text`` reads one that a person wrote. Fields may be bool, int, float, str, tuple[str, ...] and tuple[float, ...].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

import yaml
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from vpr_kd_ros.errors import ConfigError, did_you_mean

T = TypeVar("T")
KINDS: dict[Any, tuple[Parameter.Type, str]] = {
    bool: (Parameter.Type.BOOL, "true or false"),
    int: (Parameter.Type.INTEGER, "a whole number"),
    float: (Parameter.Type.DOUBLE, "a number"),
    str: (Parameter.Type.STRING, "a text"),
    tuple[str, ...]: (Parameter.Type.STRING_ARRAY, "a list of texts"),
    tuple[float, ...]: (Parameter.Type.DOUBLE_ARRAY, "a list of numbers"),
}
# Every node has these without declaring them.
ROS_PARAMETERS = ("use_sim_time", "start_type_description_service", "qos_overrides")


def parameter(
    default: Any,
    description: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field that is a ROS parameter.

    Args:
        default: the value where none is given.
        description: what it does, with its unit.
        low, high: the allowed range of a number, both ends included.
        choices: the allowed texts.
    """
    return dataclasses.field(
        default=default, metadata={"description": description, "low": low, "high": high, "choices": choices}
    )


def declare(node: Node, config_type: type[Any]) -> None:
    """Declare every field of a dataclass on a node, and warn of parameters given that nobody declared.

    A value out of its range does not stop the node here: ``read`` reports it.
    """
    hints = get_type_hints(config_type)
    for field in dataclasses.fields(config_type):
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        # Dynamic typing, because ROS refuses a double that is written as 1; ``read`` checks the type instead.
        node.declare_parameter(field.name, default, ParameterDescriptor(dynamic_typing=True))
        try:
            node.set_descriptor(field.name, _descriptor(field, hints[field.name]))
        except InvalidParameterValueException:
            continue


def warn_of_unknown(node: Node) -> list[str]:
    """Warn of parameters that were given to the node and that nothing declared; return their names."""
    # rclpy has no public way to see what was given but not declared.
    given: Mapping[str, Any] = getattr(node, "_parameter_overrides", {})
    # Humble's nodes cannot list the names of their parameters.
    known = node.get_parameters_by_prefix("")
    unknown = [name for name in given if not node.has_parameter(name) and name.split(".")[0] not in ROS_PARAMETERS]
    for name in unknown:
        hint = did_you_mean(name, known)
        node.get_logger().warning(f"parameter {name!r} is not one of this node's{hint}; it has no effect")
    return unknown


def read(node: Node, config_type: type[T]) -> T:
    """The parameters of a node as the dataclass they were declared from.

    Raises:
        ConfigError: a value of another type, out of its range or not among the choices; the message names it.
    """
    hints = get_type_hints(config_type)
    fields = dataclasses.fields(config_type)  # type: ignore[arg-type]
    return config_type(
        **{field.name: _checked(field, hints[field.name], node.get_parameter(field.name).value) for field in fields}
    )


def check(config_type: type[Any], name: str, value: Any) -> Any:
    """A new value of one parameter as the dataclass holds it.

    Raises:
        ConfigError: it is of another type, out of its range or not among the choices; the message names it.
    """
    field = next(field for field in dataclasses.fields(config_type) if field.name == name)
    return _checked(field, get_type_hints(config_type)[name], value)


def from_text(name: str, kind: Any, text: str) -> Any:
    """A text such as a launch argument's as a parameter of some kind; lists are written [A, B], and come back as lists.

    The kind decides, where YAML would guess: 001, 12:30, on and 2026-11-27 are texts where a text is wanted. Ranges and
    choices are left to ``check``.

    Args:
        name: of the parameter, for the error.
        kind: one of ``KINDS``.

    Raises:
        ConfigError: it is no value of that kind; the message names the parameter and what it wants.
    """
    try:
        if kind is bool:
            value = yaml.safe_load(text)
            if type(value) is not bool:
                raise ValueError(text)
            return value
        if kind in (tuple[str, ...], tuple[float, ...]):
            # The base loader leaves everything a text.
            items = yaml.load(text, Loader=yaml.BaseLoader)
            items = [items] if isinstance(items, str) else items
            if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
                raise ValueError(text)
            return items if kind == tuple[str, ...] else [float(item) for item in items]
        return kind(text)
    except (ValueError, yaml.YAMLError):
        raise ConfigError(f"parameter {name!r}: wants {KINDS[kind][1]}, got {text!r}") from None


def _descriptor(field: dataclasses.Field[Any], kind: Any) -> ParameterDescriptor:
    metadata = field.metadata
    descriptor = ParameterDescriptor(
        name=field.name,
        type=KINDS[kind][0].value,
        description=metadata["description"],
        additional_constraints=f"one of {', '.join(metadata['choices'])}" if metadata["choices"] else "",
        dynamic_typing=True,
    )
    low, high = metadata["low"], metadata["high"]
    if low is not None or high is not None:
        if kind is int:
            descriptor.integer_range = [
                IntegerRange(
                    from_value=-(2**63) if low is None else int(low), to_value=2**63 - 1 if high is None else int(high)
                )
            ]
        else:
            descriptor.floating_point_range = [
                FloatingPointRange(
                    from_value=float("-inf") if low is None else float(low),
                    to_value=float("inf") if high is None else float(high),
                )
            ]
    return descriptor


def _checked(field: dataclasses.Field[Any], kind: Any, value: Any) -> Any:
    name, metadata = field.name, field.metadata
    if kind is float and type(value) is int:
        value = float(value)
    if kind in (tuple[str, ...], tuple[float, ...]):
        # An empty list has no element type in ROS and comes back as bytes, or as nothing.
        items = [] if value is None else [value] if isinstance(value, (str, int, float)) else list(value)
        element = (str,) if kind == tuple[str, ...] else (int, float)
        if not all(type(item) in element for item in items):
            raise ConfigError(f"parameter {name!r}: wants {KINDS[kind][1]}, got {value!r}")
        return tuple(element[-1](item) for item in items)
    if type(value) is not kind:
        raise ConfigError(f"parameter {name!r}: wants {KINDS[kind][1]}, got {value!r}")
    low, high = metadata["low"], metadata["high"]
    # Written so that NaN fails too.
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        bounds = f"at least {low}" if high is None else f"at most {high}" if low is None else f"from {low} to {high}"
        raise ConfigError(f"parameter {name!r}: wants a value {bounds}, got {value}")
    if metadata["choices"] and value not in metadata["choices"]:
        hint = did_you_mean(value, metadata["choices"])
        raise ConfigError(f"parameter {name!r}: wants one of {', '.join(metadata['choices'])}, got {value!r}{hint}")
    return value
