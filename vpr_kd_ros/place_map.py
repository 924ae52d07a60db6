"""The map: places a robot has seen, each with descriptor, pose, stamp, session and a small picture.

A saved map is a folder, see ``vpr_kd_ros.map_files``. Descriptors are rounded to float16 when they are added (half the
file; the inner product of unit vectors moves by less than 1e-3), so a map searches the same before and after it was
saved.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import RLock

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from vpr_kd_ros.errors import DataError
from vpr_kd_ros.geometry import Floats, Pose
from vpr_kd_ros.index import Descriptors, Ids, PlaceIndex
from vpr_kd_ros.map_files import MapContent, Place, read_map, write_map

THUMBNAIL_WIDTH = 160
THUMBNAIL_QUALITY = 80


@dataclass(frozen=True)
class Neighbours:
    """The places most similar to a query, best first: ids (k,) int64, similarities (k,) float32, and their poses."""

    ids: Ids
    similarities: Descriptors
    poses: list[Pose]


class PlaceMap:
    """Places by id. Ids are never used twice. Safe to use from several threads.

    Args:
        descriptor_dim: length D of a descriptor.
        student_fingerprint: of the student whose descriptors it holds.
        frame_id: of the poses.
    """

    def __init__(self, descriptor_dim: int, student_fingerprint: str, frame_id: str) -> None:
        self.descriptor_dim = descriptor_dim
        self.student_fingerprint = student_fingerprint
        self.frame_id = frame_id
        self._index = PlaceIndex(descriptor_dim, half=True)
        self._places: dict[int, Place] = {}
        self._next_id = 0
        self._spacing: float | None = None
        self._lock = RLock()

    def __len__(self) -> int:
        return len(self._places)

    def add(
        self,
        descriptor: NDArray[np.float32],
        pose: Pose,
        stamp_ns: int,
        session: str,
        thumbnail: NDArray[np.uint8] | None = None,
    ) -> int:
        """Add a place and return its id.

        Args:
            descriptor: (D,) float32 of length 1.
            pose: of the robot's base in ``frame_id``.
            stamp_ns: of the image, nanoseconds.
            session: the drive it was seen in.
            thumbnail: RGB, (H, W, 3) uint8; kept as a JPEG at most ``THUMBNAIL_WIDTH`` pixels wide.

        Raises:
            DataError: the descriptor or the pose is not finite, has a wrong shape, or is not of length 1.
        """
        row = _half(descriptor, self.descriptor_dim)
        place = Place(_checked(pose), int(stamp_ns), session, None if thumbnail is None else _encode(thumbnail))
        with self._lock:
            place_id = self._next_id
            self._index.add([place_id], row[None])
            self._places[place_id] = place
            self._next_id += 1
            self._spacing = None
        return place_id

    def remove(self, ids: ArrayLike) -> int:
        """Remove the places with these ids, those that are there, and return how many were."""
        with self._lock:
            removed = self._index.remove(ids)
            for place_id in np.asarray(ids, dtype=np.int64).reshape(-1).tolist():
                self._places.pop(place_id, None)
            self._spacing = None
        return removed

    def search(self, descriptor: NDArray[np.float32], k: int) -> tuple[Ids, Descriptors]:
        """Ids int64 and similarities float32 of the ``k`` places, or as many as there are, most similar to (D,)."""
        ids, similarities = self._index.search(np.asarray(descriptor, dtype=np.float32)[None], k)
        found = ids[0] >= 0
        return ids[0][found], similarities[0][found]

    def neighbours(self, descriptor: NDArray[np.float32], k: int) -> Neighbours:
        """``search`` with the places' poses, taken together: none can be removed in between."""
        with self._lock:
            ids, similarities = self.search(descriptor, k)
            return Neighbours(ids, similarities, [self._places[i].pose for i in ids.tolist()])

    def pose(self, place_id: int) -> Pose:
        """Pose of the robot's base where the place was seen, in ``frame_id``. Raises DataError for an unknown id."""
        return self._place(place_id).pose

    def stamp_ns(self, place_id: int) -> int:
        """When the place was seen, nanoseconds. Raises DataError for an unknown id."""
        return self._place(place_id).stamp_ns

    def session(self, place_id: int) -> str:
        """The drive in which the place was seen. Raises DataError for an unknown id."""
        return self._place(place_id).session

    def thumbnail(self, place_id: int) -> NDArray[np.uint8] | None:
        """RGB, (H, W, 3) uint8, or None where the place has no picture. Raises DataError for an unknown id."""
        jpeg = self._place(place_id).jpeg
        if jpeg is None:
            return None
        decoded = cv2.imdecode(np.frombuffer(jpeg, dtype=np.uint8), cv2.IMREAD_COLOR)
        if decoded is None:
            raise DataError(f"place map: the picture of place {place_id} is not a readable JPEG")
        return np.ascontiguousarray(decoded[:, :, ::-1], dtype=np.uint8)

    @property
    def ids(self) -> Ids:
        """(N,) int64, ascending."""
        with self._lock:
            return np.array(list(self._places), dtype=np.int64)

    @property
    def positions(self) -> Floats:
        """(N, 3) float64, metres in ``frame_id``, in the order of ``ids``."""
        with self._lock:
            return np.array([place.pose.position for place in self._places.values()], dtype=np.float64).reshape(-1, 3)

    @property
    def quaternions(self) -> Floats:
        """(N, 4) float64, (x, y, z, w), in the order of ``ids``."""
        with self._lock:
            return np.array([place.pose.quaternion for place in self._places.values()], dtype=np.float64).reshape(-1, 4)

    @property
    def descriptors(self) -> Descriptors:
        """(N, D) float32, in the order of ``ids``."""
        with self._lock:
            return self._index.descriptors(self.ids)

    def descriptors_of(self, ids: ArrayLike) -> Descriptors:
        """(n, D) float32, of (n,) ids. Raises DataError for an unknown id."""
        return self._index.descriptors(ids)

    @property
    def spacing_m(self) -> float:
        """Median distance between a place and the one before it in its session, metres; 0 where none has one."""
        with self._lock:
            if self._spacing is None:
                self._spacing = _median_spacing(self._places.values())
            return self._spacing

    def save(self, path: str | Path) -> None:
        """Write the map to a folder, replacing the map that is there; see ``vpr_kd_ros.map_files.write_map``.

        Raises:
            DataError: something that is no place map is in the way, or the folder cannot be written.
        """
        with self._lock:
            content = MapContent(
                student_fingerprint=self.student_fingerprint,
                frame_id=self.frame_id,
                next_id=self._next_id,
                ids=self.ids,
                descriptors=self.descriptors.astype(np.float16),
                places=list(self._places.values()),
            )
        write_map(Path(path), content)

    @classmethod
    def load(cls, path: str | Path, student_fingerprint: str | None = None, search: str = "auto") -> PlaceMap:
        """Read a map and verify it.

        Args:
            path: the map's folder.
            student_fingerprint: of the student that will search it; None skips the comparison.
            search: ``auto``, ``exact`` or ``approximate``, see ``PlaceIndex.build``.

        Raises:
            ConfigError: ``search`` is none of these.
            DataError: there is no map, a file is missing or damaged, the schema is newer, or another student made it.
        """
        content = read_map(Path(path))
        place_map = cls(content.descriptors.shape[1], content.student_fingerprint, content.frame_id)
        if student_fingerprint is not None:
            place_map.require_student(student_fingerprint, str(path))
        place_map._index = PlaceIndex.build(content.ids, content.descriptors, search)
        place_map._places = dict(zip(content.ids.tolist(), content.places, strict=True))
        place_map._next_id = content.next_id
        return place_map

    @property
    def approximate(self) -> bool:
        """Whether a search may miss a place, see ``PlaceIndex``."""
        return self._index.approximate

    def require_student(self, student_fingerprint: str, name: str = "place map") -> None:
        """Raise DataError, beginning with ``name``, unless the map was made with this student."""
        if student_fingerprint != self.student_fingerprint:
            raise DataError(
                f"{name}: was made with the student {self.student_fingerprint[:12]}, not with "
                f"{student_fingerprint[:12]}, and descriptors of two students do not compare; load that student, or "
                f"rebuild the map with this one"
            )

    def _place(self, place_id: int) -> Place:
        try:
            return self._places[int(place_id)]
        except KeyError:
            raise DataError(f"place map: no place has the id {place_id}") from None


