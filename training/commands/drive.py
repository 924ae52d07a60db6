"""``python -m training drive``."""

from __future__ import annotations

import jsonargparse

from training.commands._options import config_of
from training.simulation.robot import drive, parse_wait_for
from training.simulation.schedule import RobotConfig

DESCRIPTION = """Drive the simulated town as a robot: publishes camera/image_raw, lidar/points, odom (drifting),
ground_truth/odom and /clock, and ends when the drive is over; with --rear_camera true also rear_camera/image_raw.
Needs ROS 2; start other nodes with use_sim_time.
Big messages want the shared-memory profile: export FASTRTPS_DEFAULT_PROFILES_FILE=config/fastdds.xml

Example: python -m training drive --region test-0 --condition night --wait_for camera/image_raw=1 odom=1"""


def parser() -> jsonargparse.ArgumentParser:
    """The command's options."""
    result = jsonargparse.ArgumentParser(prog="python -m training drive", description=DESCRIPTION)
    result.add_argument("--config", action="config", help="YAML file with any of the options below")
    result.add_argument("--wait_for", type=str, nargs="+", default=[], help="TOPIC=COUNT subscribers to wait for first")
    result.add_argument("--timeout_s", type=float, default=60.0, help="how long to wait for them, seconds")
    result.add_class_arguments(RobotConfig, None)
    return result


def run(args: jsonargparse.Namespace) -> None:
    """Drive and say how far."""
    config = config_of(RobotConfig, parser(), args)
    drive(config, parse_wait_for(args.wait_for), args.timeout_s)
    print(f"drove {config.distance_m:.0f} m of {config.region} under {config.condition}")
