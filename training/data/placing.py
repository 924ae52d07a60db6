"""Placing drives that were simply recorded: the teacher recognises in surveyed drives where they went.

A LiDAR teacher is hardly disturbed by light or weather, so it can tell at night which street of the survey this is. One
match may be wrong, where blocks look alike; matches that go along a street side by side are not. A keyframe is placed
where it and one of a surveyed drive of its region are each other's nearest and enough of the keyframes before and after
match in step with it; it gets the pose of that keyframe, or the mean of those of several surveyed drives. How near a
match must be is not a number to tune: it is the largest distance at which the surveyed drives, placed in one another,
are right as often as asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import Keyframes
from training.data.pairing import Pairing, positives_pairwise
from vpr_kd_ros.errors import ConfigError, DataError
from vpr_kd_ros.geometry import Floats, Ints

REACH = 2
"""Keyframes before and after that may support a match."""
STEP_SLACK = 1
"""A neighbour's match is in step where it lies as many keyframes on, give or take so many."""

ENOUGH = 20
"""The share of right ones among fewer matches says little."""


@dataclass(frozen=True)
class PlacingConfig:
    """Whether and how drives without poses are placed.

    Attributes:
        precision: share of the surveyed drives' matches among one another that must be right; 0 places nothing.
        support: of the two keyframes before and the two after, how many must match in step.
    """

    precision: float = 0.0
    support: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.precision <= 1:
            raise ConfigError(f"placing: precision={self.precision} is not in [0, 1]")
        if not 0 <= self.support <= 2 * REACH:
            raise ConfigError(f"placing: support={self.support} is not in [0, {2 * REACH}]")


@dataclass(frozen=True)
class Placing:
    """Where the teacher sees the keyframes without poses.

    Attributes:
        positions: (N, 3) float64, metres; the survey's, the teacher's, or NaN.
        yaws: (N,) float64, radians, likewise.
        placed: (N,) bool, which have them of the teacher.
        limit: largest distance of a match.
        precision: share of the surveyed drives' matches up to the limit that are right.
    """

    positions: Floats
    yaws: Floats
    placed: NDArray[np.bool_]
    limit: float
    precision: float

    def __str__(self) -> str:
        return (
            f"the teacher placed {self.placed.sum()} keyframes of drives without poses in the surveyed ones; of such "
            f"matches among surveyed drives {100 * self.precision:.1f} % are right"
        )


def place(descriptors: NDArray[np.float32], keyframes: Keyframes, config: PlacingConfig, pairing: Pairing) -> Placing:
    """Give keyframes without a pose that of the place where the teacher sees them.

    Args:
        descriptors: (N, C), the teacher's, of all keyframes.
        keyframes: surveyed ones and others.
        config: how sure a match must be.
        pairing: a match between surveyed drives is right within its ``positive_m`` and ``heading_deg``.

    Raises:
        DataError: no region has two surveyed drives, or their matches are not right as often as asked for.
    """
    unit = descriptors / np.maximum(np.linalg.norm(descriptors, axis=1, keepdims=True), 1e-12)
    limit, precision = _limit(unit, keyframes, config, pairing)
    positions, yaws = keyframes.positions.copy(), keyframes.yaws.copy()
    for rows, surveyed in _drives(keyframes, labelled=False):
        found = np.full((len(surveyed), len(rows)), -1, dtype=np.int64)
        for number, other in enumerate(surveyed):
            matches, distances = matches_in_step(unit[rows], unit[other], config.support)
            sure = (matches >= 0) & (distances <= limit)
            found[number, sure] = other[matches[sure]]
        for row, answers in zip(rows, found.T, strict=True):
            answers = answers[answers >= 0]
            if len(answers) and _agree(keyframes, answers, pairing):
                positions[row] = keyframes.positions[answers].mean(axis=0)
                headings = keyframes.yaws[answers]
                yaws[row] = np.arctan2(np.sin(headings).mean(), np.cos(headings).mean())
    placed = np.isfinite(positions).all(axis=1) & ~keyframes.labelled
    return Placing(positions, yaws, placed, limit, precision)


