"""One bag to one session."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from training.ingest.bag import Bag
from training.ingest.config import IngestConfig
from training.ingest.frames import find_extrinsic
from training.ingest.keyframes import KeyframeReader
from training.ingest.rectify import find_rectifier
from training.ingest.scan import scan
from training.ingest.select import Selection, select_keyframes
from training.ingest.submaps import plan_submaps
from training.ingest.topics import choose_topics
from training.sessions import Session, SessionInfo, SessionWriter
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.geometry import Pose


@dataclass(frozen=True)
class Outcome:
    """What came of a bag.

    Attributes:
        session: folder of the session.
        written: False where the session was there already, from the same files with the same configuration.
        info: of the session.
        keyframes: how many it has.
        notices: what the owner should know.
    """

    session: Path
    written: bool
    info: SessionInfo
    keyframes: int
    notices: list[str]


def ingest(path: str | Path, output: str | Path, config: IngestConfig) -> Outcome:
    """Cut a bag into keyframes and write them as the session ``output/NAME``.

    The bag is read twice, so that memory does not grow with it: first stamps and poses, from which the keyframes are
    chosen, then the images and clouds of those.

    Raises:
        DataError: nothing can be read, topics do not fit, no keyframe is left, or another session has the name.
    """
    with Bag(path) as bag:
        roles = choose_topics(bag.topics, config)
        source = _source(bag, config)
        name = config.name or _name_of(bag.path)
        folder = Path(output) / name
        if folder.exists():
            return _same_session(folder, source)
        rectifier = find_rectifier(bag, roles.camera, config)
        found = scan(bag, roles, config)
        selection = select_keyframes(found, config)
        if len(selection) == 0:
            raise DataError(f"{bag.path}: no keyframe is left: {why_none(selection, config)}")
        extrinsic = None
        if roles.lidar is not None:
            extrinsic = find_extrinsic(config.base_from_lidar, found.lidar_frame, found.base_frame, found.transforms)
        submaps = plan_submaps(found, selection, config)
        labelled = config.labelled and roles.pose is not None
        info = SessionInfo(
            name=name,
            region=config.region,
            condition=config.condition,
            frame_id=found.pose_frame if labelled else "",
            topics=roles.filled(),
            calibration={
                **({} if extrinsic is None else extrinsic.to_dict()),
                **({} if rectifier is None else {"rectified_intrinsics": rectifier.intrinsics.tolist()}),
                **found.calibration,
            },
        )
        reader = KeyframeReader(
            bag, roles, selection, extrinsic, config.require_lidar, config.max_image_side_px, submaps, rectifier
        )
        with SessionWriter(folder, info) as writer:
            for keyframe in reader:
                i = keyframe.number
                writer.add(
                    int(selection.stamps_ns[i]),
                    keyframe.image,
                    keyframe.cloud,
                    int(selection.cloud_stamps_ns[i]),
                    Pose(selection.positions[i], selection.quaternions[i]) if labelled else None,
                )
            drops = Counter(selection.drops) + reader.drops
            notices = [*bag.notices, *found.notices, *_about_poses(roles.pose, labelled), *reader.notices]
            if len(writer) == 0:
                raise DataError(f"{bag.path}: no keyframe could be read: {'; '.join(notices)}")
            writer.info = SessionInfo(**{**asdict(writer.info), "sources": [{**source, "notices": notices}]})
            writer.note(drops, selection.offsets_ms.round(3).tolist())
            return Outcome(folder, True, writer.info, len(writer), notices)


def why_none(selection: Selection, config: IngestConfig) -> str:
    """What to mend where no image became a keyframe."""
    lines = [f"{count} images: {reason}" for reason, count in selection.drops.items()]
    if len(selection.offsets_ms):
        nearest_s = abs(selection.offsets_ms).min() / 1e3
        if nearest_s > config.time_tolerance_s:
            lines.append(
                f"the nearest cloud is {nearest_s:.3f} s from an image, tolerance {config.time_tolerance_s} s: if the "
                "sensors' clocks agree, give a larger --time_tolerance_s"
            )
    return "; ".join(lines) or "the camera topic has no image"


def _name_of(path: Path) -> str:
    path = path.resolve()
    return path.name if path.is_dir() else path.stem


def _about_poses(topic: str | None, labelled: bool) -> list[str]:
    if topic is None:
        return ["no pose topic: keyframes are spaced in time, and the session has no poses (unlabelled)"]
    if labelled:
        return [f"the positions of {topic} are written as surveyed; give --labelled false if they drift"]
    return [f"{topic} only spaces the keyframes: the session has no poses (unlabelled)"]


def _source(bag: Bag, config: IngestConfig) -> dict[str, Any]:
    paths = [*bag.files, *(Path(p) for p in (config.trajectory, config.trajectory_stamps) if p is not None)]
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise DataError(f"{', '.join(missing)}: there is no such file")
    total = sum(path.stat().st_size for path in paths)
    files = []
    with tqdm(total=total, desc="hash", unit="B", unit_scale=True, leave=False) as bar:
        for path in paths:
            digest = hashlib.sha256()
            with path.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
                    bar.update(len(block))
            files.append({"name": path.name, "bytes": path.stat().st_size, "sha256": digest.hexdigest()})
    # As JSON gives it back, so that it compares with what a session holds.
    return {"bag": str(bag.path), "files": files, "settings": json.loads(json.dumps(asdict(config)))}


def _same_session(folder: Path, source: dict[str, Any]) -> Outcome:
    """Return the session at the folder if it came from the same files with the same settings."""
    session = Session(folder)
    known: Sequence[dict[str, Any]] = session.info.sources
    for key, what in (("files", "from other files"), ("settings", "with other settings")):
        if len(known) != 1 or known[0].get(key) != source[key]:
            raise DataError(
                f"{folder}: a session of this name was written {what}; remove it, or give another --name or --out"
            )
    notice = f"{folder}: written before from the same files with the same settings; left as it is"
    return Outcome(folder, False, session.info, len(session), [notice])
