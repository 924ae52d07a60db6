"""Submaps hold the scans of a stretch where they belong, each point once in a voxel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from support import bags
from support.bags import START_NS, Record
from support.ingested import ingest
from training.ingest import keyframes
from training.ingest.config import IngestConfig
from training.ingest.scan import Scan
from training.ingest.select import select_keyframes
from training.ingest.submaps import plan_submaps, thin
from training.sessions import Session
from vpr_kd_ros.errors import ConfigError, DataError
from vpr_kd_ros.geometry import Trajectory

MS = 1_000_000
PICTURE = np.full((24, 32, 3), 99, dtype=np.uint8)
# Landmarks in the map on a grid of whole metres, so that each has a voxel of its own.
LANDMARKS = np.array([[x + 0.5, y + 0.5, 1.5] for x in range(-5, 40) for y in (-4, 3)])
RANGE_M = 6.0


def at(seconds: float) -> tuple[float, float, float]:
    """Along x at 10 m/s, turning meanwhile."""
    return 10.0 * seconds, 0.0, 0.5 * seconds


def seen_from(x: float, y: float, yaw: float, reach_m: float) -> np.ndarray:
    """Landmarks within reach, in the frame of a robot there, by hand."""
    near = LANDMARKS[np.hypot(LANDMARKS[:, 0] - x, LANDMARKS[:, 1] - y) < reach_m]
    dx, dy = near[:, 0] - x, near[:, 1] - y
    ahead, left = np.cos(yaw) * dx + np.sin(yaw) * dy, -np.sin(yaw) * dx + np.cos(yaw) * dy
    return np.stack([ahead, left, near[:, 2] - 0.5], axis=1).astype(np.float32)


def drive() -> list[Record]:
    """Three seconds: odometry at 50 Hz, images and scans at 10 Hz, the scans 20 ms before."""
    records: list[Record] = []
    for i in range(160):
        stamp = START_NS + i * 20 * MS
        records.append(("/odom", stamp, bags.odometry(stamp, *at(i * 0.02))))
    for i in range(30):
        stamp = START_NS + (40 + 100 * i) * MS
        records.append(("/camera", stamp, bags.image(stamp, PICTURE)))
        scan = seen_from(*at(0.02 + 0.1 * i), RANGE_M)
        records.append(("/points", stamp - 20 * MS, bags.cloud(stamp - 20 * MS, scan)))
    return sorted(records, key=lambda r: r[1])


def session_of(tmp_path: Path, records: list[Record], **values: Any) -> Session:
    path = bags.write_bag(tmp_path / "drive", records)
    config = IngestConfig(
        **{"region": "town", "submap_m": 4.95, "submap_voxel_m": 0.1, "keyframe_distance_m": 0.5, **values}
    )
    return Session(ingest(path, tmp_path / "out", config).session)


def rows(cloud: np.ndarray) -> set[tuple[float, ...]]:
    return {tuple(row) for row in np.round(cloud.astype(float), 2).tolist()}


def naive_submap(keyframe_s: float, reach_m: float) -> np.ndarray:
    """What the scans within reach of the keyframe saw together, in its frame, by a loop."""
    x, y, yaw = at(keyframe_s)
    seen: set[int] = set()
    for i in range(30):
        sx, sy, _ = at(0.02 + 0.1 * i)
        if abs(sx - x) <= reach_m:
            seen |= {n for n, mark in enumerate(LANDMARKS) if np.hypot(mark[0] - sx, mark[1] - sy) < RANGE_M}
    dx, dy = (LANDMARKS[sorted(seen)] - [x, y, 0]).T[:2]
    ahead, left = np.cos(yaw) * dx + np.sin(yaw) * dy, -np.sin(yaw) * dx + np.cos(yaw) * dy
    return np.stack([ahead, left, np.ones(len(seen))], axis=1)


def test_scans_within_reach_are_joined_in_the_keyframes_frame(tmp_path: Path) -> None:
    session = session_of(tmp_path, drive())
    assert len(session) == 30
    for k in range(len(session)):
        expected = naive_submap((session.stamps_ns[k] - START_NS) / 1e9, 4.95)
        distances = np.linalg.norm(session.cloud(k)[:, None] - expected[None], axis=2)
        # Each landmark is there, no point is elsewhere; one on the border of two voxels may be there twice.
        assert distances.min(axis=0).max() < 1e-3
        assert distances.min(axis=1).max() < 1e-3
        assert len(session.cloud(k)) <= 2 * len(expected)
    single = session_of(tmp_path / "single", drive(), submap_m=None)
    assert len(session.cloud(15)) > 1.5 * len(single.cloud(15))
    assert rows(single.cloud(15)) == rows(seen_from(*at(1.52), RANGE_M))


def test_a_broken_scan_is_missing_and_takes_nothing_with_it(tmp_path: Path) -> None:
    records = drive()
    scans = [item for topic, _, item in records if topic == "/points"]
    scans[10].fields[2].name = "height"
    session = session_of(tmp_path, records)
    assert len(session) == 30
    whole = session_of(tmp_path / "whole", drive())
    assert 0 < len(session.cloud(10)) <= len(whole.cloud(10))
    assert rows(session.cloud(20)) == rows(whole.cloud(20))
    far = session_of(tmp_path / "alone", records, submap_m=0.5)
    assert far.info.drops == {"undecodable cloud": 1}


def test_a_robot_that_stands_adds_no_scans(tmp_path: Path) -> None:
    stand = [
        (topic, START_NS + i * MS, bags.cloud(START_NS + i * MS, np.full((1, 3), i + 1, dtype=np.float32)))
        for i in range(0, 500, 10)
        for topic in ["/points"]
    ]
    odometry = [("/odom", START_NS + i * 20 * MS, bags.odometry(START_NS + i * 20 * MS, 0, 0, 0)) for i in range(30)]
    image = [("/camera", START_NS + 250 * MS, bags.image(START_NS + 250 * MS, PICTURE))]
    records = sorted([*stand, *odometry, *image], key=lambda r: r[1])
    cloud = session_of(tmp_path, records).cloud(0)
    assert sorted(cloud[:, 0].tolist()) == [1.0, 251.0]  # the first there, and the keyframe's own


@pytest.mark.parametrize("noise_m", [0.0, 0.003, 0.02])
def test_the_way_is_measured_and_not_the_noise_of_the_poses(noise_m: float) -> None:
    """A minute at 1 m/s, a minute at a standstill, a minute on: poses at 100 Hz, images and scans at 10 Hz."""
    seconds = np.arange(0, 180, 0.01)
    way = np.where(seconds < 60, seconds, np.where(seconds < 120, 60, seconds - 60))
    positions = np.stack([way, 0 * way, 0 * way], axis=1)
    positions += np.random.default_rng(0).normal(0, noise_m, positions.shape)
    trajectory = Trajectory((seconds * 1e9).astype(np.int64), positions, np.tile([0, 0, 0, 1.0], (len(way), 1)))
    stamps = (np.arange(0.05, 179.9, 0.1) * 1e9).astype(np.int64)
    both = {"camera": stamps, "lidar": stamps}
    scan = Scan(stamps_ns=both, times_ns=both, trajectory=trajectory)
    config = IngestConfig(region="town", submap_m=20.0)
    selection = select_keyframes(scan, config)
    submaps = plan_submaps(scan, selection, config)
    assert submaps is not None
    for place in (30.0, 60.0):
        keyframe = int(np.argmin(np.abs(selection.positions[:, 0] - place)))
        reached = np.interp(stamps[submaps.members[keyframe]] / 1e9, seconds, way)
        assert (reached.min(), reached.max()) == pytest.approx((place - 20, place + 20), abs=1.2)
        standing = np.isclose(reached, 60.0).sum()
        assert standing <= 5  # of six hundred


def test_a_scan_is_thinned_once_for_all_its_keyframes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    thinned: list[int] = []

    def counted(points: NDArray[np.float32], voxel_m: float) -> NDArray[np.float32]:
        thinned.append(len(points))
        return thin(points, voxel_m)

    monkeypatch.setattr(keyframes, "thin", counted)
    dense = [
        (topic, stamp, bags.cloud(stamp, np.ones((5000, 3), dtype=np.float32)) if topic == "/points" else item)
        for topic, stamp, item in drive()
    ]
    session = session_of(tmp_path, dense)
    assert thinned.count(5000) == 30  # each is in the clouds of about ten keyframes
    assert all(len(session.cloud(k)) <= 11 for k in range(30))


def test_thinning_keeps_one_point_of_each_voxel() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-3, 3, (3000, 3)).astype(np.float32)
    found = thin(points, 0.5)
    first: dict[tuple[int, ...], list[float]] = {}
    for point in points.tolist():
        first.setdefault(tuple(int(np.floor(c / 0.5)) for c in point), point)
    assert found.tolist() == list(first.values())
    assert thin(np.array([[1e9, 0, 0], [1, 1, 1]], dtype=np.float32), 0.2).tolist() == [[1, 1, 1]]


def test_submaps_need_poses_and_a_positive_length(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="submap_m joins scans by their poses"):
        session_of(tmp_path, drive(), pose_topic="none")
    with pytest.raises(ConfigError, match="submap_m is 0"):
        IngestConfig(region="town", submap_m=0)
