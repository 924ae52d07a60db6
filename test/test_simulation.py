"""The simulated town: sensors against analytic answers, poses against the road, sessions against each other."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from training.commands import simulate
from training.sessions import CLASSES, Session
from training.simulation.camera import Camera, CameraConfig
from training.simulation.conditions import CONDITIONS
from training.simulation.dataset import Drive, SimulationConfig, frames_per_drive, plan, write_dataset, write_drive
from training.simulation.lidar import Lidar, LidarConfig
from training.simulation.mesh import BALL, BOX, Kind, Mesh, MeshBuilder
from training.simulation.odometry import Odometer
from training.simulation.rays import Caster
from training.simulation.road import Road
from training.simulation.scene import Scene
from training.simulation.schedule import RobotConfig, schedule
from training.simulation.shading import draw_look, radiance
from training.simulation.town import Town, TownConfig, build_town
from training.simulation.traverse import DriveConfig, Traverse
from training.simulation.vehicles import Traffic, make_traffic
from vpr_kd_ros.errors import ConfigError, DataError
from vpr_kd_ros.geometry import Pose

TOWN = TownConfig(loop_length_m=160.0, zone_length_m=50.0)
CAMERA = CameraConfig(height=24, width=32)
LIDAR = LidarConfig(beams=6, columns=60)
TINY = SimulationConfig(
    training_regions=1,
    validation_regions=1,
    test_regions=0,
    labelled=("sun",),
    unlabelled=("night",),
    held_out=(),
    town=TOWN,
    camera=CAMERA,
    lidar=LIDAR,
    drive=DriveConfig(spacing_m=40.0),
)
EXACT = replace(LIDAR, noise_m=0.0, dropout=0.0)
NO_CARS = Traffic(*(lambda mesh, surfaces: (mesh, (), surfaces))(*MeshBuilder().build()))


def traverse(condition: str, lidar: LidarConfig = LIDAR, region: str = "test-0", number: int = 0) -> Traverse:
    return Traverse(TOWN, CAMERA, lidar, DriveConfig(), 3, region, condition, number)


def scene_of(builder: MeshBuilder) -> Scene:
    """A scene of the given shapes only."""
    mesh, surfaces = builder.build()
    nothing = np.zeros((0, 3), dtype=np.float32)
    zones = np.zeros(200, dtype=np.int32)
    town = Town(Road(np.random.default_rng(0), 200.0), mesh, surfaces, nothing, zones, nothing[:, 0], nothing[:, :2])
    return Scene(town, NO_CARS)


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_lidar_measures_the_distance_to_a_wall_and_to_the_ground() -> None:
    builder = MeshBuilder()
    wall_x, up = 12.0, EXACT.up_m
    builder.add(BOX, builder.surface(Kind.PLAIN, "buildings", (0.5, 0.5, 0.5)), (wall_x + 1, 0, -1), (2, 400, 100))
    builder.add(BOX, builder.surface(Kind.PLAIN, "ground", (0.5, 0.5, 0.5)), (0, 0, -1), (400, 400, 1))
    lidar = Lidar(replace(EXACT, beams=9, columns=90))
    points, intensity = lidar.scan(scene_of(builder), Pose.planar(0.0, 0.0, 0.0), np.random.default_rng(0))

    d = lidar.directions.astype(np.float64)
    with np.errstate(divide="ignore"):
        to_wall = np.where(d[:, 0] > 0, wall_x / d[:, 0], np.inf)
        to_ground = np.where(d[:, 2] < 0, -up / d[:, 2], np.inf)
    expected = np.minimum(to_wall, to_ground)
    kept = (expected >= EXACT.min_range_m) & (expected <= EXACT.max_range_m)
    wanted = d[kept] * expected[kept, None] + [0, 0, up]
    assert len(points) == kept.sum() > 200
    np.testing.assert_allclose(points, wanted, atol=2e-3)
    assert points.dtype == np.float32
    assert intensity.shape == (len(points),)
    assert intensity.min() >= 0
    assert intensity.max() <= 1


def test_lidar_points_are_in_the_base_frame_wherever_the_robot_stands() -> None:
    builder = MeshBuilder()
    paint = builder.surface(Kind.PLAIN, "other", (0.5, 0.5, 0.5))
    builder.add(BOX, paint, (30, 20, 0), (1, 1, 8))
    base = Pose.planar(20.0, 10.0, 0.7)
    lidar = Lidar(replace(EXACT, beams=9, columns=720))
    points, _ = lidar.scan(scene_of(builder), base, np.random.default_rng(0))
    cos, sin = np.cos(0.7), np.sin(0.7)
    centre = np.array([[cos, sin], [-sin, cos]]) @ (np.array([30.0, 20.0]) - base.position[:2])
    assert len(points) > 10
    assert np.linalg.norm(points[:, :2].mean(axis=0) - centre) < 0.8


def test_lidar_noise_and_dropouts_have_the_size_asked_for() -> None:
    builder = MeshBuilder()
    builder.add(BALL, builder.surface(Kind.PLAIN, "other", (0.5, 0.5, 0.5)), (0, 0, 1.9), (40, 40, 40))
    scene, base = scene_of(builder), Pose.planar(0, 0, 0)
    config = LidarConfig(noise_m=0.05, dropout=0.25)
    exact, _ = Lidar(replace(config, noise_m=0.0, dropout=0.0)).scan(scene, base, np.random.default_rng(1))
    noisy, _ = Lidar(replace(config, dropout=0.0)).scan(scene, base, np.random.default_rng(1))
    thinned, _ = Lidar(config).scan(scene, base, np.random.default_rng(1))
    error = np.linalg.norm(noisy - [0, 0, 1.9], axis=1) - np.linalg.norm(exact - [0, 0, 1.9], axis=1)
    assert abs(error.std() - 0.05) < 0.003
    assert abs(len(thinned) / len(exact) - 0.75) < 0.02


def test_camera_rays_are_those_of_the_pinhole_that_projects() -> None:
    camera = Camera(CameraConfig(height=30, width=40, pitch=0.2))
    depth = np.random.default_rng(0).uniform(2, 50, len(camera.directions))
    points = camera.directions * depth[:, None] + [camera.config.forward_m, 0, camera.config.up_m]
    v, u = np.mgrid[:30, :40] + 0.5
    np.testing.assert_allclose(camera.project(points), np.stack([u.ravel(), v.ravel()], axis=1), atol=1e-3)
    left = camera.project(np.array([[10.0, 10.0, 1.6], [10.0, -10.0, 1.6], [-5.0, 0.0, 1.6]]))
    assert left[0, 0] < 20 < left[1, 0]
    assert np.isnan(left[2]).all()


def test_the_rear_camera_sees_what_the_front_one_of_a_robot_turned_round_sees() -> None:
    config = CameraConfig(height=30, width=40, pitch=0.2)
    rear, front = Camera(config, rear=True), Camera(config)
    here, turned = Pose.planar(3.0, -2.0, 0.7), Pose.planar(3.0, -2.0, 0.7 + np.pi)
    for ours, theirs in zip(rear.rays(here), front.rays(turned), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    behind = np.array([[-10.0, 2.0, 1.6], [10.0, 2.0, 1.6]])
    np.testing.assert_allclose(rear.project(behind)[0], front.project(behind * [-1, -1, 1])[0], atol=1e-9)
    assert np.isnan(rear.project(behind)[1]).all()
    drive = traverse("sun")
    assert (drive.photograph(20.0, rear=True)[0] != drive.photograph(20.0)[0]).any()


def test_classes_of_pixels_are_where_the_object_projects() -> None:
    builder = MeshBuilder()
    builder.add(BOX, builder.surface(Kind.PLAIN, "dynamic", (0.9, 0.1, 0.1)), (20, 3, 0), (1, 4, 3))
    camera = Camera(CameraConfig(height=96, width=128))
    base = Pose.planar(0, 0, 0)
    look = draw_look(CONDITIONS["overcast"], np.random.default_rng(0))
    light, category = radiance(
        scene_of(builder), CONDITIONS["overcast"], look, base, *camera.rays(base), 1 / camera.focal_px
    )
    front = np.array([[19.5, y, z] for y in (1.0, 5.0) for z in (0.0, 3.0)])
    corners = camera.project(front)
    v, u = (axis.ravel() for axis in np.mgrid[:96, :128] + 0.5)
    low, high = corners.min(axis=0), corners.max(axis=0)
    inside = (u > low[0] + 0.5) & (u < high[0] - 0.5) & (v > low[1] + 0.5) & (v < high[1] - 0.5)
    outside = (u < low[0] - 1) | (u > high[0] + 1) | (v < low[1] - 1) | (v > high[1] + 1)
    assert inside.sum() > 50
    assert (category[inside] == CLASSES.index("dynamic")).all()
    assert (category[outside] == CLASSES.index("sky")).all()
    redness = light[:, 0] / light[:, 2]
    assert redness[inside].min() > redness[outside].max()


def test_first_hits_agree_with_testing_every_triangle() -> None:
    rng = np.random.default_rng(5)
    triangles = (rng.uniform(-8, 8, (40, 1, 3)) + rng.normal(0, 2, (40, 3, 3))).astype(np.float32)
    directions = rng.normal(size=(200, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    origins = np.zeros((200, 3), dtype=np.float32)
    hits = Caster(Mesh(triangles, np.arange(40, dtype=np.int32))).cast(origins, directions.astype(np.float32))

    nearest = np.full(200, np.inf)
    which = np.full(200, -1)
    for ray, direction in enumerate(directions):
        for number, (a, b, c) in enumerate(triangles.astype(np.float64)):
            # a + x (b - a) + y (c - a) = t direction
            x, y, t = np.linalg.solve(np.stack([b - a, c - a, -direction], axis=1), -a)
            if x >= 0 and y >= 0 and x + y <= 1 and 0 < t < nearest[ray]:
                nearest[ray], which[ray] = t, number
    assert (hits.surface == which).mean() > 0.99  # rays through an edge may differ
    same = (hits.surface == which) & (which >= 0)
    assert same.sum() > 50
    np.testing.assert_allclose(hits.distance[same], nearest[same], rtol=1e-4)
    assert (np.einsum("ij,ij->i", hits.normal[same], directions[same]) <= 1e-6).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_road_is_a_closed_loop_of_the_length_asked_for(seed: int) -> None:
    road = Road(np.random.default_rng(seed), 300.0)
    s = np.linspace(0, 300, 3001)
    xy, yaw = road.at(s)
    np.testing.assert_allclose(xy[0], xy[-1], atol=1e-6)
    steps = np.linalg.norm(np.diff(xy, axis=0), axis=1)
    np.testing.assert_allclose(steps, 0.1, rtol=0.01)
    assert yaw[-1] - yaw[0] == pytest.approx(2 * np.pi, abs=0.05)
    direction = np.arctan2(*np.diff(xy, axis=0).T[::-1])
    assert np.abs(np.angle(np.exp(1j * (direction - yaw[:-1])))).max() < 0.05


def test_street_coordinates_come_back() -> None:
    road = Road(np.random.default_rng(1), 400.0)
    rng = np.random.default_rng(2)
    s, d = rng.uniform(1, 399, 500), rng.uniform(-8, 8, 500)
    found_s, found_d = road.locate(road.at(s, d)[0].astype(np.float32))
    np.testing.assert_allclose(found_d, d, atol=0.1)
    np.testing.assert_allclose(found_s, s, atol=0.4)


def test_a_traverse_keeps_to_the_street_and_comes_round() -> None:
    drive = traverse("sun")
    poses = [drive.pose(metre) for metre in np.arange(0.0, 160.0, 1.0)]
    s, d = drive.town.road.locate(np.array([p.position[:2] for p in poses], dtype=np.float32))
    assert np.abs(d + 1.0).max() <= 2.1
    assert 0.5 < d.std() < 1.9
    travelled = np.unwrap(s * 2 * np.pi / 160) * 160 / (2 * np.pi)
    np.testing.assert_allclose(np.diff(travelled), 1.0, atol=0.25)
    np.testing.assert_allclose(drive.pose(0.0).position, drive.pose(160.0).position, atol=1e-6)
    _, along = drive.town.road.at(drive.start_m + np.arange(0.0, 160.0, 1.0))
    error = np.angle(np.exp(1j * (np.array([p.yaw for p in poses]) - along)))
    assert 0.03 < error.std() < 0.15
    assert not np.allclose(poses[5].position, traverse("overcast").pose(5.0).position, atol=0.05)


def test_light_and_weather_leave_the_geometry_alone() -> None:
    clouds = {}
    for condition in ("sun", "night", "snow", "dusk"):
        drive = traverse(condition, EXACT)
        drive.scene = Scene(drive.town, NO_CARS)
        clouds[condition], _ = drive.lidar.scan(
            drive.scene, Pose.planar(*drive.town.road.at(30.0)[0], 0.3), drive._rng("", 0)
        )
    for condition in ("night", "snow", "dusk"):
        np.testing.assert_array_equal(clouds["sun"], clouds[condition])
    elsewhere = traverse("sun", EXACT, region="test-1")
    other, _ = elsewhere.lidar.scan(elsewhere.scene, elsewhere.pose(30.0), np.random.default_rng(0))
    assert len(other) != len(clouds["sun"]) or not np.allclose(other, clouds["sun"], atol=1.0)


def mean_image(condition: str) -> NDArray[np.float64]:
    drive = traverse(condition)
    return np.mean([drive.photograph(metre)[0] for metre in (0.0, 50.0, 100.0)], axis=0)


def test_conditions_look_as_their_names_say() -> None:
    mean = {condition: mean_image(condition) for condition in CONDITIONS}
    assert mean["night"].mean() < 0.6 * mean["sun"].mean()
    assert mean["dusk"].mean() < mean["overcast"].mean()
    ground = {condition: image[18:, 8:24] for condition, image in mean.items()}
    assert ground["snow"].mean() > ground["overcast"].mean() + 30
    contrast = {condition: np.abs(np.diff(image[:14], axis=1)).mean() for condition, image in mean.items()}
    assert contrast["fog"] < 0.7 * contrast["sun"]
    assert all(np.abs(mean[a] - mean[b]).mean() > 4 for a in mean for b in mean if a < b)


def test_snow_lies_on_roofs_and_not_on_walls() -> None:
    builder = MeshBuilder()
    builder.add(BOX, builder.surface(Kind.PLAIN, "buildings", (0.4, 0.1, 0.1)), (10, 0, -1), (8, 8, 1.5))
    base = Pose.planar(0, 0, 0)
    camera = Camera(CameraConfig(height=48, width=64, pitch=-0.2))
    condition = replace(CONDITIONS["snow"], haze=0.0)
    look = draw_look(condition, np.random.default_rng(0))
    origins, directions = camera.rays(base)
    scene = scene_of(builder)
    light, _ = radiance(scene, condition, look, base, origins, directions, 1 / camera.focal_px)
    hits = scene.cast(origins, directions)
    roof, wall = hits.normal[:, 2] > 0.9, hits.normal[:, 0] < -0.9
    assert roof.sum() > 20
    assert wall.sum() > 10
    assert light[roof].min() > 3 * light[wall, 2].max()


def test_the_sun_throws_shadows() -> None:
    builder = MeshBuilder()
    ground = builder.surface(Kind.PLAIN, "ground", (0.5, 0.5, 0.5))
    builder.add(BOX, ground, (0, 0, -1), (100, 100, 1))
    builder.add(BOX, ground, (10, 0, 6), (4, 4, 0.5))
    base = Pose.planar(0, 0, 0)
    camera = Camera(CameraConfig(height=48, width=64, pitch=-0.3))
    look = replace(
        draw_look(CONDITIONS["sun"], np.random.default_rng(0)), sun=np.array([0.0, 0.0, 1.0], dtype=np.float32)
    )
    origins, directions = camera.rays(base)
    scene = scene_of(builder)
    light, _ = radiance(scene, CONDITIONS["sun"], look, base, origins, directions, 1 / camera.focal_px)
    hits = scene.cast(origins, directions)
    spots = origins + directions * np.where(np.isfinite(hits.distance), hits.distance, 0)[:, None]
    on_ground = np.abs(spots[:, 2]) < 0.01
    shade = on_ground & (np.abs(spots[:, 0] - 10) < 1.8) & (np.abs(spots[:, 1]) < 1.8)
    open_ = on_ground & (np.abs(spots[:, 1]) > 2.5) & (spots[:, 0] < 14)
    assert shade.sum() > 10
    assert light[shade].max() < 0.6 * light[open_].min()


def test_cars_move_between_frames_and_nothing_else_does() -> None:
    town = build_town(TOWN, 3, "test-0")
    scene = Scene(town, make_traffic(town, np.random.default_rng(0), 0.0, 8.0))
    base = Pose.planar(*town.road.at(20.0, -1.0)[0], float(town.road.at(20.0)[1]))
    rays = Camera(replace(CAMERA, height=96, width=128)).rays(base)
    shots = []
    for seconds in (0.0, 2.0, 4.0, 6.0):
        scene.set_time(seconds)
        hits = scene.cast(*rays)
        shots.append((hits.distance, scene.surfaces.category[hits.surface] == CLASSES.index("dynamic")))
    differs = np.zeros(len(shots[0][0]), dtype=bool)
    for distance, cars in shots[1:]:
        changed = distance != shots[0][0]
        assert not (changed & ~cars & ~shots[0][1]).any()
        differs |= changed
    assert differs.any()


def test_sessions_are_the_same_bytes_again_and_another_seed_is_another_world(tmp_path: Path) -> None:
    drive = Drive("train", "train-0", "night", True)
    for name, config in (("a", TINY), ("b", TINY), ("c", replace(TINY, seed=1))):
        build_town.cache_clear()
        write_drive(tmp_path / name, config, drive)
    first, again, other = (digest(tmp_path / name) for name in "abc")
    assert first == again
    images = [name for name in first if name.endswith((".jpg", ".npz"))]
    assert len(images) == 2 * frames_per_drive(TINY) == 8
    assert all(first[name] != other[name] for name in images)


def test_the_data_set_is_labelled_as_planned_and_resumes(tmp_path: Path) -> None:
    out = tmp_path / "town"
    paths = write_dataset(out, TINY, workers=2, progress=False)
    sessions = {path.name: Session(path) for path in paths}
    assert sorted(sessions) == ["train-0-night", "train-0-sun", "validation-0-night", "validation-0-sun"]
    assert {name for name, session in sessions.items() if not session.labelled} == {"train-0-night"}
    unlabelled = sessions["train-0-night"]
    assert np.isnan(unlabelled.positions).all()
    assert unlabelled.info.frame_id == ""
    assert unlabelled.has_clouds
    image, labels = unlabelled.image(1), unlabelled.semantics(1)
    assert image.shape == (24, 32, 3)
    assert labels is not None
    assert labels.shape == (24, 32)
    posed = sessions["validation-0-sun"]
    drive = Traverse(TOWN, CAMERA, LIDAR, TINY.drive, TINY.seed, "validation-0", "sun")
    np.testing.assert_allclose(posed.positions[2], drive.pose(80.0).position)
    np.testing.assert_array_equal(posed.semantics(2), drive.photograph(80.0)[1])
    np.testing.assert_array_equal(posed.cloud(2), drive.scan(80.0)[0])
    assert (np.diff(posed.stamps_ns) == 5_000_000_000).all()

    before = digest(out)
    (out / "train" / "train-0-sun" / "session.json").unlink()
    with pytest.raises(DataError, match="train-0-sun"):
        write_dataset(out, TINY, progress=False)
    shutil.rmtree(out / "train" / "train-0-sun")
    kept = (out / "train" / "train-0-night" / "session.json").stat().st_mtime_ns
    write_dataset(out, TINY, workers=1, progress=False)
    assert digest(out) == before
    assert (out / "train" / "train-0-night" / "session.json").stat().st_mtime_ns == kept
    with pytest.raises(DataError, match=r"another seed or configuration; remove"):
        write_dataset(out, replace(TINY, seed=9), progress=False)
    with pytest.raises(DataError, match="another seed or configuration"):
        write_dataset(out, replace(TINY, camera=CameraConfig(height=24, width=48)), progress=False)


def test_an_interrupted_run_leaves_whole_sessions_only_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "town"
    command = [sys.executable, "-m", "training", "simulate", "--out", str(out), "--workers", "1"]
    command += ["--training_regions", "1", "--validation_regions", "1", "--test_regions", "0"]
    command += ["--town.loop_length_m", "120", "--camera.height", "48", "--camera.width", "64"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # Tests that run in the background of a script inherit an ignored SIGINT.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not list(out.glob("train/*/session.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    left = [path for path in out.glob("*/*") if path.is_dir()]
    assert 1 <= len(left) < 12
    assert all(len(Session(path)) == 15 for path in left)


def test_the_default_plan_keeps_test_conditions_and_regions_apart() -> None:
    drives = plan(SimulationConfig())
    regions = {part: {d.region for d in drives if d.part == part} for part in ("train", "validation", "test")}
    assert [len(regions[part]) for part in ("train", "validation", "test")] == [3, 1, 2]
    assert not any({"autumn", "dusk"} & {d.condition} for d in drives if d.part != "test")
    assert {d.condition for d in drives if d.part == "train" and d.posed} == {"sun", "overcast"}
    assert all(d.posed for d in drives if d.part != "train")
    assert len({d.name for d in drives}) == len(drives) == 40


def test_wrong_settings_name_the_key_and_the_mend() -> None:
    with pytest.raises(ConfigError, match=r"unlabelled: no condition 'nigth' \(did you mean 'night'\?\)"):
        SimulationConfig(unlabelled=("nigth",))
    with pytest.raises(ConfigError, match="named twice"):
        SimulationConfig(labelled=("sun",), unlabelled=("sun",))
    with pytest.raises(ConfigError, match="loop_length_m is 5, wants 100 to 5000"):
        TownConfig(loop_length_m=5)
    with pytest.raises(ConfigError, match="horizontal_fov"):
        CameraConfig(horizontal_fov=4.0)
    with pytest.raises(ConfigError, match="min_range_m 80 must be below max_range_m 70"):
        LidarConfig(min_range_m=80)
    with pytest.raises(ConfigError, match="spacing_m is 0"):
        DriveConfig(spacing_m=0)
    with pytest.raises(ConfigError, match="rate_factor"):
        RobotConfig(rate_factor=0)
    with pytest.raises(ConfigError, match="workers is 0"):
        write_dataset(Path("/nowhere"), TINY, workers=0)


def test_the_command_line_reads_a_file_and_reports_wrong_values(tmp_path: Path) -> None:
    settings = tmp_path / "town.yaml"
    settings.write_text("seed: 5\nunlabelled: [fog]\ntown:\n  loop_length_m: 240.0\n")
    parser = simulate.parser()
    args = parser.instantiate_classes(
        parser.parse_args(["--out", "x", "--config", str(settings), "--camera.height", "32"])
    )
    assert (args.seed, tuple(args.unlabelled), args.town.loop_length_m, args.camera.height) == (5, ("fog",), 240.0, 32)
    command = [sys.executable, "-m", "training", "simulate", "--out", str(tmp_path / "o"), "--camera.width", "3"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode in (1, 2)
    assert "wants 16x16" in result.stderr
    assert "Traceback" not in result.stderr


def test_odometry_drifts_slowly_and_keeps_the_shape() -> None:
    drive = traverse("sun")
    exact = [drive.pose(metre) for metre in np.arange(0.0, 160.0, 0.4)]
    odometer = Odometer(np.random.default_rng(4))
    believed = [odometer.update(pose) for pose in exact]
    first = exact[0]
    cos, sin = np.cos(first.yaw), np.sin(first.yaw)
    turn = np.array([[cos, sin], [-sin, cos]])
    wanted = np.array([turn @ (p.position[:2] - first.position[:2]) for p in exact])
    error = np.linalg.norm(np.array([p.position[:2] for p in believed]) - wanted, axis=1)
    assert error[0] == 0
    assert 0.05 < error.max() < 0.06 * 160
    assert np.diff(error).max() < 0.2


def test_the_robots_schedule_is_in_order_and_at_the_rates_asked_for() -> None:
    config = RobotConfig(speed=5.0, camera_hz=4.0, lidar_hz=3.0, odom_hz=10.0, length=20.0)
    events = schedule(config)
    times = [when for when, _ in events]
    assert times == sorted(times)
    assert events[0] == (0, "odometry")
    assert times[-1] == config.duration_ns == 4_000_000_000
    counts = {name: sum(n == name for _, n in events) for name in ("camera", "lidar", "odometry")}
    assert counts == {"camera": 17, "lidar": 13, "odometry": 41}
    rear = [when for when, name in schedule(replace(config, rear_camera=True)) if name == "rear_camera"]
    front = [when for when, name in events if name == "camera"]
    assert rear == [(before + after) // 2 for before, after in itertools.pairwise(front)]
    assert config.travelled_m(2_000_000_000) == 10.0
