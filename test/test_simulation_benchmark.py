"""The benchmark town: look-alike stretches, drives both ways, and worlds that stay what they were."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from training.benchmark.suite import load_suite
from training.commands import simulate
from training.commands._options import config_of
from training.evaluation.protocol import evaluate
from training.evaluation.results import Protocol
from training.sessions import Session
from training.simulation.camera import CameraConfig
from training.simulation.dataset import Drive, SimulationConfig, plan, write_dataset, write_drive
from training.simulation.lidar import LidarConfig
from training.simulation.look_alike import choose_look_alikes
from training.simulation.mesh import Kind, MeshBuilder
from training.simulation.scene import Scene
from training.simulation.schedule import RobotConfig
from training.simulation.town import Town, TownConfig, build_town
from training.simulation.traverse import LANE_M, DriveConfig, Traverse
from training.simulation.vehicles import Traffic
from vpr_kd_ros.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
TOWN = TownConfig(loop_length_m=240.0, zone_length_m=60.0, look_alike=0.3)
TINY = SimulationConfig(
    training_regions=1,
    validation_regions=1,
    test_regions=0,
    labelled=("sun",),
    unlabelled=("night",),
    held_out=(),
    both_ways=True,
    town=TOWN,
    camera=CameraConfig(height=24, width=32),
    lidar=LidarConfig(beams=6, columns=60),
    drive=DriveConfig(spacing_m=40.0),
)
EXACT = LidarConfig(noise_m=0.0, dropout=0.0)


def no_cars() -> Traffic:
    mesh, surfaces = MeshBuilder().build()
    return Traffic(mesh, (), surfaces)


def benchmark_town() -> SimulationConfig:
    parser = simulate.parser()
    arguments = ["--config", str(ROOT / "config/benchmark-town.yaml"), "--out", "x"]
    return config_of(SimulationConfig, parser, parser.parse_args(arguments))


BENCHMARK = benchmark_town()


def drive(config: SimulationConfig, region: str, condition: str, reverse: bool = False, **changes: Any) -> Traverse:
    parts = {"town": config.town, "camera": config.camera, "lidar": config.lidar, "drive": config.drive, **changes}
    return Traverse(**parts, seed=config.seed, region=region, condition=condition, reverse=reverse)


@pytest.mark.parametrize(
    ("config", "region", "condition", "reverse", "brightness", "points", "middle", "position"),
    [
        (
            SimulationConfig(), "train-0", "sun", False,
            [[149.9, 204.2, 148.1, 98.1], [92.7, 122.0, 112.8, 88.7], [100.0, 101.5, 87.3, 109.1]],
            6921, (0.943, -1.971, 3.038), (124.5325, 5.0271),
        ),
        (
            SimulationConfig(), "test-1", "night", False,
            [[39.4, 56.6, 56.5, 38.9], [55.6, 70.7, 62.9, 62.8], [26.1, 38.6, 35.6, 32.7]],
            6580, (-1.298, 3.338, 3.124), (130.1846, 3.4072),
        ),
        (
            BENCHMARK, "test-0", "sun", True,
            [[147.1, 181.5, 183.9, 94.4], [140.7, 148.1, 126.2, 85.9], [95.8, 106.8, 65.2, 54.2]],
            7115, (-0.217, -2.949, 3.095), (113.8438, 3.5227),
        ),
        (
            BENCHMARK, "train-5", "snow", False,
            [[204.7, 203.2, 203.5, 204.5], [157.1, 196.1, 187.2, 174.4], [158.9, 155.0, 149.1, 157.3]],
            6178, (0.792, -0.192, 2.671), (137.9767, 2.5932),
        ),
    ],
    ids=["default sun", "default night", "benchmark back", "benchmark snow"],
)  # fmt: skip
def test_the_worlds_of_this_version_still_look_the_same(
    config: SimulationConfig, region: str, condition: str, reverse: bool,
    brightness: list[list[float]], points: int, middle: tuple[float, ...], position: tuple[float, ...],
) -> None:  # fmt: skip
    """Where this fails on purpose, raise WORLD_VERSION. The default world's figures are older than look-alikes.

    Means of the first frame instead of a hash: libraries round differently on other processors.
    """
    traverse = drive(config, region, condition, reverse)
    image, _ = traverse.photograph(0.0)
    cloud, _ = traverse.scan(0.0)
    np.testing.assert_allclose(image.reshape(3, 32, 4, 32, 3).mean((1, 3, 4)), brightness, atol=0.2)
    assert len(cloud) == pytest.approx(points, abs=3)
    np.testing.assert_allclose(cloud.mean(axis=0), middle, atol=0.01)
    np.testing.assert_allclose(traverse.pose(0.0).position[:2], position, atol=1e-3)


def test_data_sets_without_the_new_options_are_recognised_as_before(tmp_path: Path) -> None:
    """Sessions say what they were made from; an option that is off must not make old ones look foreign."""
    plain = replace(TINY, both_ways=False, town=replace(TOWN, look_alike=0.0))
    write_drive(tmp_path, plain, Drive("train", "train-0", "sun", True))
    source = Session(tmp_path / "train/train-0-sun").info.sources[0]
    assert set(source) == {"simulator", "world_version", "seed", "posed", "config"}
    assert source["world_version"] == 2
    assert source["config"]["town"] == {"loop_length_m": 240.0, "zone_length_m": 60.0, "tree_density": 1.0}
    write_drive(tmp_path, TINY, Drive("train", "train-0", "sun", True, reverse=True))
    source = Session(tmp_path / "train/train-0-sun-back").info.sources[0]
    assert source["reverse"] is True
    assert source["config"]["town"] == asdict(TOWN)


def test_the_benchmark_town_is_what_its_card_says() -> None:
    drives = plan(BENCHMARK)
    assert len({d.name for d in drives}) == len(drives) == 144
    assert {d.name for d in drives if d.region == "test-0" and d.condition == "dusk"} == {
        "test-0-dusk",
        "test-0-dusk-back",
    }
    for way in (False, True):
        training = [d for d in drives if d.part == "train" and d.reverse == way]
        assert {d.condition for d in training if d.posed} == {"sun", "overcast"}
        assert {d.condition for d in training if not d.posed} == {"night", "fog", "rain", "snow"}
        assert len(training) == 36
    assert {d.condition for d in drives} - {d.condition for d in drives if d.part != "test"} == {"autumn", "dusk"}
    assert [len({d.region for d in drives if d.part == part}) for part in ("train", "validation", "test")] == [6, 2, 3]


@pytest.mark.parametrize("name", ["distilvpr", "structvpr", "lsdnet", "low-quality"])
def test_suites_run_on_the_benchmark_town_and_heed_headings(name: str) -> None:
    suite = load_suite(name)
    own = replace(suite.simulation, labelled=BENCHMARK.labelled, unlabelled=BENCHMARK.unlabelled)
    assert own == BENCHMARK
    assert suite.protocol.heading_deg == 45.0


# --- both ways --------------------------------------------------------------------------------------------------------


def test_the_way_back_heads_the_other_way_in_the_other_lane() -> None:
    there, back = drive(TINY, "test-0", "sun"), drive(TINY, "test-0", "sun", reverse=True)
    metres = np.arange(0.0, 240.0, 2.0)
    out = [there.pose(m) for m in metres]
    home = [back.pose(m) for m in metres]
    at = np.array([p.position[:2] for p in home])
    tree = cKDTree(np.array([p.position[:2] for p in out]))
    apart, near = tree.query(at)
    assert apart.max() < 8.0
    turned = np.array([h.yaw - out[i].yaw for h, i in zip(home, near, strict=True)])
    assert np.abs(np.angle(np.exp(1j * turned))).min() > np.deg2rad(135)
    _, d = there.town.road.locate(at.astype(np.float32))
    assert np.abs(d + LANE_M).max() <= 2.1  # as far to the left of the middle as the other drive is to the right
    assert d.mean() > 0.5
    ahead = np.diff(at, axis=0)
    moved = np.arctan2(ahead[:, 1], ahead[:, 0])
    slip = np.angle(np.exp(1j * (moved - np.array([p.yaw for p in home[:-1]]))))
    assert np.abs(slip).max() < 0.6  # it drives forwards
    assert back.first_stamp_ns - there.first_stamp_ns == 12 * 3600 * 10**9


def test_both_ways_see_the_same_geometry() -> None:
    def cloud_in_map(traverse: Traverse, metre: float) -> NDArray[np.float64]:
        traverse.scene = Scene(traverse.town, no_cars())
        pose = traverse.pose(metre)
        points = traverse.scan(metre)[0].astype(np.float64)
        points = points[np.linalg.norm(points[:, :2], axis=1) < 25]
        cos, sin = np.cos(pose.yaw), np.sin(pose.yaw)
        return np.asarray(points @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]) + pose.position)

    there = drive(TINY, "test-0", "sun", lidar=EXACT)
    back = drive(TINY, "test-0", "night", reverse=True, lidar=EXACT)
    met = (back.start_m - there.start_m - 100.0) % 240.0  # where the outward drive is after 100 m of the way back
    seen = cKDTree(np.concatenate([cloud_in_map(there, met + shift) for shift in (-6.0, -2.0, 2.0, 6.0)]))
    gaps, _ = seen.query(cloud_in_map(back, 100.0))
    elsewhere, _ = seen.query(cloud_in_map(back, 160.0))
    assert np.quantile(gaps, 0.9) < 1.0
    assert np.median(elsewhere) > 3 * np.quantile(gaps, 0.9)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("condition", ["sun", "fog", "snow"])
def test_everybody_keeps_to_the_right_and_nobody_drives_into_the_robot(condition: str, reverse: bool) -> None:
    traverse = drive(TINY, "test-0", condition, reverse)
    cars = traverse.scene._traffic.moving
    way = -1.0 if reverse else 1.0
    assert all(car.speed_mps * car.offset_m < 0 for car in cars)
    assert sum(car.speed_mps * way < 0 for car in cars) >= 4
    for metre in np.arange(0.0, 240.0, 0.5):
        seconds = metre / traverse.drive.speed_mps
        placed = [traverse.town.road.at(c.start_m + c.speed_mps * seconds, c.offset_m)[0] for c in cars]
        gap = np.linalg.norm(np.array(placed) - traverse.pose(metre).position[:2], axis=1)
        assert gap.min() > 1.1


def test_the_robot_can_drive_live_the_other_way() -> None:
    live = RobotConfig(region="test-0", condition="sun", number=0, seed=TINY.seed, reverse=True, town=TOWN).traverse()
    recorded = drive(TINY, "test-0", "sun", reverse=True, drive=DriveConfig())
    np.testing.assert_array_equal(live.pose(33.0).position, recorded.pose(33.0).position)
    assert live.pose(33.0).yaw == recorded.pose(33.0).yaw


def test_sessions_of_both_ways_repeat_and_hide_their_poses_as_planned(tmp_path: Path) -> None:
    paths = write_dataset(tmp_path / "a", TINY, workers=1, progress=False)
    sessions = {path.name: Session(path) for path in paths}
    assert sorted(sessions) == sorted(
        f"{region}-{condition}{way}"
        for region in ("train-0", "validation-0")
        for condition in ("sun", "night")
        for way in ("", "-back")
    )
    hidden = {name for name, session in sessions.items() if not session.labelled}
    assert hidden == {"train-0-night", "train-0-night-back"}
    assert sessions["train-0-night-back"].info.condition == "night"
    assert sessions["train-0-night-back"].info.region == "train-0"

    build_town.cache_clear()
    write_drive(tmp_path / "b", TINY, Drive("train", "train-0", "night", False, reverse=True))
    files = sorted(path for path in (tmp_path / "b").rglob("*") if path.is_file())
    assert len(files) > 12
    for path in files:
        twin = tmp_path / "a" / path.relative_to(tmp_path / "b")
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(twin.read_bytes()).digest()


def test_where_headings_count_drives_each_way_are_not_compared(tmp_path: Path) -> None:
    sessions = [Session(path) for path in write_dataset(tmp_path, TINY, workers=1, progress=False)]
    sessions = [session for session in sessions if session.info.region == "validation-0"]
    # The plane bent onto a sphere: what is nearest there is nearest in the plane.
    rows = []
    for session in sessions:
        plane = session.positions[:, :2] / 300
        square = (plane**2).sum(axis=1, keepdims=True)
        rows.append((np.concatenate([2 * plane, 1 - square], axis=1) / (1 + square)).astype(np.float32))
    heeding = evaluate(sessions, rows, Protocol(25.0, 45.0))
    assert len(heeding.pairs) == 12
    assert heeding.answerable_pairs == heeding.summary()["ordered_pairs"] == 4
    assert {p.queries > 0 for p in heeding.pairs if p.query.endswith("back") == p.database.endswith("back")} == {True}
    assert heeding.ar_at_1 == heeding.recalls()[1] == 1.0
    assert heeding.summary()["excluded"] >= 8 * len(sessions[0])
    by_distance = evaluate(sessions, rows, Protocol(25.0))
    assert by_distance.answerable_pairs == 12


# --- look-alikes ------------------------------------------------------------------------------------------------------


def buildings(town: Town) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Where the boxes of facades stand, (B, 2) s and d in metres, and their windows (B, 7)."""
    walls = town.surfaces.kind[town.mesh.surface] == Kind.FACADE
    boxes = town.mesh.triangles[walls].reshape(-1, 36, 3)[:, :, :2]
    centres = (boxes.min(axis=1) + boxes.max(axis=1)) / 2
    s, d = town.road.locate(centres)
    return np.stack([s, d], axis=1).astype(np.float64), town.surfaces.windows[town.mesh.surface[walls][::12]]


