"""``python -m training simulate``."""

from __future__ import annotations

from pathlib import Path

import jsonargparse

from training.commands._options import config_of
from training.simulation.dataset import SimulationConfig, write_dataset

DESCRIPTION = """Make the simulated town and write its drives as sessions: OUT/train (some drives with poses, some
without), OUT/validation and OUT/test (other regions, all with poses). A session that is there already from the same
configuration is kept, so an interrupted run goes on where it stopped.

Example: python -m training simulate --out sessions
Larger images: python -m training simulate --out sessions --camera.height 192 --camera.width 256
All options as a file: python -m training simulate --out sessions --print_config > town.yaml, then --config town.yaml"""


def parser() -> jsonargparse.ArgumentParser:
    """The command's options."""
    result = jsonargparse.ArgumentParser(prog="python -m training simulate", description=DESCRIPTION)
    result.add_argument("--config", action="config", help="YAML file with any of the options below")
    result.add_argument("--out", type=str, required=True, help="folder to write the sessions in")
    result.add_argument("--workers", type=int, default=2, help="worker processes")
    result.add_class_arguments(SimulationConfig, None)
    return result


def run(args: jsonargparse.Namespace) -> None:
    """Write the sessions and say where they are."""
    config = config_of(SimulationConfig, parser(), args)
    sessions = write_dataset(Path(args.out), config, args.workers)
    print(f"{len(sessions)} sessions in {args.out}")
