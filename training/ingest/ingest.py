"""One bag to its sessions: one, or several where areas are cut out of the drive."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.ingest.ahead import read_ahead
from training.ingest.areas import Part
from training.ingest.bag import Bag
from training.ingest.config import AUTO, IngestConfig
from training.ingest.frames import Extrinsic, find_extrinsic
from training.ingest.keyframes import Fault, KeyframeReader, shrunk_size
from training.ingest.progress import Progress
from training.ingest.provenance import Provenance
from training.ingest.rectify import Rectifier, find_rectifier
from training.ingest.scan import Scan, scan
from training.ingest.select import GAPS, NO_POSE, Selection, gap_to_bridge_s, select_keyframes
from training.ingest.submaps import plan_submaps
from training.ingest.topics import Roles, choose_topics
from training.sessions import Session, SessionInfo, SessionWriter
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.geometry import Pose

STAGES = ("scan", "keyframes")
"""What ``ingest`` reports to its progress, in this order."""
AHEAD = 2
"""Keyframes that are decoded while another is written."""


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


def ingest(path: str | Path, output: str | Path, config: IngestConfig, progress: Progress) -> list[Outcome]:
    """Cut a bag into keyframes and write them as the session ``output/NAME``, and one more for each area.

    The bag is read twice, so that memory does not grow with it: first stamps and poses, from which the keyframes are
    chosen, then the images and clouds of those. An ingest that was killed leaves what it has written; the next one with
    the same files and settings goes on after the last keyframe that is whole.

    Raises:
        DataError: nothing can be read, topics do not fit, no keyframe is left, or another session has the name.
    """
    with Bag(path) as bag:
        roles = choose_topics(bag.topics, config)
        provenance = Provenance(bag, config)
        parts = config.cut.parts(config.name or session_name(bag.path), region_of(bag.path, config))
        # What is there already must not be overwritten; where the drive never came into an area, nothing is.
        folders = {Path(output) / part.folder: part for part in parts}
        outcomes = {folder: _left_alone(folder, provenance) for folder in folders if folder.exists()}
        if len(outcomes) == len(parts):
            return list(outcomes.values())
        rectifier = find_rectifier(bag, roles.camera, config)
        with provenance.in_background() as source:
            found = scan(bag, roles, config, progress)
            ingestion = _Ingestion(bag, roles, config, found, _extrinsic(roles, found, config), rectifier, progress)
            selection = ingestion.select()
            for folder, part in folders.items():
                chosen = selection.only(config.cut.inside(part, selection.positions))
                if folder in outcomes or not len(chosen):
                    continue
                files = source.result()
                if folder.exists():  # another process has finished it since
                    outcomes[folder] = _left_alone(folder, provenance)
                else:
                    outcomes[folder] = ingestion.write(part, folder, chosen, files)
        if not outcomes:
            raise DataError(
                f"{bag.path}: no keyframe is left: all are within area_margin_m of an area, in none of them"
            )
        return list(outcomes.values())


@dataclass(frozen=True)
class _Ingestion:
    """A bag that was read through once."""

    bag: Bag
    roles: Roles
    config: IngestConfig
    scan: Scan
    extrinsic: Extrinsic | None
    rectifier: Rectifier | None
    progress: Progress

    @property
    def labelled(self) -> bool:
        return self.config.labelled and self.roles.pose is not None

    def select(self) -> Selection:
        selection = select_keyframes(self.scan, self.config)
        if len(selection) == 0:
            raise DataError(f"{self.bag.path}: no keyframe is left: {why_none(self.scan, selection, self.config)}")
        if self.config.areas and self.scan.trajectory is None:
            raise DataError(
                f"{self.bag.path}: areas are given, and the bag has no poses: only poses tell what is inside"
            )
        return selection

    def write(self, part: Part, folder: Path, selection: Selection, source: dict[str, Any]) -> Outcome:
        """Read the keyframes of the selection and write them as a session."""
        config = self.config
        info = self._info(part)
        with SessionWriter(folder, info, resume_key=_key(info, source, selection)) as writer:
            drops = Counter(entry["drop"] for entry in writer.remembered if "drop" in entry)
            reader = KeyframeReader(
                self.bag,
                self.roles,
                self.scan,
                selection,
                self.extrinsic,
                config.require_lidar,
                config.max_image_side_px,
                plan_submaps(self.scan, selection, config),
                self.rectifier,
                first=len(writer) + drops.total(),
                faults=[Fault(*entry["fault"]) for entry in writer.remembered if "fault" in entry],
            )
            with read_ahead(reader, AHEAD) as coming:
                for keyframe in self.progress.of(STAGES[1], coming, len(selection), reader.first):
                    for fault in keyframe.faults:
                        writer.remember({"fault": [fault.problem, fault.message, fault.error]})
                    if keyframe.image is None:
                        writer.remember({"drop": keyframe.problem})
                        drops[keyframe.problem] += 1
                        continue
                    i = keyframe.number
                    pose = Pose(selection.positions[i], selection.quaternions[i]) if self.labelled else None
                    cloud_stamp_ns = int(selection.cloud_stamps_ns[i])
                    writer.add(int(selection.stamps_ns[i]), keyframe.image, keyframe.cloud, cloud_stamp_ns, pose)
            about_poses = [*self._about_poses(), *about_gaps(self.scan, selection, config)]
            notices = [*self.bag.notices, *self.scan.notices, *about_poses, *reader.notices]
            if len(writer) == 0:
                raise DataError(f"{self.bag.path}: no keyframe could be read: {'; '.join(notices)}")
            writer.info = replace(writer.info, sources=[{**source, "notices": notices}])
            writer.note(selection.drops + drops, selection.offsets_ms.round(3).tolist())
            return Outcome(folder, True, writer.info, len(writer), notices)

    def _info(self, part: Part) -> SessionInfo:
        extrinsic = self.extrinsic
        return SessionInfo(
            name=part.name,
            region=part.region,
            condition=self.config.condition,
            frame_id=self.scan.pose_frame if self.labelled else "",
            topics=self.roles.filled(),
            calibration={
                **({} if extrinsic is None else extrinsic.to_dict()),
                **({} if self.rectifier is None else {"rectified_intrinsics": self._intrinsics(self.rectifier)}),
                **self.scan.calibration,
            },
        )

    def _intrinsics(self, rectifier: Rectifier) -> list[list[float]]:
        """Of the images as they are stored: rectified, then shrunk."""
        height, width = rectifier.map_x.shape
        size = shrunk_size(width, height, self.config.max_image_side_px)
        rows: list[list[float]] = rectifier.intrinsics_at(*size).tolist()
        return rows

    def _about_poses(self) -> list[str]:
        topic = self.roles.pose
        if topic is None:
            return ["no pose topic: keyframes are spaced in time, and the session has no poses (unlabelled)"]
        if self.labelled:
            return [f"the positions of {topic} are written as surveyed; give --labelled false if they drift"]
        return [f"{topic} only spaces the keyframes: the session has no poses (unlabelled)"]


def _key(info: SessionInfo, source: dict[str, Any], selection: Selection) -> str:
    """What a half-written session must have been made from, to be gone on with."""
    made_from = [info.name, info.region, info.calibration, source["files"], source["settings"]]
    digest = hashlib.sha256(json.dumps(made_from).encode())
    for values in (selection.images, selection.clouds, selection.stamps_ns, selection.positions, selection.quaternions):
        digest.update(values.tobytes())
    return digest.hexdigest()


def _extrinsic(roles: Roles, found: Scan, config: IngestConfig) -> Extrinsic | None:
    if roles.lidar is None:
        return None
    return find_extrinsic(config.base_from_lidar, found.lidar_frame, found.base_frame, found.transforms)


def session_name(path: Path) -> str:
    """Name of a bag's session where none is given: that of its folder, or of its file without suffix."""
    path = path.resolve()
    return path.name if path.is_dir() else path.stem


