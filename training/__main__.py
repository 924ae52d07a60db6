"""``python -m training COMMAND``: the command line of the training half.

Each command is a module of ``training.commands`` with ``parser()`` and ``run(args)``; only the one asked for is
imported, so that help comes at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from argparse import ArgumentError
from typing import Any

from vpr_kd_ros.errors import VprError, did_you_mean

COMMANDS = {
    "simulate": "make the simulated town and write its drives as sessions",
    "drive": "drive the simulated town as a robot that publishes camera, LiDAR and odometry (needs ROS 2)",
    "inspect": "say what a recorded bag holds, what it lacks, and how to ingest it",
    "recover": "write what is readable of a damaged bag to a new one",
    "ingest": "turn recorded bags into sessions",
    "ingest-dataset": "turn folders of public data sets into sessions",
    "label": "write semantic labels of sessions with a segmentation network of your choice",
    "methods": "list the distillation methods, the teachers and the students",
    "teach": "train a model on the labelled sessions: a teacher, or a student that learns by itself",
    "distill": "train a camera student with a teacher's relations, on every session",
    "reduce": "shorten the descriptors of a trained model by a PCA",
    "evaluate": "measure recall between traverses for a trained model",
    "export": "write a trained student as the artefact that the robot loads",
    "benchmark": "re-run the papers' comparisons: every method, several seeds, tables and a report",
    "demo": "the whole mission on the simulated town, with a report",
}


def usage() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        ["usage: python -m training COMMAND [options]", "", *lines, "", "python -m training COMMAND --help tells more."]
    )


def main(argv: list[str]) -> int:
    """Run one command; returns the exit status: 0 done, 1 an error the user can mend, 2 a wrong command line."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        print(f"error: no command {name!r}{did_you_mean(name, COMMANDS)}\n\n{usage()}", file=sys.stderr)
        return 2
    command = importlib.import_module(f"training.commands.{name.replace('-', '_')}")
    parser = command.parser()
    try:
        command.run(_parse(parser, rest))
    except ArgumentError as error:
        print(f"error: {error}\n{parser.prog} --help lists the options.", file=sys.stderr)
        return 2
    except VprError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has gone: nothing is wrong, and nothing more can be printed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _parse(parser: Any, arguments: list[str]) -> Any:
    """The arguments read; an unknown one is refused with the nearest known one, and without the list of all.

    Raises:
        ArgumentError: they are not what the command takes.
    """
    parser.exit_on_error = False
    try:
        return parser.parse_args(arguments)
    except ArgumentError as error:
        from training.options import with_near_key

        known = parser.get_defaults(skip_validation=True).keys()
        raise ArgumentError(None, with_near_key(str(error), known)) from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
