"""``python -m training ingest``."""

from __future__ import annotations

import os
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

import jsonargparse

from training.commands._options import config_of
from training.ingest.config import IngestConfig
from training.ingest.ingest import ingest
from training.ingest.many import Result, ingest_many, plan_jobs
from training.ingest.progress import Progress
from training.ingest.report import report
from vpr_kd_ros.errors import ConfigError, DataError

DESCRIPTION = """Turn recorded bags (rosbag2 MCAP or sqlite3, rosbag1) into sessions: keyframes with image, LiDAR cloud
and, where the bag has surveyed positions, pose. Needs no ROS. A damaged MCAP is read as far as it goes. What was
interrupted goes on where it was when the same command is given again; what is finished is left as it is.

Example: python -m training ingest drives/2024-05-03 --out sessions/train --region harbour --condition rain

A drive with camera and LiDAR whose only poses are odometry: add --labelled false.

Several bags, or a folder of them, are read at once: python -m training ingest drives --out sessions/train --region auto
Region, condition and name of each stand in the YAML file that --config names, see config/ingest.yaml. A bag that fails
does not stop the others; it is named at the end."""


def parser() -> jsonargparse.ArgumentParser:
    """The command's options: those of ``IngestConfig``, the bags and the output folder."""
    result = jsonargparse.ArgumentParser(prog="python -m training ingest", description=DESCRIPTION)
    result.add_argument("--config", action="config", help="YAML file with any of the options below")
    result.add_argument("bags", type=str, nargs="+", help="rosbag2 folders, .mcap, .db3, .bag files, folders of these")
    result.add_argument("--out", type=str, required=True, help="folder in which each bag becomes a session folder")
    result.add_argument("--jobs", type=int | None, default=None, help="bags read at once (default: one a processor)")
    result.add_argument(
        "--per_bag", type=dict[str, dict[str, Any]], default={}, help="name of a bag to options that it has instead"
    )
    hints = get_type_hints(IngestConfig)
    for option in fields(IngestConfig):
        needed = {"required": True} if option.default is MISSING else {"default": option.default}
        result.add_argument(f"--{option.name}", type=hints[option.name], help=option.metadata["help"], **needed)
    return result


def run(args: jsonargparse.Namespace) -> None:
    """Ingest each bag and print what came of it.

    Raises:
        DataError: a bag failed; the others were ingested.
    """
    config = config_of(IngestConfig, parser(), args)
    jobs, notices = plan_jobs(args.bags, config, args.per_bag)
    if args.jobs is not None and args.jobs < 1:
        raise ConfigError(f"--jobs is {args.jobs}; it must be 1 or more")
    print("".join(f"NOTICE {notice}\n" for notice in notices), end="")
    if len(jobs) == 1:
        for outcome in ingest(jobs[0].path, Path(args.out), jobs[0].config, Progress()):
            print(report(outcome))
        return
    results = ingest_many(jobs, Path(args.out), args.jobs or len(os.sched_getaffinity(0)), _print)
    if failed := [result.error for result in results if result.error]:
        raise DataError("\n  ".join([f"{len(failed)} of {len(jobs)} bags failed:", *failed]))


def _print(result: Result) -> None:
    for outcome in result.outcomes:
        print(report(outcome), flush=True)
    if result.error:
        print(f"{result.job.path}: FAILED, see the end", flush=True)
