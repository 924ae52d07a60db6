"""The simulated data set: many traverses written as sessions, with worker processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
from tqdm import tqdm

from training.sessions import Session, SessionInfo, SessionWriter
from training.simulation.camera import CameraConfig
from training.simulation.conditions import check_conditions
from training.simulation.lidar import LidarConfig
from training.simulation.town import TownConfig
from training.simulation.traverse import DriveConfig, Traverse
from vpr_kd_ros.errors import ConfigError, DataError, VprError

WORLD_VERSION = 2
"""Raised whenever the same configuration comes to look different."""


@dataclass(frozen=True)
class SimulationConfig:
    """The simulated data set.

    Attributes:
        seed: of the whole world; another seed is another world.
        training_regions, validation_regions, test_regions: how many regions of each kind, all of different geometry.
        labelled: conditions of the training drives that have poses.
        unlabelled: conditions of the training drives that have none, as if simply recorded.
        held_out: conditions that only the test regions are driven under, beside all of the above.
        both_ways: drive every street under every condition the other way too, in the other lane.
        town: geometry.
        camera: the camera.
        lidar: the LiDAR.
        drive: how the robot drives.
    """

    seed: int = 0
    training_regions: int = 3
    validation_regions: int = 1
    test_regions: int = 2
    labelled: tuple[str, ...] = ("sun", "overcast")
    unlabelled: tuple[str, ...] = ("night", "fog", "rain", "snow")
    held_out: tuple[str, ...] = ("autumn", "dusk")
    both_ways: bool = False
    town: TownConfig = field(default_factory=TownConfig)
    camera: CameraConfig = field(default_factory=CameraConfig)
    lidar: LidarConfig = field(default_factory=LidarConfig)
    drive: DriveConfig = field(default_factory=DriveConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"seed is {self.seed}, wants 0 to 2^31 - 1")
        for key in ("training_regions", "validation_regions", "test_regions"):
            if not 0 <= getattr(self, key) <= 100:
                raise ConfigError(f"{key} is {getattr(self, key)}, wants 0 to 100")
        everything = [*self.labelled, *self.unlabelled, *self.held_out]
        for key in ("labelled", "unlabelled", "held_out"):
            check_conditions(getattr(self, key), key)
        twice = sorted({name for name in everything if everything.count(name) > 1})
        if twice:
            raise ConfigError(f"conditions {twice} are named twice; each belongs to labelled, unlabelled or held_out")


@dataclass(frozen=True)
class Drive:
    """One session to be written: its folder below the data set, its names, whether it gets poses, and which way."""

    part: str
    region: str
    condition: str
    posed: bool
    reverse: bool = False

    @property
    def name(self) -> str:
        return f"{self.region}-{self.condition}" + ("-back" if self.reverse else "")


def plan(config: SimulationConfig) -> list[Drive]:
    """The sessions of the data set, in the order in which they are written."""
    seen = (*config.labelled, *config.unlabelled)
    drives: list[Drive] = []
    for region in range(config.training_regions):
        drives += [Drive("train", f"train-{region}", name, name in config.labelled) for name in seen]
    for region in range(config.validation_regions):
        drives += [Drive("validation", f"validation-{region}", name, True) for name in seen]
    for region in range(config.test_regions):
        drives += [Drive("test", f"test-{region}", name, True) for name in (*seen, *config.held_out)]
    if not config.both_ways:
        return drives
    return [replace(drive, reverse=reverse) for drive in drives for reverse in (False, True)]


def frames_per_drive(config: SimulationConfig) -> int:
    """How many keyframes one round of the loop gives."""
    return int(config.town.loop_length_m / config.drive.spacing_m)


def write_dataset(out: Path, config: SimulationConfig, workers: int = 2, progress: bool = True) -> list[Path]:
    """Write the data set, or what is missing of it.

    Args:
        out: folder to write ``train/``, ``validation/`` and ``test/`` in.
        config: what to write. Sessions that are there already from the same configuration are kept.
        workers: number of processes.
        progress: whether to show a progress bar.

    Returns:
        The folders of all sessions.

    Raises:
        DataError: a session is there already from another configuration, or is damaged; or a worker was killed.
        ConfigError: ``workers`` is not positive.
    """
    if workers < 1:
        raise ConfigError(f"workers is {workers}, wants 1 or more")
    drives = plan(config)
    missing = [drive for drive in drives if not _is_written(out, config, drive)]
    frames = frames_per_drive(config)
    with tqdm(total=frames * len(drives), unit="frame", desc=f"simulate {out}", disable=not progress) as bar:
        bar.update(frames * (len(drives) - len(missing)))
        for count in _write_in_processes(out, config, missing, workers):
            bar.update(count)
    return [out / drive.part / drive.name for drive in drives]


def _write_in_processes(out: Path, config: SimulationConfig, drives: list[Drive], workers: int) -> Iterator[int]:
    """Write the drives; yields the number of frames written since it last did."""
    if not drives:
        return
    # Spawned, not forked: the parent may hold threads (OpenCV, Arrow, a test runner's) that do not survive a fork.
    context = multiprocessing.get_context("spawn")
    written, stop = context.Value("q", 0), context.Event()
    executor = ProcessPoolExecutor(min(workers, len(drives)), context, _start_worker, (written, stop))
    reported = 0
    try:
        waiting = {executor.submit(_write_in_worker, out, config, drive) for drive in drives}
        while waiting:
            done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
            count = written.value
            yield count - reported
            reported = count
        yield written.value - reported
    except BrokenProcessPool:
        raise DataError(
            f"{out}: a worker process was killed (out of memory?); run the same command again, with fewer workers: "
            "it goes on where this one stopped"
        ) from None
    finally:
        stop.set()
        executor.shutdown(cancel_futures=True)


_stop: Any = None
_written: Any = None


def _start_worker(written: Any, stop: Any) -> None:
    global _stop, _written
    _written, _stop = written, stop
    # The parent hears Ctrl-C and tells the workers, which clean up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"
    cv2.setNumThreads(1)


def _write_in_worker(out: Path, config: SimulationConfig, drive: Drive) -> None:
    def tick() -> None:
        if _stop.is_set():
            raise VprError("stopped")
        with _written.get_lock():
            _written.value += 1

    write_drive(out, config, drive, tick)


def write_drive(out: Path, config: SimulationConfig, drive: Drive, tick: Callable[[], None] = lambda: None) -> None:
    """Write one session; ``tick`` is called after each keyframe."""
    traverse = Traverse(
        config.town,
        config.camera,
        config.lidar,
        config.drive,
        config.seed,
        drive.region,
        drive.condition,
        reverse=drive.reverse,
    )
    info = SessionInfo(
        name=drive.name,
        region=drive.region,
        condition=drive.condition,
        frame_id="map",
        sources=[_source(config, drive)],
        calibration=_calibration(traverse),
    )
    with SessionWriter(out / drive.part / drive.name, info) as writer:
        for number in range(frames_per_drive(config)):
            travelled = number * config.drive.spacing_m
            image, semantics = traverse.photograph(travelled)
            points, _ = traverse.scan(travelled)
            writer.add(
                traverse.first_stamp_ns + round(travelled / config.drive.speed_mps * 1e9),
                image,
                points,
                pose=traverse.pose(travelled) if drive.posed else None,
                semantics=semantics,
            )
            tick()


def _source(config: SimulationConfig, drive: Drive) -> dict[str, Any]:
    """What the session depends on, as it comes back from JSON: the same source gives the same session."""
    parts = {key: asdict(getattr(config, key)) for key in ("town", "camera", "lidar", "drive")}
    if not config.town.look_alike:
        # Data sets that were written before there were look-alikes go on being recognised.
        del parts["town"]["look_alike"]
    source = {
        "simulator": "training.simulation",
        "world_version": WORLD_VERSION,
        "seed": config.seed,
        "posed": drive.posed,
        "config": parts,
    }
    if drive.reverse:
        source["reverse"] = True
    return dict(json.loads(json.dumps(source)))


def _calibration(traverse: Traverse) -> dict[str, Any]:
    camera, lidar = traverse.camera, traverse.lidar.config
    return {
        "camera": {**asdict(camera.config), "focal_px": float(camera.focal_px), "frame": "base_link"},
        "lidar": {"up_m": lidar.up_m, "frame": "base_link"},
    }


def _is_written(out: Path, config: SimulationConfig, drive: Drive) -> bool:
    path = out / drive.part / drive.name
    if not path.exists():
        return False
    session = Session(path)
    if session.info.sources != [_source(config, drive)]:
        raise DataError(
            f"{path}: was simulated with another seed or configuration; remove {out} or choose another --out"
        )
    if len(session) != frames_per_drive(config):
        raise DataError(f"{path}: holds {len(session)} keyframes, wants {frames_per_drive(config)}; remove it")
    return True
