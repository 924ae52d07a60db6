"""``python -m training ingest``."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path
from typing import get_type_hints

import jsonargparse

from training.ingest.config import IngestConfig
from training.ingest.ingest import ingest
from training.ingest.report import report
from vpr_kd_ros.errors import ConfigError

DESCRIPTION = """Turn recorded bags (rosbag2 MCAP or sqlite3, rosbag1) into sessions: keyframes with image, LiDAR cloud
and, where the bag has surveyed positions, pose. Needs no ROS. A damaged MCAP is read as far as it goes.

Example: python -m training ingest drives/2024-05-03 --out sessions/train --region harbour --condition rain

A drive with camera and LiDAR whose only poses are odometry: add --labelled false."""


def parser() -> jsonargparse.ArgumentParser:
    """The command's options: those of ``IngestConfig``, the bags and the output folder."""
    result = jsonargparse.ArgumentParser(prog="python -m training ingest", description=DESCRIPTION)
    result.add_argument("--config", action="config", help="YAML file with any of the options below")
    result.add_argument("bags", type=str, nargs="+", help="rosbag2 folders, or .mcap, .db3, .bag files")
    result.add_argument("--out", type=str, required=True, help="folder in which each bag becomes a session folder")
    hints = get_type_hints(IngestConfig)
    for option in fields(IngestConfig):
        needed = {"required": True} if option.default is MISSING else {"default": option.default}
        result.add_argument(f"--{option.name}", type=hints[option.name], help=option.metadata["help"], **needed)
    return result


def run(args: jsonargparse.Namespace) -> None:
    """Ingest each bag and print what came of it."""
    if args.name is not None and len(args.bags) > 1:
        raise ConfigError(f"--name {args.name} is given for {len(args.bags)} bags; give one bag, or no name")
    config = IngestConfig(**{option.name: getattr(args, option.name) for option in fields(IngestConfig)})
    for bag in args.bags:
        print(report(ingest(bag, Path(args.out), config)))
