"""``python -m training teach``."""

from __future__ import annotations

from pathlib import Path

import jsonargparse

from training.commands._options import config_of
from training.commands._training import training_parser
from training.engine.config import TrainConfig
from training.engine.jobs import teach
from training.sessions import load_sessions

DESCRIPTION = """Train a model on the sessions that have poses: a teacher (LiDAR, or LiDAR and camera), or a student
that learns by itself, for comparison. Sessions without poses are left aside. The best checkpoint on the validation
region is kept in the run folder.

Example: python -m training teach --config config/training/teacher-lidar.yaml \\
--train sessions/train --validation sessions/validation --out runs/teacher"""


def parser() -> jsonargparse.ArgumentParser:
    """The command's options."""
    return training_parser("teach", DESCRIPTION)


def run(args: jsonargparse.Namespace) -> None:
    """Train and print the result."""
    best = teach(
        config_of(TrainConfig, parser(), args),
        load_sessions(args.train),
        load_sessions(args.validation),
        Path(args.out),
        args.resume,
    )
    print(f"validation AR@1 {100 * best:.1f} %; run in {args.out}")
