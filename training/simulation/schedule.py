"""What the simulated robot publishes when, and the process that renders it ahead of time."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import cv2

from training.simulation.camera import CameraConfig
from training.simulation.conditions import check_conditions
from training.simulation.lidar import LidarConfig
from training.simulation.town import TownConfig
from training.simulation.traverse import DriveConfig, Traverse
from vpr_kd_ros.errors import ConfigError

NS_PER_S = 1_000_000_000
AHEAD = 12
"""Sensor frames that are rendered ahead."""


@dataclass(frozen=True)
class RobotConfig:
    """One live drive round a region.

    Attributes:
        region, condition: names, as of the simulated sessions.
        number: another number is another drive of that region and condition; the sessions are number 0.
        reverse: drive the street the other way, in the other lane.
        seed: of the world.
        speed: metres per second of simulated time.
        camera_hz, lidar_hz, odom_hz: frames per second of simulated time.
        rear_camera: there is a second camera, which looks back; its frames come half way between the first's.
        rate_factor: simulated seconds per real second; where rendering is slower, simulated time slows down.
        start_at: metres along the loop where the drive starts.
        length: metres to drive; 0 for one round.
        town: geometry.
        camera: the camera.
        lidar: the LiDAR.
    """

    region: str = "test-0"
    condition: str = "night"
    number: int = 1
    reverse: bool = False
    seed: int = 0
    speed: float = 8.0
    camera_hz: float = 5.0
    lidar_hz: float = 5.0
    odom_hz: float = 20.0
    rear_camera: bool = False
    rate_factor: float = 1.0
    start_at: float = 0.0
    length: float = 0.0
    town: TownConfig = field(default_factory=TownConfig)
    camera: CameraConfig = field(default_factory=CameraConfig)
    lidar: LidarConfig = field(default_factory=LidarConfig)

    def __post_init__(self) -> None:
        check_conditions([self.condition], "condition")
        for key, low, high in (
            ("number", 0, 1000),
            ("speed", 0.1, 50.0),
            ("camera_hz", 0.1, 100.0),
            ("lidar_hz", 0.1, 100.0),
            ("odom_hz", 1.0, 1000.0),
            ("rate_factor", 0.01, 100.0),
            ("start_at", 0.0, 1e6),
            ("length", 0.0, 1e6),
        ):
            value = getattr(self, key)
            if not low <= value <= high:
                raise ConfigError(f"{key} is {value:g}, wants {low:g} to {high:g}")

    @property
    def distance_m(self) -> float:
        """How far the drive goes, metres."""
        return self.length or self.town.loop_length_m

    @property
    def duration_ns(self) -> int:
        """How long it takes in simulated time, nanoseconds."""
        return round(self.distance_m / self.speed * NS_PER_S)

    def travelled_m(self, elapsed_ns: int) -> float:
        """Metres along the traverse at a simulated time after the start."""
        return self.start_at + self.speed * elapsed_ns / NS_PER_S

    def traverse(self) -> Traverse:
        """The drive itself."""
        drive = DriveConfig(speed_mps=self.speed)
        return Traverse(
            self.town,
            self.camera,
            self.lidar,
            drive,
            self.seed,
            self.region,
            self.condition,
            self.number,
            self.reverse,
        )


def schedule(config: RobotConfig) -> list[tuple[int, str]]:
    """Simulated time after the start, nanoseconds, and what comes then, in order of time: ``odometry``, ``camera``,
    ``lidar`` or ``rear_camera``.

    Odometry comes before the sensors of the same time, so that a consumer knows the pose when a frame arrives.
    """
    events: list[tuple[int, int, str]] = []
    sensors = [("odometry", config.odom_hz, 0.0), ("camera", config.camera_hz, 0.0), ("lidar", config.lidar_hz, 0.0)]
    if config.rear_camera:
        sensors.append(("rear_camera", config.camera_hz, 0.5))
    for order, (name, rate, offset) in enumerate(sensors):
        count = int(config.duration_ns / NS_PER_S * rate) + 1
        events += [(round((number + offset) / rate * NS_PER_S), order, name) for number in range(count)]
    return [(when, name) for when, _, name in sorted(events) if when <= config.duration_ns]


_traverse: Traverse | None = None


def _start_worker(config: RobotConfig) -> None:
    global _traverse
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    _traverse = config.traverse()


def _sense(sensor: str, travelled_m: float) -> Any:
    assert _traverse is not None
    if sensor == "lidar":
        return _traverse.scan(travelled_m)
    return _traverse.photograph(travelled_m, rear=sensor == "rear_camera")


class Renderer:
    """Renders the sensor frames of a drive ahead of time, in order, in a process of its own. A context manager."""

    def __init__(self, config: RobotConfig) -> None:
        self._config = config
        self._todo: Iterator[tuple[int, str]] = (event for event in schedule(config) if event[1] != "odometry")
        self._pending: deque[Future[Any]] = deque()
        context = multiprocessing.get_context("spawn")
        self._executor = ProcessPoolExecutor(1, context, _start_worker, (config,))
        for _ in range(AHEAD):
            self._submit()

    def _submit(self) -> None:
        event = next(self._todo, None)
        if event is not None:
            elapsed_ns, sensor = event
            self._pending.append(self._executor.submit(_sense, sensor, self._config.travelled_m(elapsed_ns)))

    def wait_until_ready(self) -> None:
        """Return once the first frame is rendered: the town is built by then."""
        if self._pending:
            self._pending[0].result()

    def next(self) -> Any:
        """The next frame: what ``Traverse.photograph`` or ``Traverse.scan`` returns, in the order of ``schedule``."""
        result = self._pending.popleft().result()
        self._submit()
        return result

    def __enter__(self) -> Renderer:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)
