"""What a bag holds, what it lacks for training, and the ingest command that fits it."""

from __future__ import annotations

import shlex
from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from training.ingest.bag import Bag, Topic
from training.ingest.config import IngestConfig
from training.ingest.frames import BASE, Edge, find_chain, find_extrinsic, stamped_transforms, transforms_of
from training.ingest.poses import TF_TYPE
from training.ingest.report import histogram
from training.ingest.select import GAPS, gap_to_bridge_s, nearest
from training.ingest.topics import FIX_TYPE, TYPES, candidates
from vpr_kd_ros.decode import cloud_from_message, image_from_message, pose_from_message
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.geodesy import fix_from_message
from vpr_kd_ros.geometry import Floats, Ints

MAP_FRAMES = ("map", "world", "earth", "odom")
"""Names of the frame in which poses are given, the best first; odom drifts (REP 105)."""
BASE_FRAMES = (BASE, "base_footprint")
KNOWN = {kind: role for role, kinds in TYPES.items() for kind in kinds}


@dataclass
class _Transforms:
    """Static transforms, (parent, child) to (4, 4), and edges of the moving ones."""

    static: dict[Edge, Floats] = field(default_factory=dict)
    moving: set[Edge] = field(default_factory=set)

    def chain(self) -> tuple[str, str] | None:
        """Frames of the map and of the base between which a chain leads that moves, None where there is none."""
        for map_frame in MAP_FRAMES:
            for base in BASE_FRAMES:
                chain = find_chain(map_frame, base, {*self.static, *self.moving}) or []
                if any(edge in self.moving for edge, _ in chain):
                    return map_frame, base
        return None


@dataclass
class _Seen:
    """What was seen of one topic: times of recording, header stamps (same length, where it has a known header)."""

    times: array[int] = field(default_factory=lambda: array("q"))
    stamps: array[int] = field(default_factory=lambda: array("q"))
    first: Any = None
    problem: str = ""
    unstamped: int = 0

    def sorted_stamps(self) -> Ints:
        return np.sort(np.frombuffer(self.stamps, dtype=np.int64))


def inspect(bag: Bag) -> str:
    """Read the bag through once and describe it in plain text."""
    seen, transforms = _read(bag)
    chosen = {role: _most(candidates(bag.topics, role)) for role in TYPES}
    lines = [_headline(bag, seen), *_table(bag, seen)]
    lines.extend(f"the recorder noted: {name}: {value}" for name, value in bag.custom.items())
    for role, topic in chosen.items():
        lines.append(f"{role + ':':<8}" + ("none" if topic is None else _describe(role, topic, seen[topic.name])))
    offsets_ms = _offsets_ms(chosen, seen)
    lines.extend(histogram(offsets_ms.tolist()))
    advice, options = _advice(bag, chosen, seen, transforms, offsets_ms)
    lines.extend(f"NOTICE {notice}" for notice in [*bag.notices, *advice])
    if chosen["camera"] is not None:
        words = ["python", "-m", "training", "ingest", str(bag.path), "--out", "sessions/train"]
        words += ["--region", "REGION", "--condition", "CONDITION", *options]
        lines.extend(["next:", "  " + " ".join(map(shlex.quote, words))])
    return "\n".join(lines)


def _read(bag: Bag) -> tuple[dict[str, _Seen], _Transforms]:
    seen = {name: _Seen() for name in bag.topics}
    transforms = _Transforms()
    for name, time, data in tqdm(bag.messages(), total=bag.message_count, desc="inspect", unit="msg", leave=False):
        entry, kind = seen[name], bag.topics[name].type
        entry.times.append(time)
        try:
            if kind in KNOWN:
                stamp = bag.stamp_ns(name, data)
                entry.unstamped += stamp == 0
                entry.stamps.append(stamp or time)
                if entry.first is None:
                    entry.first = bag.decode(name, data)
            elif kind == TF_TYPE and name.endswith("tf_static"):
                transforms.static.update(transforms_of(bag.decode(name, data)))
            elif kind == TF_TYPE:
                transforms.moving.update(edge for edge, *_ in stamped_transforms(bag.decode(name, data)))
        except DataError as error:
            entry.problem = entry.problem or str(error)
    return seen, transforms


