"""``python -m training demo``."""

from __future__ import annotations

from pathlib import Path

import jsonargparse

from training.commands._options import config_of
from training.demo.pipeline import DemoConfig, run_demo

DESCRIPTION = """The whole mission on the simulated town: drives are simulated, one is recorded over ROS 2 and ingested,
a LiDAR teacher is trained, a camera student learns from it, is exported, a place map is built and the localizer finds
its place live. Ends with OUT/summary.json and OUT/report.html.

Example: python -m training demo --out out/demo"""


def parser() -> jsonargparse.ArgumentParser:
    """The command's options."""
    result = jsonargparse.ArgumentParser(prog="python -m training demo", description=DESCRIPTION)
    result.add_argument(
        "--out", type=str, default="out/demo", help="folder to write; an earlier demo in it is replaced"
    )
    result.add_class_arguments(DemoConfig, None)
    return result


def run(args: jsonargparse.Namespace) -> None:
    """Run it and print the headline."""
    config = config_of(DemoConfig, parser(), args)
    summary = run_demo(Path(args.out), config)
    live = summary["live"]
    percent = "-" if live["precision"] is None else f"{100 * live['precision']:.0f} %"
    print(
        f"\nAR@1 on regions never seen: teacher {100 * summary['teacher_ar1']['ar1']:.1f} %, "
        f"student by itself {100 * summary['student_plain_ar1']['ar1']:.1f} %, "
        f"distilled {100 * summary['student_distilled_ar1']['ar1']:.1f} %\n"
        f"live in {live['condition']}: {live['frames']} frames, {live['accepted']} accepted, precision {percent}\n"
        f"{args.out}/summary.json, {args.out}/report.html; {summary['seconds']['total'] / 60:.1f} minutes"
    )
