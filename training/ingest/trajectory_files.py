"""Trajectories that SLAM and surveying tools write: TUM and KITTI text files."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from vpr_kd_ros.errors import ConfigError, DataError
from vpr_kd_ros.geometry import Floats, Trajectory

FORMATS = ("tum", "kitti")
ROTATION_TOLERANCE = 1e-2
"""Largest deviation of a rotation matrix from orthonormal: files with few digits have some."""


def read_trajectory(path: str | Path, kind: str, stamps: str | Path | None) -> Trajectory:
    """Read the poses of the base.

    Args:
        path: TUM: a line ``time x y z qx qy qz qw`` for each pose; KITTI: twelve numbers, the rows of [R | t].
        kind: "tum" or "kitti".
        stamps: KITTI: the file with one time a line. Times are seconds of the clock that stamps the images.

    Raises:
        ConfigError: KITTI poses without stamps, or another kind.
        DataError: a file cannot be read, or a line is not as above.
    """
    if kind == "tum":
        times, values = _table(Path(path), 8)
        return Trajectory(np.array(times, dtype=np.int64), values[:, 1:4], values[:, 4:8])
    if kind != "kitti":
        raise ConfigError(f"trajectory_format {kind!r}; known: {', '.join(FORMATS)}")
    if stamps is None:
        raise ConfigError(f"{path}: KITTI poses have no times: give their file with --trajectory_stamps")
    _, values = _table(Path(path), 12)
    times, _ = _table(Path(stamps), 1)
    if len(times) != len(values):
        raise DataError(f"{stamps}: {len(times)} times for the {len(values)} poses of {path}")
    matrices = values.reshape(-1, 3, 4)
    rotations = matrices[:, :, :3]
    wrong = np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2)) > ROTATION_TOLERANCE
    wrong |= np.linalg.det(rotations) < 0
    if wrong.any():
        raise DataError(f"{path}: pose {int(np.flatnonzero(wrong)[0]) + 1} is no rotation and translation")
    return Trajectory(np.array(times, dtype=np.int64), matrices[:, :, 3], Rotation.from_matrix(rotations).as_quat())


def _table(path: Path, columns: int) -> tuple[list[int], Floats]:
    """First column as integer nanoseconds (float64 has not the digits for the time of day), and all columns."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable text file: {error}") from error
    times: list[int] = []
    rows: list[list[float]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split("#", 1)[0].replace(",", " ").split()
        if not words:
            continue
        try:
            row = [float(word) for word in words]
            nanoseconds = int(Decimal(words[0]).scaleb(9).to_integral_value())
        except (ValueError, InvalidOperation, OverflowError):
            row, nanoseconds = [], 0
        if len(row) != columns or not np.isfinite(row).all():
            raise DataError(f"{path}: line {number} is not {columns} number(s): {line.strip()[:80]!r}")
        times.append(nanoseconds)
        rows.append(row)
    if not rows:
        raise DataError(f"{path}: it holds no line with numbers")
    return times, np.array(rows, dtype=np.float64)
