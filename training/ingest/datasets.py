"""Public data sets as sessions: image folders of the VPR benchmarks, RobotCar with PointNetVLAD's submaps, Boreas.

Only text, images and raw numbers are read, and PointNetVLAD's pickles as ``training.ingest.submap_lists`` does.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from training.ingest.areas import ELSEWHERE
from training.ingest.boreas import boreas
from training.ingest.dataset_frames import SUBMAP_TABLES, DatasetConfig, Found, Frame
from training.ingest.keyframes import shrink
from training.ingest.select import nearest
from training.ingest.submap_lists import ListedSubmaps, submaps_of
from training.sessions import Session, SessionInfo, SessionWriter
from vpr_kd_ros.decode import image_from_message
from vpr_kd_ros.errors import ConfigError, DataError
from vpr_kd_ros.geodesy import course
from vpr_kd_ros.geometry import Floats, Ints, Pose

IMAGES = (".jpg", ".jpeg", ".png")
CAMERA = Path("stereo") / "centre"
MICROSECOND_NS = 1000


@dataclass(frozen=True)
class Written:
    """A session of a folder: where it is, its number of keyframes, and what the owner should know."""

    path: Path
    keyframes: int
    notices: list[str]


def ingest_dataset(kind: str, folder: str | Path, out: str | Path, config: DatasetConfig) -> list[Written]:
    """Write the folder as the session ``out/NAME``, named as the folder, and one more for each area it comes into.

    A session that is there already, of the same folder with the same settings, is left as it is.

    Raises:
        ConfigError: there is no such kind of data set.
        DataError: the folder is not of the kind, nothing in it can be read, or another session has the name.
    """
    if kind not in FORMATS:
        raise ConfigError(f"format {kind!r}; known: {', '.join(FORMATS)}")
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    found = FORMATS[kind](folder, config)
    positions = np.array([frame.pose.position for frame in found.frames]).reshape(-1, 3)
    # As JSON gives it back, so that it compares with what a session holds.
    source = json.loads(json.dumps({"dataset": kind, "folder": str(folder), "settings": asdict(config)}))
    written = []
    for part in config.cut.parts(folder.name, config.region):
        inside = config.cut.inside(part, positions)
        if inside.any():
            frames = [frame for frame, kept in zip(found.frames, inside, strict=True) if kept]
            drops = found.drops + Counter({ELSEWHERE: int((~inside).sum())})
            path, info = Path(out) / part.folder, SessionInfo(part.name, part.region, config.condition, "utm", [source])
            if path.exists():
                written.append(_left_alone(path, source))
            else:
                written.append(_write(path, info, replace(found, frames=frames, drops=drops), config))
    if not written:
        raise DataError(f"{folder}: no keyframe could be read: {dict(found.drops)}")
    return written


def _left_alone(path: Path, source: dict[str, Any]) -> Written:
    """The session at the path, if it came of the same folder with the same settings."""
    session = Session(path)
    known: dict[str, Any] = session.info.sources[0] if len(session.info.sources) == 1 else {}
    if known != source:
        same_folder = all(known.get(key) == source[key] for key in ("dataset", "folder"))
        what = "with other settings" if same_folder else "from another folder"
        raise DataError(f"{path}: a session of this name was written {what}; remove it, or give another --out")
    notice = "written before from the same folder with the same settings; left as it is"
    return Written(path, len(session), [notice])


def _write(path: Path, info: SessionInfo, found: Found, config: DatasetConfig) -> Written:
    drops = Counter(found.drops)
    first_error = ""
    with SessionWriter(path, info) as writer:
        for frame in tqdm(found.frames, desc=info.name, unit="keyframe", leave=False):
            error = _add(writer, frame, config)
            drops["unreadable"] += error != ""
            first_error = first_error or error
        if len(writer) == 0:
            raise DataError(f"{path}: no keyframe could be read: {dict(drops)} {first_error}")
        drops = +drops
        writer.note(drops, found.offsets_ms)
        notices = [*found.notices, *([f"{drops['unreadable']} unreadable: {first_error}"] if first_error else [])]
        notices += [f"dropped, {why}: {count}" for why, count in drops.items()]
        return Written(writer.path, len(writer), notices)


def _add(writer: SessionWriter, frame: Frame, config: DatasetConfig) -> str:
    """Write the keyframe; returns what is wrong with its files, empty where they are whole."""
    try:
        image = shrink(_read_image(frame.image), config.max_image_side_px)
        cloud = None if frame.cloud is None else frame.cloud()
    except DataError as error:
        return str(error)
    writer.add(frame.stamp_ns, image, cloud, pose=frame.pose)
    return ""


def _utm_images(folder: Path, config: DatasetConfig) -> Found:
    """Images named ``@UTM_east@UTM_north@...``, with the heading in the ninth field, where it is known."""
    frames: list[Frame] = []
    drops: Counter[str] = Counter()
    headless = 0
    paths = sorted(path for path in folder.rglob("@*") if path.suffix.lower() in IMAGES)
    if not paths:
        raise DataError(f"{folder}: holds no image named @UTM_east@UTM_north@...")
    for path in paths:
        fields = path.name.split("@")
        position, heading = _numbers(fields[1:3]), _numbers(fields[9:10])
        if len(position) != 2:
            drops["no UTM position in the name"] += 1
            continue
        headless += len(heading) == 0
        # Headings are degrees clockwise from north; yaw is radians counter-clockwise from east.
        yaw = float(np.pi / 2 - np.deg2rad(heading[0])) if len(heading) else 0.0
        frames.append(Frame(len(frames) * 10**9, path, Pose.planar(position[0], position[1], yaw)))
    notices = ["stamps are the order of the file names: these images have no times"]
    if headless:
        notices.append(f"{headless} images have no heading in the name; it is written as east")
    return Found(frames, drops, notices, [])


def _robotcar(folder: Path, config: DatasetConfig) -> Found:
    """A run: PointNetVLAD's csv and submaps, and RobotCar's stereo/centre images, named by microseconds."""
    chosen_submaps = None if config.submaps is None else submaps_of(Path(config.submaps), folder.name)
    table = _table(folder, config, chosen_submaps)
    stamps, positions = _locations(table)
    clouds = folder / table.stem.replace("pointcloud_locations", "pointcloud")
    pictures = {int(p.stem): p for p in (folder / CAMERA).glob("*") if p.suffix in IMAGES and p.stem.isdigit()}
    if not pictures:
        raise DataError(f"{folder / CAMERA}: holds no image named by its time in microseconds")
    times = np.array(sorted(pictures), dtype=np.int64)
    chosen = times[nearest(stamps, times)]
    offsets_ms = (chosen - stamps) / 1e3
    near = np.abs(offsets_ms) <= config.time_tolerance_s * 1e3
    listed = np.ones(len(stamps), dtype=bool)
    if chosen_submaps is not None:
        listed = np.isin(stamps, list(chosen_submaps.stamps))
    frames = [
        Frame(
            int(chosen[i]) * MICROSECOND_NS,
            pictures[int(chosen[i])],
            pose,
            partial(_read_submap, clouds / f"{stamps[i]}.bin", config.cloud_scale),
        )
        for i, pose in enumerate(map(Pose.planar, positions[:, 0], positions[:, 1], course(positions)))
        if near[i] and listed[i]
    ]
    drops = Counter(
        {"no image near the submap in time": int((listed & ~near).sum()), "not in the list": int((~listed).sum())}
    )
    notices = [
        f"the submaps are those of {table.name}, {len(stamps)} in {clouds.name}/",
        "headings are the direction of travel from submap to submap",
    ]
    if config.cloud_scale == 1.0:
        notices.append("submaps are taken as metres; those scaled to -1 .. 1 want --cloud_scale")
    return Found(frames, +drops, notices, offsets_ms.round(3).tolist())


def _table(folder: Path, config: DatasetConfig, chosen: ListedSubmaps | None) -> Path:
    """The csv of the submaps: of the folder that the pickle names, the one asked for, or the only one."""
    if chosen is not None:
        named = chosen.folder.replace("pointcloud", "pointcloud_locations", 1) + ".csv"
        if not (folder / named).is_file():
            raise DataError(f"{folder}: {config.submaps} lists submaps in {chosen.folder}/, and {named} is not there")
        return folder / named
    there = [name for name in SUBMAP_TABLES if (folder / name).is_file()]
    if config.locations is not None and config.locations not in there:
        raise DataError(f"{folder}: holds no {config.locations}" + (f", but {there[0]}" if there else ""))
    wanted = there if config.locations is None else [config.locations]
    if not wanted:
        raise DataError(f"{folder}: holds neither {' nor '.join(SUBMAP_TABLES)}")
    if len(wanted) > 1:
        raise DataError(
            f"{folder}: holds {' and '.join(there)}: give --locations {there[0]} (20 m apart, PointNetVLAD tests on "
            f"them) or --locations {there[1]} (10 m, it trains on them), or a pickle that lists some, --submaps"
        )
    return folder / wanted[0]


FORMATS: dict[str, Callable[[Path, DatasetConfig], Found]] = {
    "utm-images": _utm_images,
    "robotcar": _robotcar,
    "boreas": boreas,
}


def _locations(path: Path) -> tuple[Ints, Floats]:
    """Times in microseconds, ascending, and east, north, 0 in metres, (N, 3)."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = sorted(_rows(path, csv.DictReader(stream)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a readable csv: {error}") from error
    if not rows:
        raise DataError(f"{path}: holds no submap")
    stamps = np.array([row[0] for row in rows], dtype=np.int64)
    return stamps, np.array([[east, north, 0.0] for _, east, north in rows])


