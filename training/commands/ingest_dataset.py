"""``python -m training ingest-dataset``."""

from __future__ import annotations

import jsonargparse

from training.commands._options import config_of
from training.ingest.areas import BOXES_HELP, MARGIN_HELP
from training.ingest.dataset_frames import SUBMAP_TABLES, DatasetConfig
from training.ingest.datasets import FORMATS, ingest_dataset
from vpr_kd_ros.errors import DataError

DESCRIPTION = """Turn folders of public data sets into sessions, one for each folder, named as the folder.

utm-images: images named @UTM_east@UTM_north@...@.jpg, as the benchmarks of visual place recognition have them.
robotcar: one run of Oxford RobotCar (stereo/centre/*.png, named by microseconds) with PointNetVLAD's
pointcloud_locations_20m.csv and pointcloud_20m/*.bin, or the same of 20m_10overlap (--locations says which, where a run
has both); --submaps takes those of one of its pickles alone.
boreas: one sequence of Boreas (camera/*.png, lidar/*.bin, applanix/lidar_poses.csv).

A folder that fails does not stop the others; it is named at the end. What is finished is left as it is when the same
command is given again.

Example: python -m training ingest-dataset --format robotcar 2014-05-19 --out sessions/train --region oxford
"""
SUBMAPS_HELP = (
    "robotcar: a pickle of PointNetVLAD (training_queries_baseline, oxford_evaluation_database or -query): only the "
    "submaps that it lists become keyframes, read from the folder that it names; nothing but plain values is read of it"
)
LOCATIONS_HELP = f"robotcar: {' or '.join(SUBMAP_TABLES)}, where a run has both and no --submaps is given"


def parser() -> jsonargparse.ArgumentParser:
    """The command's options: the format, the folders, the output folder and those of ``DatasetConfig``."""
    result = jsonargparse.ArgumentParser(prog="python -m training ingest-dataset", description=DESCRIPTION)
    result.add_argument("folders", type=str, nargs="+", help="folders of the data set, each one drive")
    result.add_argument("--format", type=str, required=True, help=" or ".join(FORMATS))
    result.add_argument("--out", type=str, required=True, help="folder in which each folder becomes a session")
    result.add_argument("--region", type=str, required=True, help="place of the drives")
    result.add_argument("--condition", type=str, default="unknown", help="light, weather or season")
    result.add_argument("--time_tolerance_s", type=float, default=0.1, help="robotcar: between an image and its submap")
    result.add_argument("--cloud_scale", type=float, default=1.0, help="robotcar: metres in a unit of the submaps")
    result.add_argument("--submaps", type=str | None, default=None, help=SUBMAPS_HELP)
    result.add_argument("--locations", type=str | None, default=None, help=LOCATIONS_HELP)
    result.add_argument("--keyframe_distance_m", type=float, default=1.0, help="boreas: between keyframes")
    result.add_argument("--areas", type=dict[str, list[float]] | None, default=None, help=BOXES_HELP)
    result.add_argument("--area_margin_m", type=float, default=25.0, help=MARGIN_HELP)
    result.add_argument("--max_image_side_px", type=int | None, default=None, help="shrink longer images")
    return result


def run(args: jsonargparse.Namespace) -> None:
    """Write each folder's sessions and print what came of it.

    Raises:
        DataError: a folder failed; the others were ingested.
    """
    config = config_of(DatasetConfig, parser(), args)
    errors = [_ingest(args.format, folder, args.out, config) for folder in args.folders]
    if failed := [error for error in errors if error]:
        raise DataError("\n  ".join([f"{len(failed)} of {len(args.folders)} folders failed:", *failed]))


def _ingest(kind: str, folder: str, out: str, config: DatasetConfig) -> str:
    """Print what came of a folder; returns what is wrong with it, empty where nothing is."""
    try:
        written = ingest_dataset(kind, folder, out, config)
    except DataError as error:
        print(f"{folder}: FAILED, see the end", flush=True)
        return str(error)
    for session in written:
        print(f"{session.path}: {session.keyframes} keyframes")
        print("".join(f"  NOTICE {notice}\n" for notice in session.notices), end="", flush=True)
    return ""
