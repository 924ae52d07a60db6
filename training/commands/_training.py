"""What the teach and distill commands share."""

from __future__ import annotations

import jsonargparse

from training.engine.config import TrainConfig


def training_parser(name: str, description: str) -> jsonargparse.ArgumentParser:
    """A parser of sessions, the run folder and every key of ``TrainConfig``."""
    parser = jsonargparse.ArgumentParser(prog=f"python -m training {name}", description=description)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    parser.add_argument("--train", nargs="+", required=True, help="session folders, or folders of sessions")
    parser.add_argument("--validation", nargs="+", required=True, help="the same, of other regions, with poses")
    parser.add_argument("--out", type=str, required=True, help="the run folder to write")
    parser.add_argument(
        "--resume", type=bool, default=False, help="go on with the killed run in --out, from its last validation"
    )
    parser.add_class_arguments(TrainConfig, None)
    return parser