def _rows(path: Path, reader: csv.DictReader[str]) -> Iterator[tuple[int, float, float]]:
    missing = {"timestamp", "northing", "easting"} - set(reader.fieldnames or ())
    if missing:
        raise DataError(f"{path}: lacks the columns {', '.join(sorted(missing))}")
    for number, row in enumerate(reader, start=2):
        position = _numbers([row["easting"], row["northing"]])
        if len(position) != 2 or not str(row["timestamp"]).isdigit():
            raise DataError(f"{path}: line {number} is not timestamp, northing, easting: {list(row.values())}")
        yield int(row["timestamp"]), position[0], position[1]


def _numbers(words: list[str]) -> list[float]:
    """Return the numbers that the words are, none of them where one is not a finite number."""
    try:
        values = [float(word) for word in words]
    except (ValueError, TypeError):
        return []
    return values if np.isfinite(values).all() else []


def _read_image(path: Path) -> NDArray[np.uint8]:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype != np.uint8 or (image.ndim == 3 and image.shape[2] not in (3, 4)):
        raise DataError(f"{path}: not a readable image of 8 bits")
    if image.ndim == 3:
        code = cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGB
        return np.asarray(cv2.cvtColor(image, code), dtype=np.uint8)
    if CAMERA.parts == path.parent.parts[-2:]:  # RobotCar's stereo images are stored as the sensor's mosaic
        height, width = image.shape
        return image_from_message(
            SimpleNamespace(
                encoding="bayer_gbrg8",
                height=height,
                width=width,
                step=width,
                is_bigendian=0,
                data=np.ascontiguousarray(image).ravel(),
            )
        )
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), dtype=np.uint8)


def _read_submap(path: Path, scale: float) -> NDArray[np.float32]:
    try:
        numbers = np.frombuffer(path.read_bytes(), dtype="<f8")
        points = numbers.reshape(-1, 3).astype(np.float32)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a submap of x, y, z in float64: {error}") from error
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) == 0:
        raise DataError(f"{path}: a submap without points")
    return points * np.float32(scale)