def _most(topics: list[Topic]) -> Topic | None:
    return max(topics, key=lambda topic: (topic.type != FIX_TYPE, topic.count), default=None)


def _headline(bag: Bag, seen: dict[str, _Seen]) -> str:
    first = min((entry.times[0] for entry in seen.values() if entry.times), default=0)
    last = max((entry.times[-1] for entry in seen.values() if entry.times), default=0)
    megabytes = sum(path.stat().st_size for path in bag.files) / 1e6
    files = f"{len(bag.files)} file" + ("s" if len(bag.files) > 1 else "")
    return f"{bag.path}: {files}, {megabytes:.1f} MB, {(last - first) / 1e9:.1f} s, {bag.message_count} messages"


def _table(bag: Bag, seen: dict[str, _Seen]) -> list[str]:
    rows = [("topic", "type", "messages", "Hz", "longest gap s", "stamp - recorded s")]
    for name, topic in bag.topics.items():
        entry = seen[name]
        times = np.frombuffer(entry.times, dtype=np.int64)
        gaps: Floats = np.diff(np.sort(times)).astype(np.float64) / 1e9
        rate = f"{1.0 / np.median(gaps):.1f}" if len(gaps) and np.median(gaps) > 0 else "-"
        gap = f"{gaps.max():.2f}" if len(gaps) else "-"
        delay = "-"
        if entry.stamps and len(entry.stamps) == len(times):
            delay = f"{np.median(np.frombuffer(entry.stamps, dtype=np.int64) - times) / 1e9:.3f}"
        rows.append((name, topic.type, str(len(times)), rate, gap, delay))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  " + "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _describe(role: str, topic: Topic, entry: _Seen) -> str:
    message = entry.first
    if message is None:
        return f"{topic.name}, unreadable: {entry.problem}"
    frame = f"frame {message.header.frame_id!r}"
    try:
        if role == "camera":
            height, width, _ = image_from_message(message).shape
            how = getattr(message, "encoding", None) or message.format
            return f"{topic.name}, {width}x{height} {how}, {frame}"
        if role == "lidar":
            fields = " ".join(item.name for item in message.fields)
            return f"{topic.name}, {len(cloud_from_message(message))} points of {fields}, {frame}"
        if topic.type == FIX_TYPE:
            latitude, longitude, _ = fix_from_message(message)
            return f"{topic.name}, latitude {latitude:.6f}, longitude {longitude:.6f}, {frame}"
        pose_from_message(message)
        child = getattr(message, "child_frame_id", "")
        return f"{topic.name}, {frame}" + (f", of {child!r}" if child else "")
    except DataError as error:
        return f"{topic.name}, its first message cannot be used: {error}"


def _offsets_ms(chosen: dict[str, Topic | None], seen: dict[str, _Seen]) -> Floats:
    camera, lidar = chosen["camera"], chosen["lidar"]
    if camera is None or lidar is None or not seen[lidar.name].stamps:
        return np.empty(0)
    images, clouds = seen[camera.name].sorted_stamps(), seen[lidar.name].sorted_stamps()
    return np.asarray((images - clouds[nearest(images, clouds)]) / 1e6, dtype=np.float64)