@pytest.mark.parametrize("region", ["train-0", "test-0"])
def test_look_alikes_have_the_same_buildings_at_another_place(region: str) -> None:
    town = build_town(BENCHMARK.town, BENCHMARK.seed, region)
    where, windows = buildings(town)
    front = np.abs(where[:, 1]) < 20
    assert len(town.look_alikes) == 3
    found, repeated = [], []
    for pair in town.look_alikes:
        originals = np.flatnonzero(pair.in_original(where[:, 0]) & front)
        there = where + [pair.shift_m, 0.0]
        for i in originals:
            same = (np.abs(where - there[i]) < 3.0).all(axis=1) & (windows == windows[i]).all(axis=1)
            found.append(same.any())
        middle = pair.original_m + 40.0, pair.copy_m + 40.0
        assert np.linalg.norm(town.road.at(middle[0])[0] - town.road.at(middle[1])[0]) > 60
        others = np.flatnonzero(~pair.in_copy(where[:, 0]) & ~pair.in_original(where[:, 0]))
        repeated += [(windows[others] == windows[i]).all(axis=1).any() for i in originals]
    assert len(found) > 20
    assert 0.6 < np.mean(found) < 1.0
    # Two boxes of one plot share their windows, and may lie on both sides of the end of a stretch.
    assert np.mean(repeated) < 0.2