def matches_in_step(
    drive: NDArray[np.float32], other: NDArray[np.float32], support: int
) -> tuple[Ints, NDArray[np.float32]]:
    """The keyframe of another drive that each of a drive shows, where both drives say so for a while.

    Args:
        drive: (n, C), descriptors of length 1 in the order of the drive.
        other: (m, C), likewise.
        support: see ``PlacingConfig``.

    Returns:
        (n,) int64, numbers in ``other`` or -1, and (n,) the Euclidean distances of the descriptors.
    """
    similarity = drive @ other.T
    nearest = similarity.argmax(axis=1)
    numbers = np.arange(len(drive))
    mutual = similarity.argmax(axis=0)[nearest] == numbers
    supporters = np.zeros(len(drive), dtype=np.int64)
    for step in (s for s in range(-REACH, REACH + 1) if s):
        here = numbers[max(0, -step) : max(0, len(drive) - max(0, step))]
        there = here + step
        in_step = np.abs(nearest[there] - nearest[here] - step) <= STEP_SLACK
        supporters[here] += mutual[there] & in_step
    distances = np.sqrt(np.maximum(2 - 2 * similarity[numbers, nearest], 0)).astype(np.float32)
    return np.where(mutual & (supporters >= support), nearest, -1), distances


def _limit(
    unit: NDArray[np.float32], keyframes: Keyframes, config: PlacingConfig, pairing: Pairing
) -> tuple[float, float]:
    """The largest distance up to which surveyed drives' matches are right as often as asked for, and how often."""
    distances: list[NDArray[np.float32]] = []
    right: list[NDArray[np.bool_]] = []
    for rows, others in _drives(keyframes, labelled=True):
        for other in others:
            matches, distance = matches_in_step(unit[rows], unit[other], config.support)
            seen = matches >= 0
            here, there = rows[seen], other[matches[seen]]
            positions, yaws = keyframes.positions, keyframes.yaws
            same = positives_pairwise(positions[here], yaws[here], positions[there], yaws[there], pairing)
            distances.append(distance[seen])
            right.append(same)
    if not distances:
        raise DataError("placing: wants two surveyed drives of one region, to learn what a right match is like")
    all_distances, all_right = np.concatenate(distances), np.concatenate(right)
    order = np.argsort(all_distances, kind="stable")
    share = np.cumsum(all_right[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(share >= config.precision)
    enough = enough[enough >= ENOUGH - 1]
    if len(enough) == 0:
        raise DataError(
            f"placing: of the teacher's {len(order)} matches between surveyed drives too few are right "
            f"({all_right.sum()}); train a better teacher, or lower placing.precision"
        )
    last = enough[-1]
    return float(all_distances[order][last]), float(share[last])


def _drives(keyframes: Keyframes, labelled: bool) -> Iterator[tuple[Ints, list[Ints]]]:
    """The rows of each drive with poses, or of each without, and those of the surveyed drives of its region."""
    rows_of = [np.flatnonzero(keyframes.session_of == number) for number in range(len(keyframes.sessions))]
    rows_of = [rows for rows in rows_of if len(rows)]
    surveyed = [rows for rows in rows_of if keyframes.labelled[rows].all()]
    for rows in rows_of:
        if bool(keyframes.labelled[rows].all()) == labelled:
            region = keyframes.region_of[rows[0]]
            yield rows, [o for o in surveyed if o[0] != rows[0] and keyframes.region_of[o[0]] == region]


def _agree(keyframes: Keyframes, answers: Ints, pairing: Pairing) -> bool:
    """Whether the surveyed drives mean one place: no two of their keyframes farther apart than two positives."""
    places = keyframes.positions[answers, :2]
    return bool(np.linalg.norm(places[:, None] - places[None], axis=2).max() <= 2 * pairing.positive_m)
