"""Sessions: drives cut into keyframes, the one data format that training, distillation and evaluation read.

A session is a folder::

    session.json        schema, name, region, condition, sources, topics, calibration, drops, time offsets
    keyframes.parquet   one row per keyframe (see ``COLUMNS``)
    images/000000.jpg   camera images, RGB once decoded
    clouds/000000.npz   ``points``, (M, 3) float32, metres, LiDAR points in the robot's base frame (x forward, z up)
    labels/000000.png   optional: the semantic class of each pixel, uint8, see ``CLASSES``
    labels/source.json  what told the classes, where they were added later (``training.session_labels``)

A session whose keyframes all have poses is *labelled*; one without poses (a drive that was simply recorded) is not.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any
from zipfile import BadZipFile

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from training.session_journal import NAME as JOURNAL
from training.session_journal import Journal
from vpr_kd_ros.errors import DataError, VprError
from vpr_kd_ros.geometry import Floats, Ints, Pose, yaw_from_quaternion

SCHEMA = 1
CLASSES = ("vegetation", "dynamic", "sky", "ground", "buildings", "other")
"""StructVPR's six semantic classes; a label image holds indices into this tuple."""

COLUMNS = pa.schema(
    [
        ("stamp_ns", pa.int64()),
        ("cloud_stamp_ns", pa.int64()),
        ("x", pa.float64()),
        ("y", pa.float64()),
        ("z", pa.float64()),
        ("qx", pa.float64()),
        ("qy", pa.float64()),
        ("qz", pa.float64()),
        ("qw", pa.float64()),
        ("image", pa.string()),
        ("cloud", pa.string()),
        ("labels", pa.string()),
    ]
)
FOLDERS = ("images", "clouds", "labels")
POSE_COLUMNS = ("x", "y", "z", "qx", "qy", "qz", "qw")


@dataclass(frozen=True)
class SessionInfo:
    """What ``session.json`` holds.

    Attributes:
        name: unique among the sessions that are used together.
        region: sessions of one region share a map frame; positions of different regions are never compared.
        condition: light, weather or season, as the owner named it.
        frame_id: the frame of the poses; empty when the session has none.
        sources: where it came from: paths, sizes, hashes, or the simulator's settings and seed.
        topics: role (camera, lidar, pose) to topic.
        calibration: whatever calibration the source had.
        drops: reason to count of frames that did not become keyframes.
        offsets_ms: camera minus LiDAR stamp of each pair, milliseconds.
    """

    name: str
    region: str
    condition: str = "unknown"
    frame_id: str = ""
    sources: list[dict[str, Any]] = field(default_factory=list)
    topics: dict[str, str] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    drops: dict[str, int] = field(default_factory=dict)
    offsets_ms: list[float] = field(default_factory=list)
    schema: int = SCHEMA


