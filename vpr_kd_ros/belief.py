"""Where the robot is, through time: a discrete Bayes filter over the places of a map.

The state is one of the N places of a map, ``lost`` (on the map, at any place alike) or ``off`` (not on the map). With b
the probabilities after the last frame that counted, the next one gives (Thrun, Burgard, Fox: Probabilistic Robotics,
Table 4.1, the discrete Bayes filter; the models are ours):

Prediction. From place i, with odometry that moved by the planar motion c since then, the robot is expected at
``t_i = pose_i c``, and place j takes a share

    K_ij = exp(-|p_j - t_i|^2 / (2 s^2) - (yaw_j - yaw_ti)^2 / (2 w^2)),    T_ij = K_ij / (sum_j K_ij + K_off)

with ``s^2 = (spacing / 3)^2 + (odometry_noise |c|)^2`` and ``K_off = exp(-GATE^2 / 2)``: off the map competes as a
place ``GATE`` deviations away, so a robot that drives off the map's end ends in off. Without odometry it is somewhere
within ``r = max_speed_mps * elapsed``, whatever its heading: ``K_ij = exp(-max(0, |p_j - p_i| - r)^2 / (2 s^2))``.

    b'(j)    = (1 - restart) sum_i T_ij b(i)
    b'(lost) = restart sum_i b(i) + (1 - crossing) b(lost) + crossing b(off)
    b'(off)  = 1 - b'(lost) - sum_j b'(j)

A robot that was carried away is lost: ``restart`` leads there from everywhere.

Update. The calibration gives each retrieved candidate k the probability p_k that the robot is there. Candidates closer
together than the cluster radius are one answer, with the p of its best and the odds ``p / (1 - p)``, which its members
share in proportion to their own. The member's odds o_k spread over the places of like heading around it by a normal
density of deviation ``candidate_sigma_m`` (at least half a spacing), normalised to g_kj with sum_j g_kj = 1. The
likelihood, relative to that of a robot off the map, where every answer is wrong, is

    L(j) = miss (1 + N sum_k o_k g_kj)^trust        L(lost) = miss        L(off) = 1        b(x) ~ L(x) b'(x)

where a place j that a candidate points to, or that has probability already, first takes its ``1 / N`` of lost. ``miss``
is how often the retrieval does not find a place where the robot is; N, because the calibration's p is the posterior of
a robot that could be at any place alike: from such a prior and with a trust of 1, one candidate leaves the odds o_k.
A trust below 1 says that frames repeat one another's errors even when the robot has moved, as they do on streets that
look alike: the robot must then be seen at a place more often before it counts as known.

The cost of a frame is linear in the hypotheses (places with a probability of their own), not in the map. Hypotheses
below ``min_mass``, or beyond the ``max_hypotheses`` most probable, return their mass to lost.

Frames from one spot repeat one another's errors. A frame therefore counts when the robot has moved by half the map's
spacing or turned by ``step_rad`` since the last one that counted; without odometry, when ``step_s`` have passed. A
robot that stands still without odometry becomes surer than it should be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from vpr_kd_ros.errors import ConfigError, DataError
from vpr_kd_ros.geometry import Floats, Ints, Pose, wrap_angle

GATE = 3.0
"""Deviations beyond which a place takes no probability."""
MAX_PROBABILITY = 0.99
"""No single candidate is believed more than this."""
MIN_SPACING_M = 0.5


@dataclass(frozen=True)
class BeliefConfig:
    """How probability moves and how far a frame is trusted; the module's text has the equations.

    Attributes:
        max_speed_mps: of the robot, metres per second. Bounds the motion where there is no odometry; odometry that is
            faster is not believed.
        odometry_noise: standard deviation of the odometry, share of the distance.
        yaw_sigma_rad: deviation of the robot's heading from that of the place it is at, radians.
        candidate_sigma_m: distance between the robot and a candidate that is right, standard deviation, metres.
        restart: probability of having been carried away since the last frame that counted, in (0, 1).
        crossing: probability that a robot of unknown place has left or entered the map since then, in (0, 1).
        on_map: probability of being on the map when nothing is known yet, in (0, 1].
        miss: how often the retrieval does not find a place where the robot is, in (0, 1).
        trust: share of a frame's evidence that is its own, in (0, 1].
        step_rad: a frame counts when the robot has turned this far, radians, or moved by half the map's spacing.
        step_s: where there is no odometry, a frame counts after this time, seconds.
        lost_after_s: without odometry and frames for this long, nothing is known any more, seconds.
        min_mass: hypotheses below this are dropped, in [0, 1).
        max_hypotheses: at most so many are kept.
    """

    max_speed_mps: float = 10.0
    odometry_noise: float = 0.05
    yaw_sigma_rad: float = math.radians(20.0)
    candidate_sigma_m: float = 3.0
    restart: float = 0.01
    crossing: float = 0.05
    on_map: float = 0.5
    miss: float = 0.5
    trust: float = 0.5
    step_rad: float = math.radians(20.0)
    step_s: float = 0.3
    lost_after_s: float = 10.0
    min_mass: float = 1e-6
    max_hypotheses: int = 300

    def __post_init__(self) -> None:
        for name in ("max_speed_mps", "yaw_sigma_rad", "candidate_sigma_m", "step_rad", "step_s", "lost_after_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: {getattr(self, name)} must be positive")
        for name in ("restart", "crossing", "miss"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be in (0, 1)")
        if not 0 < self.trust <= 1:
            raise ConfigError(f"trust: {self.trust} must be in (0, 1]")
        if not 0 < self.on_map <= 1:
            raise ConfigError(f"on_map: {self.on_map} must be in (0, 1]")
        if not 0 <= self.odometry_noise < math.inf:
            raise ConfigError(f"odometry_noise: {self.odometry_noise} must not be negative")
        if not 0 <= self.min_mass < 1:
            raise ConfigError(f"min_mass: {self.min_mass} must be in [0, 1)")
        if self.max_hypotheses < 1:
            raise ConfigError(f"max_hypotheses: {self.max_hypotheses} must be at least 1")


@dataclass(frozen=True)
class Motion:
    """Planar motion in the robot's own frame: forward and left in metres, turn in radians."""

    forward: float
    left: float
    turn: float

    @classmethod
    def between(cls, before: Pose, after: Pose) -> Motion:
        """The motion that leads from one pose to another, both in one fixed frame."""
        dx, dy = after.position[:2] - before.position[:2]
        cos, sin = math.cos(before.yaw), math.sin(before.yaw)
        turn = math.remainder(after.yaw - before.yaw, 2 * math.pi)
        return cls(float(cos * dx + sin * dy), float(cos * dy - sin * dx), turn)

    @property
    def distance(self) -> float:
        """Metres."""
        return math.hypot(self.forward, self.left)

    def apply(self, xy: Floats, yaws: Floats) -> tuple[Floats, Floats]:
        """Poses (n, 2) and (n,), moved."""
        cos, sin = np.cos(yaws), np.sin(yaws)
        step = np.stack([cos * self.forward - sin * self.left, sin * self.forward + cos * self.left], axis=-1)
        return xy + step, wrap_angle(yaws + self.turn)


