"""What the package's command lines have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from vpr_kd_ros.errors import VprError


def run_command(
    parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], str], arguments: Sequence[str] | None
) -> int:
    """Run a command, print what it tells, or what is wrong, and return the exit status.

    Args:
        parser: of the command line.
        run: returns what there is to tell.
        arguments: the command line; this process's where None.
    """
    try:
        print(run(parser.parse_args(arguments)))
    except VprError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0