class Session:
    """A session folder, opened for reading. Images and clouds are read when asked for.

    Raises:
        DataError: the folder is not a session, was written by a newer version, or is incomplete.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.info = _read_info(self.path / "session.json")
        columns = _read_keyframes(self.path / "keyframes.parquet")
        self.stamps_ns: Ints = columns["stamp_ns"].astype(np.int64)
        self._images: list[str] = columns["image"].tolist()
        self._clouds: list[str | None] = columns["cloud"].tolist()
        self._labels: list[str | None] = columns["labels"].tolist()
        poses = np.stack([columns[c].astype(np.float64) for c in POSE_COLUMNS], axis=1)
        self.labelled: bool = len(poses) > 0 and bool(np.isfinite(poses).all())
        """Whether every keyframe has a pose."""
        self.positions: Floats = poses[:, :3]
        """(N, 3) float64, metres; NaN without poses."""
        self.quaternions: Floats = poses[:, 3:]
        """(N, 4) float64 (x, y, z, w); NaN without poses."""

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def region(self) -> str:
        return self.info.region

    @property
    def condition(self) -> str:
        return self.info.condition

    @property
    def yaws(self) -> Floats:
        """(N,) float64, heading in radians; NaN without poses."""
        return yaw_from_quaternion(self.quaternions)

    @property
    def has_clouds(self) -> bool:
        """Whether every keyframe has a LiDAR cloud."""
        return len(self) > 0 and all(cloud is not None for cloud in self._clouds)

    @property
    def has_semantics(self) -> bool:
        """Whether every keyframe has an image of semantic labels."""
        return len(self) > 0 and all(labels is not None for labels in self._labels)

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Camera image, RGB, (H, W, 3) uint8."""
        path = self.path / self._images[index]
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise DataError(f"{path}: not a readable image (keyframe {index} of session {self.name!r})")
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)

    def cloud(self, index: int) -> NDArray[np.float32]:
        """LiDAR points in the base frame, (M, 3) float32, metres."""
        name = self._clouds[index]
        if name is None:
            raise DataError(f"{self.path}: keyframe {index} has no LiDAR cloud")
        path = self.path / name
        try:
            with np.load(path, allow_pickle=False) as archive:
                points = np.asarray(archive["points"], dtype=np.float32)
        # What NumPy and zipfile raise on a file that is cut, changed or another.
        except (OSError, ValueError, KeyError, EOFError, TypeError, NotImplementedError, BadZipFile) as error:
            raise DataError(f"{path}: not a readable cloud (wants an .npz with 'points'): {error}") from error
        if points.ndim != 2 or points.shape[1] != 3:
            raise DataError(f"{path}: 'points' has shape {points.shape}, wants (M, 3)")
        return points

    def semantics(self, index: int) -> NDArray[np.uint8] | None:
        """Class of each pixel (index into ``CLASSES``), (H, W) uint8, or None where the session has no labels."""
        name = self._labels[index]
        if name is None:
            return None
        labels = cv2.imread(str(self.path / name), cv2.IMREAD_UNCHANGED)
        if labels is None or labels.ndim != 2:
            raise DataError(f"{self.path / name}: not a readable single-channel label image")
        return np.asarray(labels, dtype=np.uint8)

    def pose(self, index: int) -> Pose | None:
        """Pose of the robot's base in ``info.frame_id``, or None where the session has no poses."""
        if not self.labelled:
            return None
        return Pose(self.positions[index], self.quaternions[index])


