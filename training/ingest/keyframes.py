"""Second reading of a bag: decodes the chosen images and clouds and hands them over pair by pair."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from training.ingest.bag import Bag
from training.ingest.frames import Extrinsic
from training.ingest.rectify import Rectifier
from training.ingest.select import Selection
from training.ingest.submaps import Submaps, thin
from training.ingest.topics import Roles
from vpr_kd_ros.decode import cloud_from_message, image_from_message
from vpr_kd_ros.errors import DataError

BAD_IMAGE = "undecodable image"
BAD_CLOUD = "undecodable cloud"
NO_POINTS = "cloud without a finite point"
PARTS = 8


@dataclass(frozen=True)
class Keyframe:
    """Number in the selection, RGB image (H, W, 3) uint8, and cloud in the base frame (M, 3) float32 or None."""

    number: int
    image: NDArray[np.uint8]
    cloud: NDArray[np.float32] | None


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
    """Reads the keyframes of a selection, in their order.

    Memory holds only the keyframes of which some messages were read and others were not yet.

    Attributes:
        drops: reason to count of keyframes that could not be read; complete at the end.
        notices: problems by kind, each with its count and its first error.
    """

    bag: Bag
    roles: Roles
    selection: Selection
    extrinsic: Extrinsic | None
    require_cloud: bool
    max_side_px: int | None
    submaps: Submaps | None = None
    rectifier: Rectifier | None = None
    drops: Counter[str] = field(default_factory=Counter)
    _errors: Counter[str] = field(default_factory=Counter)
    _first_error: dict[str, str] = field(default_factory=dict)

    @property
    def notices(self) -> list[str]:
        return [
            f"{problem}, {count} times, the first: {self._first_error[problem]}"
            for problem, count in self._errors.items()
        ]

    def __iter__(self) -> Iterator[Keyframe]:
        clouds = self._clouds()
        waiting: dict[int, _Waiting] = {}
        next_up = 0
        with tqdm(total=len(self.selection), desc="keyframes", unit="keyframe", leave=False) as bar:
            for topic, message, numbers, data in self._messages(clouds):
                entries = [waiting.setdefault(n, _Waiting(missing=1 + len(clouds[n]))) for n in numbers]
                if topic == self.roles.camera:
                    self._take_image(entries, data)
                else:
                    self._take_cloud(dict(zip(numbers, entries, strict=True)), message, data)
                for entry in entries:
                    entry.missing -= 1
                while next_up in waiting and waiting[next_up].missing == 0:
                    ready = waiting.pop(next_up)
                    bar.update()
                    next_up += 1
                    problem = ready.image_problem or (ready.cloud_problem if not ready.parts else "")
                    if ready.image is None or (problem and self.require_cloud):
                        self.drops[problem] += 1
                    else:
                        yield Keyframe(next_up - 1, ready.image, self._joined(ready.parts))

    def _clouds(self) -> list[list[int]]:
        """Numbers of the clouds of each keyframe."""
        if self.submaps is not None:
            return self.submaps.members
        return [[number] if number >= 0 else [] for number in self.selection.clouds.tolist()]

    def _messages(self, clouds: list[list[int]]) -> Iterator[tuple[str, int, list[int], bytes]]:
        """Topic, number of the message on it, keyframes that want it, and bytes; ends when all have what they need."""
        wanted: dict[str, dict[int, list[int]]] = {self.roles.camera: defaultdict(list)}
        for keyframe, message in enumerate(self.selection.images.tolist()):
            wanted[self.roles.camera][message].append(keyframe)
        if self.roles.lidar is not None:
            wanted[self.roles.lidar] = defaultdict(list)
            for keyframe, messages in enumerate(clouds):
                for message in messages:
                    wanted[self.roles.lidar][message].append(keyframe)
        outstanding = sum(len(messages) for messages in wanted.values())
        counts: Counter[str] = Counter()
        for topic, _time, data in self.bag.messages(set(wanted)):
            message = counts[topic]
            counts[topic] += 1
            if message in wanted[topic]:
                outstanding -= 1
                yield topic, message, wanted[topic][message], data
            if outstanding == 0:
                return

    def _take_image(self, entries: list[_Waiting], data: bytes) -> None:
        try:
            image = image_from_message(self.bag.decode(self.roles.camera, data))
            if self.rectifier is not None:
                image = self.rectifier.apply(image)
            image = shrink(image, self.max_side_px)
        except DataError as error:
            self._note(BAD_IMAGE, str(error))
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
            self._note(problem, str(error))
        else:
            # Many drivers write a beam that came back from nowhere as a point in the sensor itself.
            returned = points.any(axis=1)
            points = points if returned.all() else points[returned]
            if len(points):
                points = self.extrinsic.apply(points)
                for keyframe, entry in entries.items():
                    self._add_part(entry, points, message, keyframe)
                return
            problem = NO_POINTS
            self._note(problem, f"{self.roles.lidar}: nothing but non-finite points and zeros")
        for entry in entries.values():
            entry.cloud_problem = problem

    def _add_part(self, entry: _Waiting, points: NDArray[np.float32], message: int, keyframe: int) -> None:
        if self.submaps is None:
            entry.parts = [points]
            return
        entry.parts.append(thin(self.submaps.place(points, message, keyframe), self.submaps.voxel_m))
        # Joined from time to time, or the scans of a stretch would be held once for each of its keyframes.
        if len(entry.parts) == PARTS:
            entry.parts = [thin(np.concatenate(entry.parts), self.submaps.voxel_m)]

    def _joined(self, parts: list[NDArray[np.float32]]) -> NDArray[np.float32] | None:
        if not parts:
            return None
        return parts[0] if self.submaps is None else thin(np.concatenate(parts), self.submaps.voxel_m)

    def _note(self, problem: str, error: str) -> None:
        self._errors[problem] += 1
        self._first_error.setdefault(problem, error)


def shrink(image: NDArray[np.uint8], max_side_px: int | None) -> NDArray[np.uint8]:
    """Return the image, its longer side at most ``max_side_px`` long (None: as it is), by averaging areas."""
    height, width = image.shape[:2]
    if max_side_px is None or max(height, width) <= max_side_px:
        return image
    scale = max_side_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
