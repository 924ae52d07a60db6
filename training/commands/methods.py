"""``python -m training methods``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import jsonargparse

from training.distillation import METHODS, DistillationMethod
from training.models import MODELS

DESCRIPTION = """List what can be trained: the distillation methods, the teachers and the students, by the names that
method.name and model.name take. Every method has a configuration of its name in config/training, whose head says
which teacher it wants first and the command that trains it.

Example: python -m training methods"""


def parser() -> jsonargparse.ArgumentParser:
    """The command's options."""
    return jsonargparse.ArgumentParser(prog="python -m training methods", description=DESCRIPTION)


def run(args: jsonargparse.Namespace) -> None:
    """Print the lists."""
    print(overview())


def overview() -> str:
    """Methods, teachers and students, each with the first line of its class's documentation."""
    students = {
        name: kind
        for name, kind in MODELS.items()
        if not (kind.uses_clouds or kind.uses_labels or kind.depends_on_batch)
    }
    parts: dict[str, Mapping[str, type]] = {
        "distillation methods (distill --config config/training/NAME.yaml)": METHODS,
        "teachers, which read more than one camera image (--model.name)": {
            name: kind for name, kind in MODELS.items() if name not in students
        },
        "students, and teachers of smaller ones, which read one camera image (--model.name)": students,
    }
    width = max(len(name) for table in parts.values() for name in table)
    blocks = []
    for title, table in parts.items():
        lines = [f"  {name:<{width}}  {_described(kind)}" for name, kind in table.items()]
        blocks.append("\n".join([f"{title}:", *lines]))
    return "\n\n".join(blocks)


def _described(kind: type) -> str:
    if issubclass(kind, DistillationMethod):
        return f"{kind.paper}. {_first_line(kind)} Needs {kind.needs}."
    return _first_line(kind)


def _first_line(kind: type) -> str:
    return (inspect.getdoc(kind) or "").partition("\n")[0]