class SessionWriter:
    """Writes a session beside its place and moves it there when all of it is written.

    Use as a context manager; if the block raises, nothing is left behind, except with a ``resume_key``: then whatever
    ends the writer but an error in the data leaves a half-written session, with which the next writer goes on.

    Args:
        path: folder of the session.
        info: of the session.
        jpeg_quality: of the images, 0 to 100.
        resume_key: tells what the session is made from; a session half-written with this key is gone on with.

    Attributes:
        remembered: what was given to ``remember`` by the writer with which this one goes on, in its order.

    Raises:
        DataError: the folder exists already, another process is writing it, or some keyframes have poses and others
            have none.
    """

    def __init__(
        self, path: str | Path, info: SessionInfo, jpeg_quality: int = 95, resume_key: str | None = None
    ) -> None:
        self.path = Path(path)
        self.info = info
        self.remembered: list[dict[str, Any]] = []
        self._jpeg = [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality]
        self._rows: list[dict[str, Any]] = []
        self._journal: Journal | None = None
        self._refused = False
        self._require_free()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if resume_key is None:
            self._work = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent))
        else:
            self._work = self.path.parent / f".{self.path.name}.partial"
            self._work.mkdir(exist_ok=True)
            self._go_on(resume_key)
        for folder in FOLDERS:
            (self._work / folder).mkdir(exist_ok=True)

    def __enter__(self) -> SessionWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        resumable = self._journal is not None and (self._refused or not isinstance(error, VprError))
        try:
            if kind is None:
                self._finish()
                resumable = False
        finally:
            if self._journal is not None:
                self._journal.close()
            if not resumable:
                shutil.rmtree(self._work, ignore_errors=True)

    def __len__(self) -> int:
        return len(self._rows)

    def add(
        self,
        stamp_ns: int,
        image: NDArray[np.uint8],
        cloud: NDArray[np.float32] | None = None,
        cloud_stamp_ns: int | None = None,
        pose: Pose | None = None,
        semantics: NDArray[np.uint8] | None = None,
    ) -> None:
        """Append one keyframe.

        Args:
            stamp_ns: of the image, nanoseconds.
            image: RGB, (H, W, 3) uint8.
            cloud: LiDAR points in the base frame, (M, 3) float32, metres.
            cloud_stamp_ns: of the cloud; the image's when not given.
            pose: of the base in ``info.frame_id``.
            semantics: (H, W) uint8, indices into ``CLASSES``.

        Raises:
            DataError: the cloud has another shape, the pose is not finite, or a file cannot be written.
        """
        stem = f"{len(self._rows):06d}"
        row: dict[str, Any] = {"stamp_ns": stamp_ns, "image": f"images/{stem}.jpg", "cloud": None, "labels": None}
        files = {row["image"]: _encoded(".jpg", np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2BGR)), self._jpeg)}
        if cloud is not None:
            if cloud.ndim != 2 or cloud.shape[1] != 3:
                raise DataError(f"{self.path}: cloud of keyframe {stem} has shape {cloud.shape}, wants (M, 3)")
            row["cloud"] = f"clouds/{stem}.npz"
            row["cloud_stamp_ns"] = stamp_ns if cloud_stamp_ns is None else cloud_stamp_ns
            archive = BytesIO()
            np.savez(archive, points=np.asarray(cloud, dtype=np.float32))
            files[row["cloud"]] = archive.getvalue()
        if semantics is not None:
            row["labels"] = f"labels/{stem}.png"
            files[row["labels"]] = _encoded(".png", semantics, [])
        if pose is not None:
            values = (*pose.position.tolist(), *pose.quaternion.tolist())
            if not np.isfinite(values).all():
                raise DataError(f"{self.path}: pose of keyframe {stem} is not finite: {values}")
            row.update(zip(POSE_COLUMNS, values, strict=True))
        for name, data in files.items():
            self._write(name, data)
        self._rows.append(row)
        if self._journal is not None:
            self._journal.add(row, files)

    def remember(self, entry: Mapping[str, Any]) -> None:
        """Keep plain values for the writer that goes on, if this one is killed; nothing without a ``resume_key``."""
        if self._journal is not None:
            self._journal.remember(entry)

    def note(self, drops: Mapping[str, int], offsets_ms: Iterable[float]) -> None:
        """Record what was dropped and the camera-LiDAR offsets, known only when the source is read through."""
        self.info = SessionInfo(**{**asdict(self.info), "drops": dict(drops), "offsets_ms": list(offsets_ms)})

    def _require_free(self) -> None:
        if self.path.exists():
            raise DataError(f"{self.path}: exists already; remove it or choose another folder")

    def _go_on(self, key: str) -> None:
        """Take over what an earlier writer with the key has written, and remove all else."""
        self._journal = Journal(self._work, key)
        try:
            self._require_free()  # another writer may have finished it since it was looked for
        except DataError:
            self._journal.close()
            shutil.rmtree(self._work, ignore_errors=True)
            raise
        self._rows = self._journal.rows
        self.remembered = self._journal.entries
        for path in self._work.rglob("*"):
            name = path.relative_to(self._work).as_posix()
            if path.is_file() and name != JOURNAL and name not in self._journal.files:
                path.unlink()

    def _write(self, name: str, data: bytes) -> None:
        try:
            (self._work / name).write_bytes(data)
        except OSError as error:
            self._refused = True
            raise DataError(f"{self._work / name}: could not be written: {error.strerror}") from error

    def _finish(self) -> None:
        posed = sum("x" in row for row in self._rows)
        if posed not in (0, len(self._rows)):
            raise DataError(f"{self.path}: {posed} of {len(self._rows)} keyframes have poses; all or none may")
        if not posed:
            self.info = SessionInfo(**{**asdict(self.info), "frame_id": ""})
        table = pa.Table.from_pylist(self._rows, schema=COLUMNS)
        pq.write_table(table, self._work / "keyframes.parquet")
        self._write("session.json", (json.dumps(asdict(self.info), indent=1) + "\n").encode())
        for folder in ("clouds", "labels"):
            if not any((self._work / folder).iterdir()):
                (self._work / folder).rmdir()
        self._work.chmod(0o755)
        os.rename(self._work, self.path)
        # Until here the journal is locked: a writer that took over in between would clear the folder.
        if self._journal is not None:
            self._journal.remove(self.path)


