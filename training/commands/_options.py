"""Reading a configuration back from a command line."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

import jsonargparse

Config = TypeVar("Config")


def config_of(kind: type[Config], parser: jsonargparse.ArgumentParser, args: jsonargparse.Namespace) -> Config:
    """The dataclass ``kind`` among the arguments that ``parser``, which knows its fields as options, has read."""
    values = vars(parser.instantiate(args))
    known: tuple[Any, ...] = fields(kind)  # type: ignore[arg-type]  # every configuration is a dataclass
    return kind(**{field.name: values[field.name] for field in known})
