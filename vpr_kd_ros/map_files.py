"""A place map on disk: a folder of four files.

::

    map.json                 schema, student, frame, counts, memory that it takes loaded, SHA-256 of the other files
    descriptors.safetensors  ``ids`` (N,) int64 and ``descriptors`` (N, D) float16
    keyframes.parquet        one row per place: id, stamp_ns, session, x, y, z, qx, qy, qz, qw
    thumbnails.parquet       one row per place that has a picture: id, jpeg

``map.json`` is written in one fixed form and carries its own checksum, so that a changed byte in any file is noticed.
The checksums find damage; they are no signature. One process at a time may write a map (``vpr_kd_ros.map_lock``); any
number may read it, even while it is replaced.

Schema 1 did not announce its memory; descriptors in float32 are read too, and rounded.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from vpr_kd_ros.errors import DataError
from vpr_kd_ros.geometry import Pose
from vpr_kd_ros.map_lock import MapLock, map_folder

SCHEMA = 2
INFO = "map.json"
DESCRIPTORS = "descriptors.safetensors"
KEYFRAMES = "keyframes.parquet"
THUMBNAILS = "thumbnails.parquet"
_FILES = (DESCRIPTORS, KEYFRAMES, THUMBNAILS)
_READ_TRIES = 5

_POSE_COLUMNS = ("x", "y", "z", "qx", "qy", "qz", "qw")
_KEYFRAME_SCHEMA = pa.schema(
    [("id", pa.int64()), ("stamp_ns", pa.int64()), ("session", pa.string())]
    + [(name, pa.float64()) for name in _POSE_COLUMNS]
)
_THUMBNAIL_SCHEMA = pa.schema([("id", pa.int64()), ("jpeg", pa.binary())])
# Of a loaded place beyond descriptor and picture: pose, stamp, session, and its entries in tables by id.
_PLACE_BYTES = 1000
_INFO_TYPES = {
    "schema": int,
    "student_fingerprint": str,
    "frame_id": str,
    "descriptor_dim": int,
    "places": int,
    "next_id": int,
    "memory_bytes": int,
    "files": dict,
    "checksum": str,
}


@dataclass(frozen=True)
class Place:
    """One keyframe without its descriptor: pose in the map's frame, stamp, session, and a JPEG or None."""

    pose: Pose
    stamp_ns: int
    session: str
    jpeg: bytes | None


@dataclass(frozen=True)
class MapContent:
    """All that a map's folder holds: ids (N,) int64, descriptors (N, D) float16, N places."""

    student_fingerprint: str
    frame_id: str
    next_id: int
    ids: NDArray[np.int64]
    descriptors: NDArray[np.float16]
    places: list[Place]

    @property
    def memory_bytes(self) -> int:
        """What the map takes at most once it is loaded, twice its descriptors while it loads included."""
        pictures = sum(len(place.jpeg) for place in self.places if place.jpeg is not None)
        count, dim = self.descriptors.shape
        return int(count * (4 * dim + _PLACE_BYTES) + pictures)


def write_map(path: Path, content: MapContent) -> None:
    """Write a map so that a kill at any moment leaves a whole map, the old or the new one.

    The new map is written to ``.NAME.new`` beside its place and flushed to the disk. Then the old one is moved aside to
    ``.NAME.old``, the new one is moved in, and the old one is removed. Between the two moves no map stands at
    ``path``; ``find_map`` then finds the one that was moved aside, and the next ``claim_map`` puts it back. Where
    ``path`` is a link, what it points to is replaced.

    Raises:
        DataError: as ``claim_map``, or the file system refuses.
    """
    folder = map_folder(path)
    with claim_map(folder):
        try:
            _replace(folder, content)
        except OSError as error:
            # Half a map would keep room that the next save needs.
            _remove(_beside(folder)[0])
            raise _not_writable(folder, error) from error


