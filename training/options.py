"""Options that a configuration file or a command line holds: objects built from them, and unknown ones refused."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from vpr_kd_ros.errors import ConfigError, did_you_mean

REFUSALS = tuple(
    re.compile(pattern)
    for pattern in (
        r"unrecognized arguments: --(?P<key>[\w.-]+)",
        r"Option '(?P<key>[^']+)' is not accepted",
        r"Group '(?P<group>[^']+)' does not accept option '(?P<key>[^']+)'",
    )
)
"""How jsonargparse says that it does not know a key of the command line or of a file."""


def with_near_key(message: str, known: Iterable[str]) -> str:
    """The message, and where it refuses an unknown key the nearest of the ``known`` ones, which are dotted."""
    for refusal in REFUSALS:
        found = refusal.search(message)
        if found:
            parts = found.groupdict()
            key = f"{parts['group']}.{parts['key']}" if parts.get("group") else parts["key"]
            return message + did_you_mean(key, known)
    return message


def choice(kind: str, value: str, known: Iterable[str]) -> str:
    """Return ``value`` where it is one of ``known``.

    Raises:
        ConfigError: it is not; the message lists ``known`` and calls the value a ``kind``.
    """
    known = list(known)
    if value not in known:
        raise ConfigError(f"no {kind} {value!r}{did_you_mean(str(value), known)}; there is {', '.join(known)}")
    return value


def build(kind: str, table: Mapping[str, type], name: str, options: Mapping[str, Any]) -> Any:
    """Return ``table[name](**options)``.

    Args:
        kind: what the table holds, for messages ("model", "distillation method").
        table: classes by name.
        name: the class to build.
        options: keyword arguments of its constructor.

    Raises:
        ConfigError: no such name, an option that the class does not have, one of another type, or one that it needs is
            not given.
    """
    choice(kind, name, table)
    parameters = {key: p for key, p in inspect.signature(table[name]).parameters.items() if p.kind is not p.VAR_KEYWORD}
    hints = get_type_hints(table[name].__init__)  # type: ignore[misc]
    for key, value in options.items():
        if key not in parameters:
            known = ", ".join(parameters) or "none"
            raise ConfigError(f"{kind} {name!r} has no option {key!r}{did_you_mean(key, parameters)}; it has: {known}")
        if key in hints and not _fits(value, hints[key]):
            hint = hints[key]
            wanted = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
            raise ConfigError(f"{kind} {name!r}: option {key} must be {wanted}, got {value!r}")
    missing = [key for key, p in parameters.items() if p.default is p.empty and key not in options]
    if missing:
        raise ConfigError(f"{kind} {name!r} needs the option {', '.join(map(repr, missing))}")
    return table[name](**options)


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