def test_stretches_outside_the_pairs_keep_their_buildings() -> None:
    with_copies = build_town(BENCHMARK.town, BENCHMARK.seed, "test-1")
    without = build_town(TownConfig(), BENCHMARK.seed, "test-1")
    assert without.look_alikes == ()
    (where, windows), (before, windows_before) = buildings(with_copies), buildings(without)

    def inner(s: NDArray[np.float64]) -> NDArray[np.bool_]:
        ends = [pair.in_copy(s + shift) for pair in with_copies.look_alikes for shift in (-15.0, 0.0, 15.0)]
        return np.asarray(~np.any(ends, axis=0))

    kept, old = inner(where[:, 0]), inner(before[:, 0])
    assert 20 < old.sum() < len(before)
    np.testing.assert_array_equal(where[kept], before[old])
    np.testing.assert_array_equal(windows[kept], windows_before[old])


def test_no_building_of_a_copy_stands_in_the_street() -> None:
    for region in ("train-2", "test-2"):
        town = build_town(BENCHMARK.town, BENCHMARK.seed, region)
        walls = town.surfaces.kind[town.mesh.surface] == Kind.FACADE
        assert town.road.clearance(town.mesh.triangles[walls][..., :2].reshape(-1, 2).astype(np.float64)) > 6.0