def claim_map(path: Path) -> MapLock:
    """The right to write a map, after putting back one that a killed save left aside.

    Raises:
        DataError: another process writes it, something that is no place map stands at ``path``, or the folder cannot be
            replaced.
    """
    folder = map_folder(path)
    if os.path.ismount(folder):
        raise _mount_point(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            lock = stack.enter_context(MapLock(folder))
            found = find_map(folder)
            if found is None and not _is_vacant(folder):
                raise DataError(f"{folder}: exists and is not a place map; choose another path")
            if found is not None and found != folder:
                found.rename(folder)
            stack.pop_all()
    except OSError as error:
        raise _not_writable(folder, error) from error
    return lock


def find_map(path: Path) -> Path | None:
    """The folder that a map is in, links followed: its own, or the one that a killed save left it in; None: no map.

    Raises:
        DataError: the file system refuses to tell.
    """
    folder = map_folder(path)
    aside = _beside(folder)[1]
    try:
        if (folder / INFO).is_file():
            return folder
        return aside if _is_vacant(folder) and (aside / INFO).is_file() else None
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from error


def maps_in(folder: Path) -> list[str]:
    """Names of the maps that a folder of several holds, ascending; none where there is no such folder.

    Raises:
        DataError: the file system refuses to tell.
    """
    try:
        entries = os.listdir(folder) if folder.is_dir() else []
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from error
    names = {aside[1] if (aside := re.fullmatch(r"\.(.+)\.old", name)) else name for name in entries}
    return sorted(name for name in names if not name.startswith(".") and find_map(folder / name) is not None)


def _is_vacant(folder: Path) -> bool:
    """Whether nothing is there, or an empty folder, which a map may take the place of."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def _replace(folder: Path, content: MapContent) -> None:
    new, old = _beside(folder)
    _remove(new)
    new.mkdir()
    _write_files(new, content)
    _flush(new)
    if folder.exists():
        _remove(old)
        folder.rename(old)
    new.rename(folder)
    _flush(folder.parent)
    _remove(old)


def _remove(path: Path) -> None:
    """Remove a folder as far as that goes, or a link: earlier versions moved links aside."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _not_writable(folder: Path, error: OSError) -> DataError:
    if error.errno == errno.EBUSY:
        return _mount_point(folder)
    return DataError(f"{folder}: the map cannot be written: {error}")


def _mount_point(folder: Path) -> DataError:
    return DataError(f"{folder}: is a mount point, which a save cannot replace; name a folder in it: {folder / 'map'}")


def read_map(path: Path) -> MapContent:
    """Read and verify a map, or the one a killed save left aside.

    Raises:
        DataError: there is no map, a file is missing or damaged, or the schema is newer.
    """
    for _ in range(_READ_TRIES):
        before = _identity(path)
        try:
            return _read(path)
        except DataError:
            # Another process replaced the map in the meantime: what was missing is there now.
            if _identity(path) == before:
                raise
    return _read(path)


def _read(path: Path) -> MapContent:
    folder = find_map(path) or map_folder(path)
    if not folder.exists():
        raise DataError(f"{folder}: there is no place map")
    info = _read_info(folder / INFO)
    data = {name: _read_verified(folder / name, info["files"].get(name)) for name in _FILES}
    try:
        tensors = safetensors.numpy.load(data[DESCRIPTORS])
        ids, descriptors = tensors["ids"], tensors["descriptors"]
        keyframes = pq.read_table(pa.BufferReader(data[KEYFRAMES])).cast(_KEYFRAME_SCHEMA)
        thumbnails = pq.read_table(pa.BufferReader(data[THUMBNAILS])).cast(_THUMBNAIL_SCHEMA)
    except (SafetensorError, KeyError, ValueError, OSError, pa.ArrowException) as error:
        raise DataError(f"{folder}: a file of the map is not what it should be: {error}") from error
    poses = np.stack([keyframes[name].to_numpy() for name in _POSE_COLUMNS], axis=1)
    count = info["places"]
    consistent = (
        ids.shape == (count,)
        and ids.dtype == np.int64
        and descriptors.shape == (count, info["descriptor_dim"])
        and descriptors.dtype in (np.float16, np.float32)
        and np.array_equal(keyframes["id"].to_numpy(), ids)
        and bool((np.diff(ids, prepend=-1, append=info["next_id"]) > 0).all())
        and bool(np.isfinite(poses).all())
        and bool((np.abs(np.linalg.norm(poses[:, 3:], axis=1) - 1.0) < 1e-6).all())
    )
    if not consistent:
        raise DataError(f"{folder}: the files of the map do not fit together; map again or restore a copy")
    jpegs = dict(zip(thumbnails["id"].to_pylist(), thumbnails["jpeg"].to_pylist(), strict=True))
    places = [
        Place(Pose(pose[:3], pose[3:]), stamp_ns, session, jpegs.get(place_id))
        for place_id, pose, stamp_ns, session in zip(
            ids.tolist(), poses, keyframes["stamp_ns"].to_pylist(), keyframes["session"].to_pylist(), strict=True
        )
    ]
    return MapContent(
        info["student_fingerprint"],
        info["frame_id"],
        info["next_id"],
        ids,
        descriptors.astype(np.float16, copy=False),
        places,
    )


def _identity(path: Path) -> list[tuple[int, int]]:
    """Which folders stand at a map's place and beside it; another one has another identity."""
    own = map_folder(path)
    found = []
    for folder in (own, _beside(own)[1]):
        try:
            status = (folder / INFO).stat()
        except OSError:
            continue
        found.append((status.st_ino, status.st_mtime_ns))
    return found


def _beside(path: Path) -> tuple[Path, Path]:
    """Where a map is written to, and where the one it replaces is moved to."""
    return path.parent / f".{path.name}.new", path.parent / f".{path.name}.old"


def _write_files(folder: Path, content: MapContent) -> None:
    tensors = {"ids": content.ids, "descriptors": np.ascontiguousarray(content.descriptors)}
    (folder / DESCRIPTORS).write_bytes(safetensors.numpy.save(tensors))
    poses = np.array(
        [[*place.pose.position, *place.pose.quaternion] for place in content.places], dtype=np.float64
    ).reshape(-1, 7)
    columns: list[Any] = [content.ids, [p.stamp_ns for p in content.places], [p.session for p in content.places]]
    columns += list(poses.T)
    pq.write_table(pa.Table.from_arrays([pa.array(c) for c in columns], schema=_KEYFRAME_SCHEMA), folder / KEYFRAMES)
    jpegs = [(i, p.jpeg) for i, p in zip(content.ids.tolist(), content.places, strict=True) if p.jpeg is not None]
    table = pa.Table.from_arrays(
        [pa.array([i for i, _ in jpegs], pa.int64()), pa.array([jpeg for _, jpeg in jpegs], pa.binary())],
        schema=_THUMBNAIL_SCHEMA,
    )
    pq.write_table(table, folder / THUMBNAILS, compression="none", use_dictionary=False)
    info = {
        "schema": SCHEMA,
        "student_fingerprint": content.student_fingerprint,
        "frame_id": content.frame_id,
        "descriptor_dim": int(content.descriptors.shape[1]),
        "places": len(content.places),
        "next_id": content.next_id,
        "memory_bytes": content.memory_bytes,
        "files": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in _FILES},
    }
    (folder / INFO).write_text(_render({**info, "checksum": _checksum(info)}))