def require_one_origin(sessions: Sequence[Session]) -> None:
    """Refuse surveyed sessions of one region whose metres count from different satellite fixes.

    Raises:
        DataError: naming two of them and their origins.
    """
    first: dict[str, Session] = {}
    for session in sessions:
        if not session.labelled:
            continue
        other = first.setdefault(session.region, session)
        origins = [s.info.calibration.get("nav_origin") for s in (other, session)]
        if origins[0] != origins[1]:
            raise DataError(
                f"{other.path} and {session.path} are of region {session.region!r}, and their positions count from "
                f"different origins, {origins[0]} and {origins[1]}: ingest the drives of a region with one --nav_origin"
            )


def load_sessions(paths: Iterable[str | Path]) -> list[Session]:
    """Open the sessions in the given folders; a folder of sessions stands for all of them, sorted by name.

    Raises:
        DataError: a path holds no session, or two sessions share a name.
    """
    sessions: list[Session] = []
    for given in paths:
        path = Path(given)
        if (path / "session.json").exists():
            sessions.append(Session(path))
            continue
        # A hidden folder is what a writer that was killed left behind.
        inside = sorted(p.parent for p in path.glob("[!.]*/session.json")) if path.is_dir() else []
        if not inside:
            raise DataError(f"{path}: holds no session (no session.json in it or in its folders)")
        sessions.extend(Session(p) for p in inside)
    seen: dict[str, Path] = {}
    for session in sessions:
        if session.name in seen:
            raise DataError(f"{session.path} and {seen[session.name]}: both sessions are named {session.name!r}")
        seen[session.name] = session.path
    return sessions


def _encoded(suffix: str, pixels: NDArray[Any], options: list[int]) -> bytes:
    done, data = cv2.imencode(suffix, pixels, options)
    if not done:
        raise DataError(f"an image of shape {pixels.shape} cannot be written as {suffix}")
    return data.tobytes()


def _read_info(path: Path) -> SessionInfo:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{path.parent}: not a session (no session.json)") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not readable: {error}") from error
    schema = values.get("schema") if isinstance(values, dict) else None
    if not isinstance(schema, int) or schema > SCHEMA:
        raise DataError(f"{path}: schema {schema!r}; this version reads up to {SCHEMA}: update vpr_kd_ros")
    known = {f.name for f in fields(SessionInfo)}
    if not {"name", "region"} <= set(values) or not set(values) <= known:
        raise DataError(f"{path}: wants the keys {sorted(known)}, got {sorted(values)}")
    return SessionInfo(**values)


def _read_keyframes(path: Path) -> dict[str, NDArray[Any]]:
    try:
        table = pq.read_table(path)
        missing = [name for name in COLUMNS.names if name not in table.column_names]
        if missing:
            raise DataError(f"{path}: lacks the columns {missing}")
        table = table.select(COLUMNS.names).cast(COLUMNS)
        if table["stamp_ns"].null_count or table["image"].null_count:
            raise DataError(f"{path}: a keyframe has no stamp or no image")
        return {name: table[name].to_numpy() for name in COLUMNS.names}
    except (OSError, pa.ArrowException, ValueError) as error:
        raise DataError(f"{path}: not a readable keyframe table: {error}") from error