def test_a_camera_finds_look_alikes_alike() -> None:
    """Nearer than two places are on the average, farther than the same place is from itself a little later."""
    traverse = drive(BENCHMARK, "test-0", "overcast")
    traverse.scene = Scene(traverse.town, no_cars())
    pairs = traverse.town.look_alikes
    shares = (0.1, 0.3, 0.5)

    def views(starts: list[float]) -> NDArray[np.float64]:
        shots = [
            traverse.photograph((start + 80.0 * f - traverse.start_m) % 800)[0] for start in starts for f in shares
        ]
        return np.array([shot.reshape(12, 8, 16, 8, 3).mean((1, 3)) for shot in shots])

    originals, copies = views([p.original_m for p in pairs]), views([p.copy_m for p in pairs])
    apart = np.abs(originals[:, None] - copies[None]).mean((2, 3, 4))
    alike, others = np.diag(apart), apart[~np.eye(len(apart), dtype=bool)]
    assert alike.mean() < 0.8 * others.mean()
    assert alike.min() > 1.0


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_pairs_of_stretches_never_overlap(share: float) -> None:
    for seed in range(5):
        pairs = choose_look_alikes(np.random.default_rng(seed), 800.0, share)
        assert len(pairs) == round(10 * share)
        starts = [start for pair in pairs for start in (pair.original_m, pair.copy_m)]
        assert len(set(starts)) == 2 * len(pairs)
        assert all(start % 80.0 == 0 and 0 <= start <= 720 for start in starts)
    assert choose_look_alikes(np.random.default_rng(0), 800.0, 0.0) == ()


def test_wrong_shares_name_the_key() -> None:
    with pytest.raises(ConfigError, match=r"look_alike is 0.6, wants 0 to 0.5"):
        TownConfig(look_alike=0.6)
    with pytest.raises(ConfigError, match="look_alike wants loop_length_m of at least 160"):
        TownConfig(loop_length_m=120.0, look_alike=0.2)
