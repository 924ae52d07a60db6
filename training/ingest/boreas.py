"""A sequence of the Boreas data set.

Its sensors' axes need not be known: scans are put into the world by the surveyed poses of the scanner, and from there
into a base frame that stands where the scanner is, level, x along the direction of travel.
"""

from __future__ import annotations

import csv
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from training.ingest.dataset_frames import DatasetConfig, Found, Frame
from training.ingest.select import nearest, spaced_in_place
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.geodesy import course
from vpr_kd_ros.geometry import Floats, Ints, Pose, Trajectory, quaternion_from_yaw

MICROSECOND_NS = 1000
MAX_GAP_NS = 1_000_000_000
COLUMNS = 10  # time in microseconds, east, north, up, three velocities, roll, pitch, heading; more follow


def boreas(folder: Path, config: DatasetConfig) -> Found:
    """Read camera/*.png, lidar/*.bin (both named by microseconds) and applanix/lidar_poses.csv.

    Raises:
        DataError: one of them is missing, or the poses are not as they should be.
    """
    stamps, positions, rotations = _poses(folder / "applanix" / "lidar_poses.csv")
    trajectory = Trajectory(stamps * MICROSECOND_NS, positions, quaternion_from_yaw(course(positions)))
    images = np.array(sorted(_named_by_time(folder / "camera", ".png")), dtype=np.int64)
    if len(images) == 0:
        raise DataError(f"{folder / 'camera'}: holds no .png named by its time in microseconds")
    places, quaternions, posed = trajectory.at(images * MICROSECOND_NS, MAX_GAP_NS)
    scans = nearest(images, stamps)
    offsets_ms = (images - stamps[scans]) / 1e3
    near = np.abs(offsets_ms) <= config.time_tolerance_s * 1e3
    usable = np.flatnonzero(posed & near)
    chosen = usable[spaced_in_place(places[usable], np.zeros(len(usable)), config.keyframe_distance_m, np.inf)]
    frames = []
    for i in chosen.tolist():
        k = int(scans[i])
        base_from_world = Rotation.from_quat(quaternions[i]).inv().as_matrix()
        rotation, translation = base_from_world @ rotations[k], base_from_world @ (positions[k] - places[i])
        cloud = partial(_read_scan, folder / "lidar" / f"{stamps[k]}.bin", rotation, translation)
        image = folder / "camera" / f"{images[i]}.png"
        frames.append(Frame(int(images[i]) * MICROSECOND_NS, image, Pose(places[i], quaternions[i]), cloud))
    drops = Counter(
        {
            "no pose": int((~posed).sum()),
            "no cloud in tolerance": int((posed & ~near).sum()),
            "near the last keyframe": len(usable) - len(chosen),
        }
    )
    return Found(frames, +drops, ["headings are the direction of travel"], offsets_ms.round(3).tolist())


def _named_by_time(folder: Path, suffix: str) -> list[int]:
    return [int(path.stem) for path in folder.glob(f"*{suffix}") if path.stem.isdigit()]


def _poses(path: Path) -> tuple[Ints, Floats, Floats]:
    """Times in microseconds, ascending, positions (N, 3) and world_from_lidar rotations (N, 3, 3)."""
    stamps: list[int] = []
    values: list[list[float]] = []
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            for number, row in enumerate(csv.reader(stream), start=1):
                if number > 1 and row:
                    stamps.append(_stamp(path, number, row))
                    values.append([float(word) for word in row[1:COLUMNS]])
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: not a readable csv of poses: {error}") from error
    table = np.array(values, dtype=np.float64).reshape(-1, COLUMNS - 1)
    if len(table) == 0 or not np.isfinite(table).all():
        raise DataError(f"{path}: holds no poses, or one that is not finite")
    order = np.argsort(np.array(stamps, dtype=np.int64), kind="stable")
    # The devkit's matrices of roll, pitch and heading are those of the inverse turns.
    turned = -table[order, 6:9]
    rotations = Rotation.from_euler("XYZ", turned).as_matrix()
    return np.array(stamps, dtype=np.int64)[order], table[order, :3], np.asarray(rotations, dtype=np.float64)


def _stamp(path: Path, number: int, row: list[str]) -> int:
    if len(row) < COLUMNS or not row[0].isdigit():
        raise DataError(f"{path}: line {number} is not time, east, north, up, velocities, roll, pitch, heading: {row}")
    return int(row[0])


def _read_scan(path: Path, rotation: Floats, translation: Floats) -> NDArray[np.float32]:
    """Points of a scan (x, y, z, intensity, ring, time as float32) moved as given, (M, 3)."""
    try:
        points = np.frombuffer(path.read_bytes(), dtype="<f4").reshape(-1, 6)[:, :3]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a scan of six float32 a point: {error}") from error
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) == 0:
        raise DataError(f"{path}: a scan without points")
    return np.asarray(points @ rotation.T + translation, dtype=np.float32)
