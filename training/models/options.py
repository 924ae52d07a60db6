"""Check options that came from a config file against the signature of the class that takes them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from vpr_kd_ros.errors import ConfigError, did_you_mean


def check_options(name: str, owner: type, options: Mapping[str, Any]) -> None:
    """Refuse options that the constructor of ``owner`` does not know, of another type, or missing.

    Args:
        name: what the user calls ``owner``, for the message.

    Raises:
        ConfigError: naming the option and what is possible.
    """
    parameters = inspect.signature(owner).parameters
    hints = get_type_hints(owner.__init__)  # type: ignore[misc]
    for option, value in options.items():
        if option not in parameters:
            raise ConfigError(
                f"{name} has no option {option!r}{did_you_mean(option, parameters)}; it has {', '.join(parameters)}"
            )
        if not _fits(value, hints[option]):
            kind = hints[option]
            wanted = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
            raise ConfigError(f"{name}: option {option} must be {wanted}, got {value!r}")
    missing = [key for key, p in parameters.items() if p.default is inspect.Parameter.empty and key not in options]
    if missing:
        raise ConfigError(f"{name}: option {missing[0]} is missing")


def _fits(value: object, hint: Any) -> bool:
    """Whether a value from YAML has the wanted type; an int will do for a float, a bool for neither."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if origin is Sequence:
        return isinstance(value, (list, tuple)) and all(_fits(item, get_args(hint)[0]) for item in value)
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, (int, float))
    return isinstance(value, hint)