def _read_info(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes().decode()
        info = json.loads(text)
    except FileNotFoundError:
        raise DataError(f"{path.parent}: not a place map (no {INFO})") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable: {error}; restore a copy or map again") from error
    schema = info.get("schema") if isinstance(info, dict) else None
    if type(schema) is int and schema > SCHEMA:
        raise DataError(f"{path}: schema {schema}; this version reads up to {SCHEMA}: update vpr_kd_ros")
    types = {key: kind for key, kind in _INFO_TYPES.items() if schema != 1 or key != "memory_bytes"}
    whole = (
        isinstance(info, dict)
        and set(info) == set(types)
        and all(type(info[key]) is kind for key, kind in types.items())
        and _checksum({key: value for key, value in info.items() if key != "checksum"}) == info["checksum"]
        and _render(info) == text
    )
    if not whole:
        raise DataError(f"{path}: damaged or edited (its checksum does not fit); restore a copy or map again")
    return dict(info)


def _read_verified(path: Path, checksum: str | None) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: the file is missing from the map; restore a copy or map again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != checksum:
        raise DataError(f"{path}: damaged (its SHA-256 is not the one in {INFO}); restore a copy or map again")
    return data


def _render(info: dict[str, Any]) -> str:
    return json.dumps(info, indent=1) + "\n"


def _checksum(info: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()


def _flush(folder: Path) -> None:
    """Have the disk hold the folder's files and the folder itself."""
    for path in (*(p for p in folder.iterdir() if p.is_file()), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
