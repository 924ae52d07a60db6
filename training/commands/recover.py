"""``python -m training recover``."""

from __future__ import annotations

import jsonargparse

from training.ingest.recover import recover

DESCRIPTION = """Write what is readable of a damaged MCAP bag (its recorder was killed, its disk was full, bytes are
wrong) to a new bag, and say what was lost. The damaged bag is left as it is.

Example: python -m training recover drives/2024-05-03 --out drives/2024-05-03-recovered"""


def parser() -> jsonargparse.ArgumentParser:
    """The command's options: the damaged bag and the new one."""
    result = jsonargparse.ArgumentParser(prog="python -m training recover", description=DESCRIPTION)
    result.add_argument("bag", type=str, help="rosbag2 folder or .mcap file")
    result.add_argument("--out", type=str, required=True, help="folder of the new bag; it must not exist")
    return result


def run(args: jsonargparse.Namespace) -> None:
    """Recover the bag and print what came of it."""
    print(recover(args.bag, args.out))