@dataclass(frozen=True)
class Posterior:
    """The belief after a frame.

    Attributes:
        place_ids: (h,) int64, the hypotheses, most probable first.
        weights: (h,) float64, their probabilities; with ``unknown`` they sum to 1.
        unknown: probability of being lost or off the map.
        moved: since the last frame that counted, by odometry; the hypotheses are of that moment. None where unknown.
    """

    place_ids: Ints
    weights: Floats
    unknown: float
    moved: Motion | None


class Belief:
    """Probability over the places of a map and of being at none of them. Not safe to use from several threads.

    Args:
        place_ids: (N,) int64.
        positions: (N, 2) or (N, 3) float64, metres; height is not used.
        yaws: (N,) float64, radians.
        spacing_m: distance between neighbouring places.
        cluster_radius_m: candidates closer to one another are one answer.
        config: how to filter.

    Raises:
        DataError: the arrays differ in length, or an id stands there twice.
    """

    def __init__(
        self,
        place_ids: Ints,
        positions: Floats,
        yaws: Floats,
        spacing_m: float,
        cluster_radius_m: float,
        config: BeliefConfig,
    ) -> None:
        if not len(place_ids) == len(positions) == len(yaws):
            raise DataError(f"belief: {len(place_ids)} ids, {len(positions)} positions, {len(yaws)} yaws")
        self.config = config
        self.spacing_m = max(spacing_m, MIN_SPACING_M)
        self.cluster_radius_m = cluster_radius_m
        self.resets = 0
        self._ids = np.asarray(place_ids, dtype=np.int64)
        self._row_of = {place_id: row for row, place_id in enumerate(self._ids.tolist())}
        if len(self._row_of) != len(self._ids):
            raise DataError("belief: an id stands there twice")
        self._xy = np.array([position[:2] for position in positions], dtype=np.float64).reshape(-1, 2)
        self._yaws = np.asarray(yaws, dtype=np.float64)
        self._tree = cKDTree(self._xy)
        self._stamp_ns: int | None = None
        self._seen_ns: int | None = None
        self._odometry: Pose | None = None
        self._forget()

    def reset(self) -> None:
        """Forget everything: the robot may be anywhere."""
        self.resets += 1
        self._forget()

    @property
    def unknown(self) -> float:
        """Probability of being lost or off the map."""
        return self._lost + self._off

    @property
    def hypotheses(self) -> tuple[Ints, Floats]:
        """Ids (h,) int64 and probabilities (h,) of the places that have one of their own, in no order."""
        return self._ids[self._rows], self._weights

    def observe(self, stamp_ns: int, place_ids: Ints, probabilities: Floats, odometry: Pose | None = None) -> Posterior:
        """Take in one frame.

        A stamp before the last one resets the belief first.

        Args:
            stamp_ns: of the frame, nanoseconds.
            place_ids: (k,) the retrieved candidates; those that are not places of the map are left out.
            probabilities: (k,) of each being right, see ``vpr_kd_ros.calibration``; not finite counts as 0.
            odometry: pose of the robot in any frame that stays fixed, at the stamp; None where there is none.
        """
        if self._seen_ns is not None and stamp_ns < self._seen_ns:
            self.reset()
        self._seen_ns = stamp_ns
        elapsed_s = 0.0 if self._stamp_ns is None else (stamp_ns - self._stamp_ns) * 1e-9
        motion = self._motion(odometry, elapsed_s)
        if self._stamp_ns is not None and not self._counts(motion, elapsed_s):
            return self._posterior(motion)
        if self._stamp_ns is not None:
            self._predict(motion, elapsed_s)
        self._update(*self._support(place_ids, probabilities))
        self._prune()
        self._stamp_ns, self._odometry = stamp_ns, odometry
        return self._posterior(None if odometry is None else Motion(0.0, 0.0, 0.0))

    # --- when ---------------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._know_nothing()
        self._stamp_ns = self._seen_ns = self._odometry = None

    def _know_nothing(self) -> None:
        self._rows: Ints = np.empty(0, dtype=np.int64)
        self._weights: Floats = np.empty(0)
        self._lost, self._off = self.config.on_map, 1.0 - self.config.on_map

    def _motion(self, odometry: Pose | None, elapsed_s: float) -> Motion | None:
        """Since the last frame that counted; None where there is none to be believed."""
        if odometry is None or self._odometry is None:
            return None
        motion = Motion.between(self._odometry, odometry)
        # Written so that a pose that is not finite is not believed. A spacing more: small times are not precise.
        possible = motion.distance <= self.config.max_speed_mps * elapsed_s + self.spacing_m
        return motion if possible and math.isfinite(motion.turn) else None

    def _counts(self, motion: Motion | None, elapsed_s: float) -> bool:
        if motion is None:
            return elapsed_s >= self.config.step_s
        return motion.distance >= self.spacing_m / 2.0 or abs(motion.turn) >= self.config.step_rad

    # --- prediction ---------------------------------------------------------------------------------------------------

    def _predict(self, motion: Motion | None, elapsed_s: float) -> None:
        if motion is None and elapsed_s > self.config.lost_after_s:
            self._know_nothing()
        config, known = self.config, float(self._weights.sum())
        lost = config.restart * known + (1.0 - config.crossing) * self._lost + config.crossing * self._off
        if len(self._rows):
            sources, targets, shares = self._transitions(motion, elapsed_s)
            moved = (1.0 - config.restart) * shares * self._weights[sources]
            self._rows, self._weights = _sums(targets, moved)
        self._lost = lost
        self._off = max(0.0, 1.0 - lost - float(self._weights.sum()))

    def _transitions(self, motion: Motion | None, elapsed_s: float) -> tuple[Ints, Ints, Floats]:
        """From hypothesis (an index of ``_rows``), to place (a row), and its share T."""
        sigma = self.spacing_m / 3.0
        if motion is None:
            expected, headings = self._xy[self._rows], None
            reach = self.config.max_speed_mps * elapsed_s
        else:
            expected, headings = motion.apply(self._xy[self._rows], self._yaws[self._rows])
            sigma = math.hypot(sigma, self.config.odometry_noise * motion.distance)
            reach = 0.0
        sources, targets = _pairs(self._tree, expected, reach + GATE * sigma)
        beyond = np.clip(np.linalg.norm(self._xy[targets] - expected[sources], axis=1) - reach, 0.0, None)
        exponents = -(beyond**2) / (2 * sigma**2)
        if headings is not None:
            turned = wrap_angle(self._yaws[targets] - headings[sources])
            exponents -= turned**2 / (2 * self.config.yaw_sigma_rad**2)
        kernel = np.exp(exponents)
        totals = np.bincount(sources, kernel, minlength=len(expected)) + math.exp(-(GATE**2) / 2)
        return sources, targets, kernel / totals[sources]

    # --- update -------------------------------------------------------------------------------------------------------

    def _support(self, place_ids: Ints, probabilities: Floats) -> tuple[Ints, Floats]:
        """Places that the candidates point to, and sum_k o_k g_kj of each."""
        told = zip(np.asarray(place_ids).tolist(), np.asarray(probabilities, dtype=np.float64).tolist(), strict=True)
        # Written so that what is not a number says nothing.
        known = {self._row_of[i]: min(p, MAX_PROBABILITY) for i, p in told if i in self._row_of and p > 0}
        if not known:
            return np.empty(0, dtype=np.int64), np.empty(0)
        rows = np.array(list(known), dtype=np.int64)
        odds = self._odds(rows, np.array(list(known.values())))
        sigma = max(self.config.candidate_sigma_m, self.spacing_m / 2.0)
        sources, targets = _pairs(self._tree, self._xy[rows], GATE * sigma)
        distances = np.linalg.norm(self._xy[targets] - self._xy[rows[sources]], axis=1)
        turned = wrap_angle(self._yaws[targets] - self._yaws[rows[sources]])
        exponents = distances**2 / (2 * sigma**2)
        exponents += turned**2 / (2 * self.config.yaw_sigma_rad**2)
        density = np.exp(-exponents)
        # A candidate is near itself: no sum is 0.
        density /= np.bincount(sources, density, minlength=len(rows))[sources]
        return _sums(targets, odds[sources] * density)

    def _odds(self, rows: Ints, probabilities: Floats) -> Floats:
        """Odds of each candidate: those of its cluster's best, shared within the cluster by their own."""
        own = probabilities / (1.0 - probabilities)
        odds, free = np.zeros(len(rows)), np.ones(len(rows), dtype=np.bool_)
        while free.any():
            best = int(np.argmax(np.where(free, own, -1.0)))
            cluster = free & (np.linalg.norm(self._xy[rows] - self._xy[rows[best]], axis=1) <= self.cluster_radius_m)
            odds[cluster] = own[best] * own[cluster] / own[cluster].sum()
            free &= ~cluster
        return odds

    def _update(self, supported: Ints, support: Floats) -> None:
        rows, count, miss = np.union1d(self._rows, supported), len(self._ids), self.config.miss
        weights, ratios = np.zeros(len(rows)), np.ones(len(rows))
        if len(rows):
            weights += self._lost / count
            self._lost *= 1.0 - len(rows) / count
        weights[np.searchsorted(rows, self._rows)] += self._weights
        ratios[np.searchsorted(rows, supported)] += count * support
        weights *= miss * ratios**self.config.trust
        lost = miss * self._lost
        total = float(weights.sum()) + lost + self._off
        self._rows, self._weights = rows, weights / total
        self._lost, self._off = lost / total, self._off / total

    def _prune(self) -> None:
        order = np.argsort(-self._weights, kind="stable")[: self.config.max_hypotheses]
        order = np.sort(order[self._weights[order] >= self.config.min_mass])
        self._lost += float(self._weights.sum() - self._weights[order].sum())
        self._rows, self._weights = self._rows[order], self._weights[order]

    def _posterior(self, moved: Motion | None) -> Posterior:
        order = np.argsort(-self._weights, kind="stable")
        return Posterior(self._ids[self._rows[order]], self._weights[order], self.unknown, moved)


def _sums(keys: Ints, values: Floats) -> tuple[Ints, Floats]:
    """The distinct keys, ascending, and the sum of the values of each."""
    distinct, where = np.unique(keys, return_inverse=True)
    sums = np.bincount(where.reshape(-1), values, minlength=len(distinct))
    return np.asarray(distinct, dtype=np.int64), np.asarray(sums, dtype=np.float64)


def _pairs(tree: cKDTree, centres: Floats, radius: float) -> tuple[Ints, Ints]:
    """Index of a centre and row of a point, for all points within a radius of a centre."""
    found: list[list[int]] = list(tree.query_ball_point(centres, radius, return_sorted=True))
    sources = np.repeat(np.arange(len(found), dtype=np.int64), [len(rows) for rows in found])
    return sources, np.fromiter((row for rows in found for row in rows), dtype=np.int64)
