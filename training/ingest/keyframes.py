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
from training.ingest.select import Selection
from training.ingest.topics import Roles
from vpr_kd_ros.decode import cloud_from_message, image_from_message
from vpr_kd_ros.errors import DataError

BAD_IMAGE = "undecodable image"
BAD_CLOUD = "undecodable cloud"
NO_POINTS = "cloud without a finite point"


@dataclass(frozen=True)
class Keyframe:
    """Number in the selection, RGB image (H, W, 3) uint8, and cloud in the base frame (M, 3) float32 or None."""

    number: int
    image: NDArray[np.uint8]
    cloud: NDArray[np.float32] | None


@dataclass
class _Waiting:
    """A keyframe until both its messages were read."""

    image: NDArray[np.uint8] | None = None
    cloud: NDArray[np.float32] | None = None
    missing: int = 2
    problem: str = ""


@dataclass
class KeyframeReader:
    """Reads the keyframes of a selection, in their order.

    Memory holds only the keyframes whose image was read and whose cloud was not yet, or the other way round.

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
        waiting: dict[int, _Waiting] = {}
        next_up = 0
        with tqdm(total=len(self.selection), desc="keyframes", unit="keyframe", leave=False) as bar:
            for number, role, data in self._messages():
                entry = waiting.setdefault(number, _Waiting(missing=1 + int(self.selection.clouds[number] >= 0)))
                entry.missing -= 1
                if role == "image":
                    self._take_image(entry, data)
                else:
                    self._take_cloud(entry, data)
                while next_up in waiting and waiting[next_up].missing == 0:
                    ready = waiting.pop(next_up)
                    bar.update()
                    next_up += 1
                    if ready.problem or ready.image is None:
                        self.drops[ready.problem] += 1
                    else:
                        yield Keyframe(next_up - 1, ready.image, ready.cloud)

    def _messages(self) -> Iterator[tuple[int, str, bytes]]:
        """Keyframe number, "image" or "cloud", and message bytes; ends when every keyframe has what it needs."""
        wanted: dict[str, dict[int, list[int]]] = {self.roles.camera: defaultdict(list)}
        for number, message in enumerate(self.selection.images.tolist()):
            wanted[self.roles.camera][message].append(number)
        if self.roles.lidar is not None:
            wanted[self.roles.lidar] = defaultdict(list)
            for number, message in enumerate(self.selection.clouds.tolist()):
                if message >= 0:
                    wanted[self.roles.lidar][message].append(number)
        outstanding = sum(len(messages) for messages in wanted.values())
        counts: Counter[str] = Counter()
        for topic, _time, data in self.bag.messages(set(wanted)):
            message = counts[topic]
            counts[topic] += 1
            if message in wanted[topic]:
                outstanding -= 1
                for number in wanted[topic][message]:
                    yield number, "image" if topic == self.roles.camera else "cloud", data
            if outstanding == 0:
                return

    def _take_image(self, entry: _Waiting, data: bytes) -> None:
        try:
            image = image_from_message(self.bag.decode(self.roles.camera, data))
        except DataError as error:
            self._note(BAD_IMAGE, str(error))
            entry.problem = BAD_IMAGE
            return
        entry.image = shrink(image, self.max_side_px)

    def _take_cloud(self, entry: _Waiting, data: bytes) -> None:
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
                entry.cloud = self.extrinsic.apply(points)
                return
            problem = NO_POINTS
            self._note(problem, f"{self.roles.lidar}: nothing but non-finite points and zeros")
        if self.require_cloud:
            entry.problem = entry.problem or problem

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
