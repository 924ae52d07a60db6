"""What calibrating on some drives round a made-up town says of the localizer's answers on others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from training.calibration import calibrate
from training.sessions import Session, SessionInfo, SessionWriter
from vpr_kd_ros.calibration import ELLIPSE_95, Calibration
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.localizer import Localizer, LocalizerConfig
from vpr_kd_ros.place_map import PlaceMap
from vpr_kd_ros.preprocess import Preprocess
from vpr_kd_ros.student import Student, StudentMetadata

DIM = 32
LENGTH_M = 480.0
RADIUS_M = LENGTH_M / (2 * np.pi)


class Unused:
    """A backend that is never asked."""

    device = torch.device("cpu")

    def describe(self, batch: torch.Tensor) -> torch.Tensor:
        raise AssertionError


class Town:
    """A round street whose look changes every few metres; ``noise`` is how unlike two looks at one place are."""

    def __init__(self, seed: int, noise: float) -> None:
        self.anchors = np.random.default_rng(seed).standard_normal((int(LENGTH_M / 8), DIM))
        self.noise = noise

    def describe(self, s: float, rng: np.random.Generator) -> NDArray[np.float32]:
        gaps = (np.arange(len(self.anchors)) * 8.0 - s + LENGTH_M / 2) % LENGTH_M - LENGTH_M / 2
        look = np.exp(-(gaps**2) / (2 * 5.0**2)) @ self.anchors + self.noise * rng.standard_normal(DIM)
        return np.asarray(look / np.linalg.norm(look), dtype=np.float32)

    def drive(self, seed: int, spacing: float) -> tuple[list[Pose], NDArray[np.float32]]:
        """Once round, wandering by a metre to both sides."""
        rng = np.random.default_rng(seed)
        along = np.arange(rng.uniform(0, spacing), LENGTH_M, spacing)
        radii = RADIUS_M + np.cumsum(rng.normal(0, 0.3, len(along)))
        radii -= (radii - RADIUS_M) * (np.abs(radii - RADIUS_M) > 2.0)
        angles = along / RADIUS_M
        poses = [Pose.planar(r * np.cos(a), r * np.sin(a), a + np.pi / 2) for r, a in zip(radii, angles, strict=True)]
        return poses, np.array([self.describe(s, rng) for s in along])


def write(path: Path, name: str, poses: list[Pose]) -> Session:
    with SessionWriter(path / name, SessionInfo(name=name, region="town", frame_id="map")) as writer:
        for i, pose in enumerate(poses):
            writer.add(i * 1_000_000_000, np.zeros((4, 4, 3), dtype=np.uint8), pose=pose)
    return Session(path / name)


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    path, town = tmp_path_factory.mktemp("drives"), Town(0, noise=1.2)
    drives = [town.drive(seed, 8.0) for seed in range(3)]
    sessions = [write(path, f"drive-{i}", poses) for i, (poses, _) in enumerate(drives)]
    return calibrate(sessions, [descriptors for _, descriptors in drives])


def answers(calibration: Calibration, town: Town, mapped: Town, mode: str, odometry: bool = True) -> Any:
    """Accepted, error and whether inside the ellipse, of a denser drive through a denser map."""
    metadata = StudentMetadata("x", "none", DIM, Preprocess(4, 4), calibration=calibration, fingerprint="ab" * 32)
    place_map = PlaceMap(DIM, "ab" * 32, "map")
    for i, (pose, descriptor) in enumerate(zip(*mapped.drive(50, 4.0), strict=True)):
        place_map.add(descriptor, pose, i, "map")
    localizer = Localizer(Student(metadata, Unused()), place_map, LocalizerConfig(mode=mode))
    rows = []
    for i, (pose, descriptor) in enumerate(zip(*town.drive(60, 2.0), strict=True)):
        match = localizer.find(descriptor, i * 250_000_000, pose if odometry else None)
        if match.pose is None or match.covariance is None:
            rows.append((False, np.nan, False))
            continue
        gap = (pose.position - match.pose.position)[:2]
        squared = float(gap @ np.linalg.inv(match.covariance[:2, :2]) @ gap)
        rows.append((True, float(np.linalg.norm(gap)), squared <= ELLIPSE_95))
    accepted, errors, inside = (np.array(column) for column in zip(*rows, strict=True))
    return accepted.astype(bool), errors, inside.astype(bool)


def test_the_belief_is_right_honest_and_finds_more(calibration: Calibration) -> None:
    accepted, errors, inside = answers(calibration, Town(0, 1.2), Town(0, 1.2), "belief")
    assert accepted.mean() > 0.6
    assert (errors[accepted] <= 10.0).mean() >= 0.99
    assert inside[accepted].mean() >= 0.85
    alone, _, _ = answers(calibration, Town(0, 1.2), Town(0, 1.2), "single")
    assert accepted.sum() > alone.sum()


def test_without_odometry_the_belief_keeps_up_with_the_robot(calibration: Calibration) -> None:
    accepted, errors, inside = answers(calibration, Town(0, 1.2), Town(0, 1.2), "belief", odometry=False)
    alone, errors_alone, _ = answers(calibration, Town(0, 1.2), Town(0, 1.2), "single")
    assert accepted.sum() > 2 * alone.sum()
    assert (errors[accepted] <= 10.0).mean() >= (errors_alone[alone] <= 10.0).mean()
    assert np.median(errors[accepted]) <= 3.0, "half a keyframe's distance more than an image by itself"
    assert inside[accepted].mean() >= 0.8


@pytest.mark.parametrize("mode", ["belief", "single"])
def test_in_another_town_it_does_not_know(calibration: Calibration, mode: str) -> None:
    accepted, _, _ = answers(calibration, Town(7, 1.2), Town(0, 1.2), mode)
    assert accepted.mean() <= 0.05


def test_drives_on_the_way_back_neither_show_a_place_nor_make_the_robot_shy(tmp_path: Path) -> None:
    """The camera sees other walls on the way back, so that these drives have the looks of another town."""
    town, back = Town(0, noise=1.2), Town(3, noise=1.2)
    sessions, descriptors = [], []
    for seed in range(3):
        for way, seen in ((1, town), (-1, back)):
            poses, rows = seen.drive(seed, 8.0)
            turned = [Pose.planar(*p.position[:2], p.yaw + (0 if way > 0 else np.pi)) for p in poses]
            sessions.append(write(tmp_path, f"drive-{seed}{'' if way > 0 else '-back'}", turned[::way]))
            descriptors.append(rows[::way])
    both = calibrate(sessions, descriptors)
    forward = calibrate(sessions[::2], descriptors[::2])
    assert both.evidence is not None
    assert forward.evidence is not None
    # An image at its own place is worth as much as where no way back was driven.
    similarities, background = np.array([0.6]), np.random.default_rng(0).normal(0.0, 1 / np.sqrt(DIM), 256)
    of_both, of_forward = (c.log_ratios(similarities, background) for c in (both.evidence, forward.evidence))
    assert of_both[0] == pytest.approx(of_forward[0], abs=0.7)
    accepted, errors, _ = answers(both, Town(0, 1.2), Town(0, 1.2), "belief")
    assert accepted.mean() > 0.6
    assert (errors[accepted] <= 10.0).mean() >= 0.99
    on_the_way_back, _, _ = answers(both, back, Town(0, 1.2), "belief")
    assert on_the_way_back.mean() <= 0.05


def test_it_needs_two_drives_of_one_region(tmp_path: Path) -> None:
    poses, descriptors = Town(0, 1.0).drive(0, 40.0)
    with pytest.raises(DataError, match="two labelled sessions"):
        calibrate([write(tmp_path, "alone", poses)], [descriptors])