def region_of(path: Path, config: IngestConfig) -> str:
    """Region of a bag's session: as configured, or the name of the folder that the bag is in."""
    return path.resolve().parent.name if config.region == AUTO else config.region


def why_none(scan: Scan, selection: Selection, config: IngestConfig) -> str:
    """What to mend where no image became a keyframe."""
    lines = [f"{count} images: {reason}" for reason, count in selection.drops.items()]
    lines += about_gaps(scan, selection, config)
    if len(selection.offsets_ms):
        nearest_s = abs(selection.offsets_ms).min() / 1e3
        if nearest_s > config.time_tolerance_s:
            lines.append(
                f"the nearest cloud is {nearest_s:.3f} s from an image, tolerance {config.time_tolerance_s} s: if the "
                "sensors' clocks agree, give a larger --time_tolerance_s"
            )
    return "; ".join(lines) or "the camera topic has no image"


def about_gaps(scan: Scan, selection: Selection, config: IngestConfig) -> list[str]:
    """Why images have no pose, where the pace of the poses or their clock explains it, and the mend."""
    if scan.trajectory is None or not selection.drops[NO_POSE]:
        return []
    poses, images = scan.trajectory.stamps_ns, scan.stamps_ns["camera"]
    late_s, early_s = (poses[0] - images.max()) / 1e9, (images.min() - poses[-1]) / 1e9
    if max(late_s, early_s) > 0:
        where = f"begin {late_s:.3f} s after the last" if late_s > 0 else f"end {early_s:.3f} s before the first"
        return [f"the poses {where} image: their clocks disagree, or the poses are of another drive"]
    needed_s = gap_to_bridge_s(poses)
    if needed_s <= config.max_pose_gap_s:
        return []
    return [
        f"poses come every {needed_s / GAPS:.3f} s, and none is interpolated across more than "
        f"{config.max_pose_gap_s} s: give --max_pose_gap_s {needed_s:.2f}"
    ]


def _left_alone(folder: Path, provenance: Provenance) -> Outcome:
    """Return the session at the folder if it came from the same files with the same settings."""
    session = Session(folder)
    if what := provenance.difference(session.info):
        raise DataError(
            f"{folder}: a session of this name was written {what}; remove it, or give another --name or --out"
        )
    notice = f"{folder}: written before from the same files with the same settings; left as it is"
    return Outcome(folder, False, session.info, len(session), [notice])
