"""``python -m training inspect``."""

from __future__ import annotations

from pathlib import Path

import jsonargparse

from training.ingest.bag import Bag
from training.ingest.gallery import write_gallery
from training.ingest.inspect import inspect
from training.ingest.many import find_bags
from vpr_kd_ros.errors import ConfigError

DESCRIPTION = """Say what a recorded bag holds (topics, rates, gaps, delays, offsets between camera and LiDAR), what it
lacks for training, and which ingest command fits it. Writes nothing but the page of pictures that --html asks for.

Example: python -m training inspect drives/2024-05-03"""


def parser() -> jsonargparse.ArgumentParser:
    """The command's options: the bags, and the page to write."""
    result = jsonargparse.ArgumentParser(prog="python -m training inspect", description=DESCRIPTION)
    result.add_argument("bags", type=str, nargs="+", help="rosbag2 folders, .mcap, .db3, .bag files, folders of these")
    result.add_argument("--html", type=str | None, default=None, help="also write pictures and tables to this one file")
    return result


def run(args: jsonargparse.Namespace) -> None:
    """Print the description of each bag, and write its page where one is asked for."""
    paths = [bag for given in args.bags for bag in find_bags(Path(given))]
    if args.html is not None and len(paths) > 1:
        raise ConfigError(f"--html is given for {len(paths)} bags; give one bag")
    for path in paths:
        with Bag(path) as bag:
            text = inspect(bag)
            print(text)
            if args.html is not None:
                write_gallery(bag, text, args.html)
