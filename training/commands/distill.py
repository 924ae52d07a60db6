"""``python -m training distill``."""

from __future__ import annotations

from pathlib import Path

import jsonargparse

from training.commands._options import config_of
from training.commands._training import training_parser
from training.engine.config import TrainConfig
from training.engine.jobs import distill
from training.sessions import load_sessions

DESCRIPTION = """Train a camera student with a teacher's relations. Sessions with poses serve the task loss and the
distillation; sessions without poses (a drive that was simply recorded with camera and LiDAR) serve the distillation.

Example: python -m training distill --config config/training/distilvpr.yaml --teacher runs/teacher \\
--train sessions/train --validation sessions/validation --out runs/student"""


def parser() -> jsonargparse.ArgumentParser:
    """The command's options."""
    result = training_parser("distill", DESCRIPTION)
    result.add_argument("--teacher", type=str, required=True, help="the run folder of a trained teacher")
    return result


def run(args: jsonargparse.Namespace) -> None:
    """Train and print the result."""
    best = distill(
        config_of(TrainConfig, parser(), args),
        load_sessions(args.train),
        load_sessions(args.validation),
        Path(args.out),
        Path(args.teacher),
        args.resume,
    )
    print(f"validation AR@1 {100 * best:.1f} %; run in {args.out}")
