"""``python -m training inspect``."""

from __future__ import annotations

import jsonargparse

from training.ingest.bag import Bag
from training.ingest.inspect import inspect

DESCRIPTION = """Say what a recorded bag holds (topics, rates, gaps, delays, offsets between camera and LiDAR), what it
lacks for training, and which ingest command fits it. Writes nothing.

Example: python -m training inspect drives/2024-05-03"""


def parser() -> jsonargparse.ArgumentParser:
    """The command's only option: the bags."""
    result = jsonargparse.ArgumentParser(prog="python -m training inspect", description=DESCRIPTION)
    result.add_argument("bags", type=str, nargs="+", help="rosbag2 folders, or .mcap, .db3, .bag files")
    return result


def run(args: jsonargparse.Namespace) -> None:
    """Print the description of each bag."""
    for path in args.bags:
        with Bag(path) as bag:
            print(inspect(bag))
