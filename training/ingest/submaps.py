"""Submaps: the scans of a stretch of the drive in one cloud, for LiDARs that see little at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from training.ingest.config import IngestConfig
from training.ingest.scan import Scan
from training.ingest.select import Selection
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.geometry import Floats, Ints

SCAN_STEP_M = 0.1
"""Scans nearer to one another on the way add nothing; a robot that stands would add thousands."""
WAY_STEP_M = 0.5
"""The way is measured from place to place at least this far apart: the noise of the poses in between is no way."""
_REACH = 1 << 20  # voxels on either side of the origin that fit into 21 bits


@dataclass(frozen=True)
class Submaps:
    """Which scans make up each keyframe's cloud.

    Attributes:
        members: of each keyframe, the numbers of the scans on their topic, ascending.
        voxel_m: one point is kept in each cube of this size.
    """

    members: list[list[int]]
    voxel_m: float
    _map_from_base: Floats
    _map_from_scan: Floats

    def place(self, points: NDArray[np.float32], scan: int, keyframe: int) -> NDArray[np.float32]:
        """Points (M, 3) of a scan, in the base frame of its own time, in the base frame of the keyframe."""
        moved = np.linalg.inv(self._map_from_base[keyframe]) @ self._map_from_scan[scan]
        return np.asarray(points @ moved[:3, :3].T + moved[:3, 3], dtype=np.float32)


def plan_submaps(scan: Scan, selection: Selection, config: IngestConfig) -> Submaps | None:
    """Choose the scans within ``submap_m`` travelled of each keyframe; None where no submaps are asked for.

    Raises:
        DataError: submaps are asked for, and there are no poses or no scans.
    """
    if config.submap_m is None:
        return None
    if scan.trajectory is None or "lidar" not in scan.stamps_ns:
        raise DataError("submap_m joins scans by their poses: it needs a LiDAR topic and a pose source")
    trajectory = scan.trajectory
    stamps = scan.stamps_ns["lidar"]
    travelled = _travelled(trajectory.positions)
    positions, quaternions, posed = trajectory.at(stamps, round(config.max_pose_gap_s * 1e9))
    at_scan = _interpolated(stamps, trajectory.stamps_ns, travelled)
    at_keyframe = _interpolated(selection.stamps_ns, trajectory.stamps_ns, travelled)
    usable = _stepped(np.flatnonzero(posed)[np.argsort(at_scan[posed], kind="stable")], at_scan)
    members = []
    for place, own in zip(at_keyframe.tolist(), selection.clouds.tolist(), strict=True):
        first, last = np.searchsorted(at_scan[usable], [place - config.submap_m, place + config.submap_m])
        own_too = {own} if own >= 0 and posed[own] else set()
        members.append(sorted({*usable[first:last].tolist(), *own_too}))
    map_from_scan = np.full((len(stamps), 4, 4), np.nan)
    map_from_scan[posed] = _matrices(positions[posed], quaternions[posed])
    return Submaps(members, config.submap_voxel_m, _matrices(selection.positions, selection.quaternions), map_from_scan)


def thin(points: NDArray[np.float32], voxel_m: float) -> NDArray[np.float32]:
    """The first point (in the order given) of each cube of ``voxel_m``, (M, 3); the order is kept."""
    cells = np.floor(points / voxel_m).astype(np.int64) + _REACH
    points = points[inside := ((cells >= 0) & (cells < 2 * _REACH)).all(axis=1)]
    x, y, z = cells[inside].T
    _, first = np.unique((x << 42) | (y << 21) | z, return_index=True)
    return points[np.sort(first)]


def _travelled(positions: Floats) -> Floats:
    """Metres along the drive at each position (N, 3): those between places so far apart, and straight on from there."""
    at: list[float] = []
    start, way = positions[0].tolist(), 0.0
    for place in positions.tolist():
        beyond = math.dist(place, start)
        at.append(way + beyond)
        if beyond >= WAY_STEP_M:
            start, way = place, way + beyond
    return np.array(at)


def _interpolated(times: Ints, stamps: Ints, values: Floats) -> Floats:
    # From the first stamp: nanoseconds of epoch time do not fit a double exactly.
    return np.asarray(
        np.interp((times - stamps[0]).astype(np.float64), (stamps - stamps[0]).astype(np.float64), values)
    )


def _stepped(order: Ints, places: Floats) -> Ints:
    kept: list[int] = []
    for number in order.tolist():
        if not kept or places[number] - places[kept[-1]] >= SCAN_STEP_M:
            kept.append(number)
    return np.array(kept, dtype=np.int64)


def _matrices(positions: Floats, quaternions: Floats) -> Floats:
    matrices: Floats = np.tile(np.eye(4), (len(positions), 1, 1))
    if len(positions):
        matrices[:, :3, :3] = Rotation.from_quat(quaternions).as_matrix()
        matrices[:, :3, 3] = positions
    return matrices