def _advice(
    bag: Bag,
    chosen: dict[str, Topic | None],
    seen: dict[str, _Seen],
    transforms: _Transforms,
    offsets_ms: Floats,
) -> tuple[list[str], list[str]]:
    """What the owner should know, and the options of ingest that follow from it."""
    lines: list[str] = []
    options: list[str] = []
    for role, topic in chosen.items():
        others = [other.name for other in candidates(bag.topics, role) if other is not topic]
        if topic is not None and others:
            lines.append(f"{topic.name} is taken as the {role}; there is also {', '.join(others)}")
            options += [f"--{role}_topic", topic.name]
    if chosen["camera"] is None:
        lines.append("no camera topic: nothing can be ingested")
    if chosen["lidar"] is None:
        lines.append("no LiDAR topic: images alone serve no distillation; with poses they train and test cameras")
        options += ["--lidar_topic", "none"]
    else:
        options += _extrinsic_options(chosen, seen, transforms, lines)
    options += _pose_options(chosen["pose"], transforms, lines)
    if chosen["pose"] is not None:
        options += _gap_options(chosen["pose"].name, seen[chosen["pose"].name], lines)
    if len(offsets_ms) and float(np.median(np.abs(offsets_ms))) > 1000.0:
        lines.append("images and clouds are seconds apart: the clocks disagree, or the sensors ran at other times")
    elif chosen["lidar"] is not None:
        options += _tolerance_options(seen[chosen["lidar"].name])
    lines += [f"{name}: {e.unstamped} messages have no stamp" for name, e in seen.items() if e.unstamped]
    lines += [f"{name}: {entry.problem}" for name, entry in seen.items() if entry.problem]
    return lines, options


def _pose_options(pose: Topic | None, transforms: _Transforms, lines: list[str]) -> list[str]:
    frames = transforms.chain()
    tf = [] if frames is None else ["--pose_topic", "tf", "--map_frame", frames[0], "--base_frame", frames[1]]
    if pose is None and frames is None:
        lines.append("no pose topic: the session is unlabelled, it serves distillation and not evaluation")
        return []
    if frames is not None and (pose is None or frames[0] != "odom"):
        lines.append(
            f"the transforms lead from {frames[0]!r} to {frames[1]!r}: {' '.join(tf)} takes the poses from them"
        )
    if pose is not None:
        lines.append(f"if {pose.name} is not surveyed but drifts, add --labelled false")
        if pose.type == FIX_TYPE:
            lines.append("fixes are counted from the first of them: give all drives of a region the same --nav_origin")
        return []
    return [*tf, "--labelled", "false"] if frames is not None and frames[0] == "odom" else tf


def _extrinsic_options(
    chosen: dict[str, Topic | None],
    seen: dict[str, _Seen],
    transforms: _Transforms,
    lines: list[str],
) -> list[str]:
    lidar, pose = (None if topic is None else seen[topic.name].first for topic in (chosen["lidar"], chosen["pose"]))
    if lidar is None:
        return []
    try:
        find_extrinsic(None, lidar.header.frame_id, getattr(pose, "child_frame_id", "") or BASE, transforms.static)
    except DataError as error:
        lines.append(str(error))
        return ["--base_from_lidar", "[X, Y, Z, ROLL, PITCH, YAW]"]
    return []


def _gap_options(topic: str, poses: _Seen, lines: list[str]) -> list[str]:
    """A wider gap for poses so seldom, as a GPS of 1 Hz, that none would be interpolated with the usual one."""
    needed_s = gap_to_bridge_s(poses.sorted_stamps())
    if needed_s <= IngestConfig(region="-").max_pose_gap_s:
        return []
    lines.append(f"{topic} comes every {needed_s / GAPS:.2f} s: between its poses straight lines are taken")
    return ["--max_pose_gap_s", f"{needed_s:.2f}"]


def _tolerance_options(lidar: _Seen) -> list[str]:
    """A tolerance for a LiDAR so slow that images between two clouds would be lost with the usual one."""
    if len(lidar.stamps) < 2:
        return []
    needed_s = 0.6 * float(np.median(np.diff(lidar.sorted_stamps()))) / 1e9
    usual_s = IngestConfig(region="-").time_tolerance_s
    return ["--time_tolerance_s", f"{needed_s:.2f}"] if needed_s > usual_s + 0.005 else []