def _half(descriptor: NDArray[np.float32], descriptor_dim: int) -> Descriptors:
    """The descriptor rounded to float16, as float32."""
    row = np.asarray(descriptor, dtype=np.float32)
    if row.shape != (descriptor_dim,):
        raise DataError(f"place map: a descriptor of shape {row.shape}, wants ({descriptor_dim},)")
    if not abs(float(np.linalg.norm(row)) - 1.0) < 1e-3:
        raise DataError("place map: a descriptor is not finite or not of length 1")
    return row.astype(np.float16).astype(np.float32)


def _checked(pose: Pose) -> Pose:
    """The pose with its quaternion normalised."""
    length = float(np.linalg.norm(pose.quaternion))
    if not (np.isfinite(pose.position).all() and np.isfinite(length) and length > 1e-6):
        raise DataError("place map: a pose is not finite or its quaternion is zero")
    return Pose(np.asarray(pose.position, dtype=np.float64), np.asarray(pose.quaternion, dtype=np.float64) / length)


def _encode(image: NDArray[np.uint8]) -> bytes:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise DataError(f"place map: a picture wants (H, W, 3) uint8, got {image.shape} {image.dtype}")
    height, width = image.shape[:2]
    if width > THUMBNAIL_WIDTH:
        size = (THUMBNAIL_WIDTH, max(1, round(height * THUMBNAIL_WIDTH / width)))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    done, jpeg = cv2.imencode(
        ".jpg", np.ascontiguousarray(image[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, THUMBNAIL_QUALITY]
    )
    if not done:
        raise DataError(f"place map: a picture of {image.shape} could not be encoded")
    return jpeg.tobytes()


def _median_spacing(places: Iterable[Place]) -> float:
    last: dict[str, Floats] = {}
    steps: list[float] = []
    for place in places:
        if place.session in last:
            steps.append(float(np.linalg.norm(place.pose.position - last[place.session])))
        last[place.session] = place.pose.position
    return float(np.median(steps)) if steps else 0.0
