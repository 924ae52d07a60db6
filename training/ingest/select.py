"""Which images become keyframes: a pure computation on stamps and poses."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from training.ingest.areas import ELSEWHERE
from training.ingest.config import IngestConfig
from training.ingest.scan import Scan
from vpr_kd_ros.geometry import Floats, Ints, yaw_from_quaternion

NO_POSE = "no pose"
NO_CLOUD = "no cloud in tolerance"
NEAR_LAST = "near the last keyframe"
GAPS = 1.5
"""A hole that must be bridged to use poses that come at an even pace, in times of that pace: some are late."""


@dataclass(frozen=True)
class Selection:
    """Keyframes to read, in the order of their stamps.

    Attributes:
        images, clouds: (K,) int64, number of the message on its topic; a cloud is -1 where there is none.
        stamps_ns, cloud_stamps_ns: (K,) int64.
        positions, quaternions: (K, 3), (K, 4) float64; NaN without a pose source.
        drops: reason to count of images that were not chosen.
        offsets_ms: image minus cloud stamp, of every image and its nearest cloud, (N,) float64, milliseconds.
    """

    images: Ints
    clouds: Ints
    stamps_ns: Ints
    cloud_stamps_ns: Ints
    positions: Floats
    quaternions: Floats
    drops: Counter[str]
    offsets_ms: Floats

    def __len__(self) -> int:
        return len(self.images)

    def only(self, inside: NDArray[np.bool_]) -> Selection:
        """The keyframes that are ``inside``, (K,) bool; the others count as dropped, in another area."""
        if inside.all():
            return self
        return replace(
            self,
            images=self.images[inside],
            clouds=self.clouds[inside],
            stamps_ns=self.stamps_ns[inside],
            cloud_stamps_ns=self.cloud_stamps_ns[inside],
            positions=self.positions[inside],
            quaternions=self.quaternions[inside],
            drops=self.drops + Counter({ELSEWHERE: int((~inside).sum())}),
        )


def select_keyframes(scan: Scan, config: IngestConfig) -> Selection:
    """Choose the images that have a pose (where there is a pose source), a cloud, and are apart enough.

    Every image that is not chosen is counted once, under the first reason that holds.
    """
    order = np.argsort(scan.stamps_ns["camera"], kind="stable")
    stamps = scan.stamps_ns["camera"][order]
    clouds, cloud_stamps, offsets_ms = _pair(stamps, scan, _nanoseconds(config.time_tolerance_s))
    positions, quaternions = np.full((len(stamps), 3), np.nan), np.full((len(stamps), 4), np.nan)
    posed = np.ones(len(stamps), dtype=bool)
    if scan.trajectory is not None:
        positions, quaternions, posed = scan.trajectory.at(stamps, _nanoseconds(config.max_pose_gap_s))
    clouded = clouds >= 0 if config.require_lidar and "lidar" in scan.stamps_ns else np.ones(len(stamps), dtype=bool)
    usable = np.flatnonzero(posed & clouded)
    if scan.trajectory is None:
        kept = usable[spaced_in_time(stamps[usable], _nanoseconds(config.keyframe_interval_s))]
    else:
        yaws = yaw_from_quaternion(quaternions[usable])
        apart = spaced_in_place(
            positions[usable], yaws, config.keyframe_distance_m, float(np.deg2rad(config.keyframe_angle_deg))
        )
        kept = usable[apart]
    drops = Counter(
        {
            NO_POSE: int((~posed).sum()),
            NO_CLOUD: int((posed & ~clouded).sum()),
            NEAR_LAST: len(usable) - len(kept),
        }
    )
    return Selection(
        images=order[kept],
        clouds=clouds[kept],
        stamps_ns=stamps[kept],
        cloud_stamps_ns=cloud_stamps[kept],
        positions=positions[kept],
        quaternions=quaternions[kept],
        drops=+drops,
        offsets_ms=offsets_ms,
    )


def gap_to_bridge_s(stamps: Ints) -> float:
    """The ``max_pose_gap_s`` with which nothing is lost between poses at the sorted ``stamps`` but where some miss."""
    return GAPS * float(np.median(np.diff(stamps))) / 1e9 if len(stamps) > 1 else 0.0


def nearest(times: Ints, stamps: Ints) -> Ints:
    """Index of the nearest of the sorted ``stamps`` (N,) for each of ``times`` (M,); of two as near, the earlier."""
    right = np.searchsorted(stamps, times, side="left").clip(1, max(len(stamps) - 1, 1))
    left = right - 1
    right = np.minimum(right, len(stamps) - 1)
    return np.asarray(np.where(times - stamps[left] <= stamps[right] - times, left, right), dtype=np.int64)


def spaced_in_time(stamps: Ints, interval_ns: int) -> Ints:
    """Indices into the sorted ``stamps``: the first, then each that is ``interval_ns`` or more after the last taken."""
    taken: list[int] = []
    at = 0
    while at < len(stamps):
        taken.append(at)
        at = max(at + 1, int(np.searchsorted(stamps, stamps[at] + interval_ns, side="left")))
    return np.array(taken, dtype=np.int64)


def spaced_in_place(positions: Floats, yaws: Floats, distance_m: float, angle_rad: float) -> Ints:
    """Indices along a drive: the first, then each that is as far from the last taken, in metres or in heading.

    Args:
        positions: (N, 3) float64, metres.
        yaws: (N,) float64, radians.
        distance_m, angle_rad: either one suffices.
    """
    taken: list[int] = []
    places, headings = positions.tolist(), yaws.tolist()
    for i, (place, heading) in enumerate(zip(places, headings, strict=True)):
        if taken:
            moved = math.dist(place, places[taken[-1]])
            turned = abs(math.remainder(heading - headings[taken[-1]], math.tau))
            if moved < distance_m and turned < angle_rad:
                continue
        taken.append(i)
    return np.array(taken, dtype=np.int64)


def _pair(stamps: Ints, scan: Scan, tolerance_ns: int) -> tuple[Ints, Ints, Floats]:
    """Nearest cloud of each image: message number (-1 beyond the tolerance), stamp, and offsets in milliseconds."""
    cloud_stamps = scan.stamps_ns.get("lidar", np.empty(0, dtype=np.int64))
    if len(cloud_stamps) == 0 or len(stamps) == 0:
        return np.full(len(stamps), -1, dtype=np.int64), np.zeros(len(stamps), dtype=np.int64), np.empty(0)
    order = np.argsort(cloud_stamps, kind="stable")
    chosen = order[nearest(stamps, cloud_stamps[order])]
    offsets = stamps - cloud_stamps[chosen]
    numbers = np.where(np.abs(offsets) <= tolerance_ns, chosen, -1)
    return numbers, cloud_stamps[chosen], offsets / 1e6


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
