"""Second reading of a bag: decodes the chosen images and clouds and hands them over pair by pair."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from training.ingest.bag import Bag
from training.ingest.frames import Extrinsic
from training.ingest.rectify import Rectifier
from training.ingest.scan import Scan
from training.ingest.select import Selection
from training.ingest.submaps import Submaps, thin
from training.ingest.topics import Roles
from vpr_kd_ros.decode import cloud_from_message, image_from_message
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.geometry import Ints

BAD_IMAGE = "undecodable image"
BAD_CLOUD = "undecodable cloud"
NO_POINTS = "cloud without a finite point"
LOST = "not found again on the second reading"
PARTS = 8


@dataclass(frozen=True)
class Fault:
    """A message that cannot be used: the kind of problem, its number on its topic, and the error."""

    problem: str
    message: int
    error: str


@dataclass(frozen=True)
class Keyframe:
    """Number in the selection, RGB image (H, W, 3) uint8, and cloud in the base frame (M, 3) float32 or None.

    Without an image it could not be read, for the reason ``problem``. The faults are those found since the keyframe
    before it.
    """

    number: int
    image: NDArray[np.uint8] | None
    cloud: NDArray[np.float32] | None = None
    problem: str = ""
    faults: tuple[Fault, ...] = ()


@dataclass
class _Waiting:
    """A keyframe until all its messages were read."""

    missing: int
    image: NDArray[np.uint8] | None = None
    parts: list[NDArray[np.float32]] = field(default_factory=list)
    image_problem: str = ""
    cloud_problem: str = ""


@dataclass
class KeyframeReader:
    """Reads the keyframes of a selection, in their order, each of them or why there is none.

    Memory holds only the keyframes of which some messages were read and others were not yet.

    Attributes:
        first: number of the first keyframe wanted; those before it were read earlier.
        faults: messages that could not be used, those found earlier first; of each kind only the first has its error.
    """

    bag: Bag
    roles: Roles
    scan: Scan
    selection: Selection
    extrinsic: Extrinsic | None
    require_cloud: bool
    max_side_px: int | None
    submaps: Submaps | None = None
    rectifier: Rectifier | None = None
    first: int = 0
    faults: list[Fault] = field(default_factory=list)
    _known: dict[str, set[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for fault in self.faults:
            self._known.setdefault(fault.problem, set()).add(fault.message)

    @property
    def notices(self) -> list[str]:
        """Problems by kind, each with its count and its first error."""
        counts = Counter(fault.problem for fault in self.faults)
        errors = {fault.problem: fault.error for fault in reversed(self.faults) if fault.error}
        return [f"{problem}, {count} times, the first: {errors[problem]}" for problem, count in counts.items()]

    def __iter__(self) -> Iterator[Keyframe]:
        known = len(self.faults)
        for keyframe in self._keyframes():
            yield replace(keyframe, faults=tuple(self.faults[known:]))
            known = len(self.faults)

    def _keyframes(self) -> Iterator[Keyframe]:
        clouds = self._clouds()
        waiting: dict[int, _Waiting] = {}
        next_up = self.first
        for topic, message, numbers, data in self._messages(clouds):
            entries = [waiting.setdefault(n, _Waiting(missing=1 + len(clouds[n]))) for n in numbers]
            if topic == self.roles.camera:
                self._take_image(entries, message, data)
            else:
                self._take_cloud(dict(zip(numbers, entries, strict=True)), message, data)
            for entry in entries:
                entry.missing -= 1
            while next_up in waiting and waiting[next_up].missing == 0:
                yield self._keyframe(next_up, waiting.pop(next_up))
                next_up += 1
        # Only where the file changed or lost bytes since the first reading.
        for number in range(next_up, len(self.selection)):
            entry = waiting.pop(number, _Waiting(missing=1))
            yield self._keyframe(number, entry) if entry.missing == 0 else Keyframe(number, None, problem=LOST)

    def _keyframe(self, number: int, ready: _Waiting) -> Keyframe:
        problem = ready.image_problem or (ready.cloud_problem if not ready.parts else "")
        if ready.image is None or (problem and self.require_cloud):
            return Keyframe(number, None, problem=problem)
        return Keyframe(number, ready.image, self._joined(ready.parts))

    def _clouds(self) -> list[list[int]]:
        """Numbers of the clouds of each keyframe."""
        if self.submaps is not None:
            return self.submaps.members
        return [[number] if number >= 0 else [] for number in self.selection.clouds.tolist()]

    def _messages(self, clouds: list[list[int]]) -> Iterator[tuple[str, int, list[int], bytes]]:
        """Topic, number of the message on it, keyframes that want it, and bytes; ends when all have what they need."""
        images: dict[int, list[int]] = defaultdict(list)
        scans: dict[int, list[int]] = defaultdict(list)
        for keyframe in range(self.first, len(self.selection)):
            images[int(self.selection.images[keyframe])].append(keyframe)
            for message in clouds[keyframe]:
                scans[message].append(keyframe)
        wanted = {self.roles.camera: _found_by(self.scan.times_ns["camera"], images)}
        if self.roles.lidar is not None:
            wanted[self.roles.lidar] = _found_by(self.scan.times_ns["lidar"], scans)
        outstanding = len(images) + len(scans)
        times = {topic: {time for time, _ in places} for topic, places in wanted.items()}
        seen: Counter[tuple[str, int]] = Counter()
        for topic, time, data in self.bag.messages(times=times) if outstanding else ():
            place = (time, seen[topic, time])
            seen[topic, time] += 1
            if place in wanted[topic]:
                outstanding -= 1
                message, keyframes = wanted[topic][place]
                yield topic, message, keyframes, data
            if outstanding == 0:
                return

    def _take_image(self, entries: list[_Waiting], message: int, data: bytes) -> None:
        try:
            image = image_from_message(self.bag.decode(self.roles.camera, data))
            if self.rectifier is not None:
                image = self.rectifier.apply(image)
            image = shrink(image, self.max_side_px)
        except DataError as error:
            self._note(BAD_IMAGE, message, str(error))
            for entry in entries:
                entry.image_problem = BAD_IMAGE
            return
        for entry in entries:
            entry.image = image

    def _take_cloud(self, entries: dict[int, _Waiting], message: int, data: bytes) -> None:
        assert self.roles.lidar is not None
        assert self.extrinsic is not None
        try:
            points = cloud_from_message(self.bag.decode(self.roles.lidar, data))
        except DataError as error:
            problem = BAD_CLOUD
            self._note(problem, message, str(error))
        else:
            if len(points):
                points = self.extrinsic.apply(points)
                if self.submaps is not None:  # once, and not for each of the keyframes that it is placed in
                    points = thin(points, self.submaps.voxel_m)
                for keyframe, entry in entries.items():
                    self._add_part(entry, points, message, keyframe)
                return
            problem = NO_POINTS
            self._note(problem, message, f"{self.roles.lidar}: nothing but non-finite points and zeros")
        for entry in entries.values():
            entry.cloud_problem = problem

    def _add_part(self, entry: _Waiting, points: NDArray[np.float32], message: int, keyframe: int) -> None:
        if self.submaps is None:
            entry.parts = [points]
            return
        entry.parts.append(self.submaps.place(points, message, keyframe))
        # Joined from time to time, or the scans of a stretch would be held once for each of its keyframes.
        if len(entry.parts) == PARTS:
            entry.parts = [thin(np.concatenate(entry.parts), self.submaps.voxel_m)]

    def _joined(self, parts: list[NDArray[np.float32]]) -> NDArray[np.float32] | None:
        if not parts:
            return None
        return parts[0] if self.submaps is None else thin(np.concatenate(parts), self.submaps.voxel_m)

    def _note(self, problem: str, message: int, error: str) -> None:
        known = self._known.setdefault(problem, set())
        # Of those that are read again after an interruption some are known.
        if message not in known:
            self.faults.append(Fault(problem, message, "" if known else error))
            known.add(message)


def _found_by(times: Ints, wanted: dict[int, list[int]]) -> dict[tuple[int, int], tuple[int, list[int]]]:
    """Time of recording, and how many messages of the topic at that time come before it, to each message wanted."""
    order = np.argsort(times, kind="stable")
    ordered = times[order]
    before = np.empty(len(times), dtype=np.int64)
    before[order] = np.arange(len(times)) - np.searchsorted(ordered, ordered, side="left")
    return {(int(times[n]), int(before[n])): (n, keyframes) for n, keyframes in wanted.items()}


def shrink(image: NDArray[np.uint8], max_side_px: int | None) -> NDArray[np.uint8]:
    """Return the image, its longer side at most ``max_side_px`` long (None: as it is), by averaging areas."""
    height, width = image.shape[:2]
    size = shrunk_size(width, height, max_side_px)
    if size == (width, height):
        return image
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def shrunk_size(width: int, height: int, max_side_px: int | None) -> tuple[int, int]:
    """Width and height in pixels to which ``shrink`` brings an image."""
    if max_side_px is None or max(height, width) <= max_side_px:
        return width, height
    scale = max_side_px / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))
