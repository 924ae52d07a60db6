"""Where the robot is, through time: a discrete Bayes filter over the places of a map.

The state is one of the N places of a map, ``lost`` (on the map, at any place alike) or ``off`` (not on the map). With b
the probabilities after the last frame that counted, the next one gives (Thrun, Burgard, Fox: Probabilistic Robotics,
Table 4.1, the discrete Bayes filter; the models are ours):

Prediction, with the shares T of ``vpr_kd_ros.motion`` and u, the part of a whole frame that this one counts for:

    b'(j)    = (1 - restart)^u sum_i T_ij b(i)
    b'(lost) = (1 - (1 - restart)^u) sum_i b(i) + (1 - x) b(lost) + x b(off),    x = 1 - (1 - crossing)^u
    b'(off)  = 1 - b'(lost) - sum_j b'(j)

A robot that was carried away is lost: ``restart`` leads there from everywhere. One that drives off the map's end finds
no place to go to, and is off.

Update. The calibration tells for each place j the likelihood ratio r_j of the image there against elsewhere (see
``vpr_kd_ros.calibration.Evidence``). Off the map every place is elsewhere, so the likelihoods relative to off are

    L(j) = r_j^u      L(lost) = mean of r^u over a sample of the map's places      L(off) = 1      b(x) ~ L(x) b'(x)

where a place that was retrieved for this image first takes its ``1 / N`` of lost. So an image that looks like no place
speaks for off, and one that looks like a hypothesis speaks for that hypothesis even where it was not retrieved.

Frames near one another repeat one another's errors: on streets that look alike, a wrong place goes on looking right for
a while. A frame therefore counts for the share ``u = distance / decorrelation_m`` (at most 1) of an independent one,
and only when the robot has moved by ``step_m`` (or the map's spacing) or turned by ``step_rad`` since the last. Without
odometry, ``step_s`` must have passed, and the distance is taken to be half of what the robot's greatest speed allows; a
robot that stands still without odometry becomes surer than it should be. Where odometry fails on the way, the motion up
to its last pose stays known, and only the time since then is without.

Several cameras feed one belief, each frame when it comes. The first frame past a step's length begins the next step:
only then probability moves. The first frame of every other camera within half a step of it speaks at that step too, so
that the cameras need not be synchronised, none waits for another, and one that fails is not missed. Given the place,
what cameras say of it is not independent: one weather is over all of them. For k log likelihood ratios of equal worth
and pairwise correlation c, the one that is right is their sum over 1 + (k - 1) c (linear discriminant of normal
densities): c = 0 is the sum, c = 1 the mean. So a frame counts for the share u / (1 + (k - 1) c), with k the number of
cameras heard at the last step, or at this one if that is more by now.

The cost of a frame is linear in the hypotheses (places with a probability of their own), not in the map. Hypotheses
below ``min_mass``, or beyond the ``max_hypotheses`` most probable, return their mass to lost.

The filter's probabilities are those of its models, and too sure or too shy as these are wrong: the calibration learns
on whole drives what they are worth (``vpr_kd_ros.calibration.Filtered``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from vpr_kd_ros.errors import ConfigError, DataError
from vpr_kd_ros.geometry import Floats, Ints, Pose
from vpr_kd_ros.motion import Motion, Transitions
from vpr_kd_ros.stamps import NewestStamps

MIN_SPACING_M = 0.5


@dataclass(frozen=True)
class BeliefConfig:
    """How probability moves and how far a frame is trusted; the module's text has the equations.

    Only ``max_speed_mps`` is the robot's. The others belong to the calibration, which is learnt with their defaults.

    Attributes:
        max_speed_mps: of the robot, metres per second. Bounds the motion where there is no odometry; odometry that is
            faster is not believed.
        odometry_noise: standard deviation of the odometry, share of the distance.
        yaw_sigma_rad: deviation of the robot's heading from that of the place it is at, radians.
        restart: probability of having been carried away since the last whole frame, in (0, 1).
        crossing: probability that a robot of unknown place has left or entered the map since then, in (0, 1).
        on_map: probability of being on the map when nothing is known yet, in (0, 1].
        decorrelation_m: frames this far apart are independent, metres.
        decorrelation_rad: and frames turned by this much, radians.
        step_m: a frame counts when the robot has moved this far, metres, and at least by the map's spacing,
        step_rad: or has turned this far, radians;
        step_s: where there is no odometry, after this time without it, seconds.
        camera_correlation: c of what several cameras say of one place, in [0, 1]. A front and a rear camera of the
            simulated town have 0.4 to 0.6 at their places over all weathers, and 0 to 0.2 in any one.
        lost_after_s: after no frame for this long, and no odometry then, nothing is known any more, seconds.
        min_mass: hypotheses below this are dropped, in [0, 1).
        max_hypotheses: at most so many are kept.
    """

    max_speed_mps: float = 10.0
    odometry_noise: float = 0.05
    yaw_sigma_rad: float = math.radians(20.0)
    restart: float = 0.01
    crossing: float = 0.05
    on_map: float = 0.5
    decorrelation_m: float = 12.0
    decorrelation_rad: float = math.radians(60.0)
    step_m: float = 4.0
    step_rad: float = math.radians(20.0)
    step_s: float = 0.5
    camera_correlation: float = 0.5
    lost_after_s: float = 10.0
    min_mass: float = 1e-7
    max_hypotheses: int = 300

    def __post_init__(self) -> None:
        positive = ("max_speed_mps", "yaw_sigma_rad", "decorrelation_m", "decorrelation_rad")
        for name in (*positive, "step_m", "step_rad", "step_s", "lost_after_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: {getattr(self, name)} must be positive")
        for name in ("restart", "crossing"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be in (0, 1)")
        if not 0 < self.on_map <= 1:
            raise ConfigError(f"on_map: {self.on_map} must be in (0, 1]")
        if not 0 <= self.camera_correlation <= 1:
            raise ConfigError(f"camera_correlation: {self.camera_correlation} must be in [0, 1]")
        if not 0 <= self.odometry_noise < math.inf:
            raise ConfigError(f"odometry_noise: {self.odometry_noise} must not be negative")
        if not 0 <= self.min_mass < 1:
            raise ConfigError(f"min_mass: {self.min_mass} must be in [0, 1)")
        if self.max_hypotheses < 1:
            raise ConfigError(f"max_hypotheses: {self.max_hypotheses} must be at least 1")


@dataclass(frozen=True)
class Posterior:
    """The belief after a frame.

    Attributes:
        place_ids: (h,) int64, the hypotheses, most probable first.
        weights: (h,) float64, their probabilities; with ``unknown`` they sum to 1.
        unknown: probability of being lost or off the map.
        moved: since the last step began, by odometry; the hypotheses are of that moment. None where unknown.
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
        config: how to filter.

    Raises:
        DataError: the arrays differ in length, or an id stands there twice.
    """

    def __init__(
        self, place_ids: Ints, positions: Floats, yaws: Floats, spacing_m: float, config: BeliefConfig
    ) -> None:
        if not len(place_ids) == len(positions) == len(yaws):
            raise DataError(f"belief: {len(place_ids)} ids, {len(positions)} positions, {len(yaws)} yaws")
        self.config = config
        self.spacing_m = max(spacing_m, MIN_SPACING_M)
        self.resets = 0
        self._ids = np.asarray(place_ids, dtype=np.int64)
        self._row_of = {place_id: row for row, place_id in enumerate(self._ids.tolist())}
        if len(self._row_of) != len(self._ids):
            raise DataError("belief: an id stands there twice")
        xy = np.array([position[:2] for position in positions], dtype=np.float64).reshape(-1, 2)
        self._transitions = Transitions(
            xy, np.asarray(yaws, dtype=np.float64), self.spacing_m, config.odometry_noise, config.yaw_sigma_rad
        )
        self._step: _Step | None = None
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

    def observe(
        self,
        stamp_ns: int,
        retrieved: Ints,
        log_ratios: Callable[[Ints], Floats],
        background: Floats,
        odometry: Pose | None = None,
        camera: str = "",
    ) -> Posterior:
        """Take in one frame.

        A stamp that is earlier than the newest of the same camera by more than ``stamps.JUMP_NS`` resets the
        belief first, and so does one that is older than the last step by more than ``lost_after_s``. A frame that is a
        little early is left out.

        Args:
            stamp_ns: of the frame, nanoseconds.
            retrieved: (k,) ids of the places most like the image; those that are not places of the map are left out.
            log_ratios: from ids (n,) to the logarithm of the likelihood ratio of each, (n,) float64, finite; asked
                only where the frame counts.
            background: (m,) the same of a sample of the map's places; may be empty.
            odometry: pose of the robot in any frame that stays fixed, at the stamp; None where there is none.
            camera: name of the camera that took it, where there are several.
        """
        if self._jumped_back(stamp_ns, camera):
            self.reset()
        silent_s, early = self._stamps.since_s(stamp_ns), self._stamps.before_ns(stamp_ns, camera) > 0
        self._stamps.add(stamp_ns, camera)
        odometry = odometry if odometry is not None and _is_finite(odometry) else None
        moved = None if odometry is None else Motion()
        step = self._step
        if step is None:
            step = _Step(stamp_ns, odometry)
        else:
            travel = self._travel(step, stamp_ns, odometry)
            length = self._length(travel)
            if early:
                return self._posterior(travel.moved)
            # A frame may be older than the one that began the step, if another camera took it: it begins none.
            if length >= 1.0 and stamp_ns >= step.stamp_ns:
                share = self._share(travel)
                self._predict(travel, silent_s, share)
                step = _Step(stamp_ns, odometry, share, len(step.heard))
            elif camera in step.heard or length >= 0.5:
                return self._posterior(travel.moved)
            else:
                moved = travel.moved
        self._step = step
        step.heard.add(camera)
        alike = 1.0 + (max(step.heard_before, len(step.heard)) - 1) * self.config.camera_correlation
        self._update(retrieved, log_ratios, background, step.share / alike)
        self._prune()
        return self._posterior(moved)

    # --- when ---------------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._know_nothing()
        self._step = None
        self._stamps = NewestStamps()

    def _jumped_back(self, stamp_ns: int, camera: str) -> bool:
        if self._stamps.jumped_back(stamp_ns, camera):
            return True
        return self._step is not None and (self._step.stamp_ns - stamp_ns) * 1e-9 > self.config.lost_after_s

    def _know_nothing(self) -> None:
        self._rows: Ints = np.empty(0, dtype=np.int64)
        self._weights: Floats = np.empty(0)
        self._lost, self._off = self.config.on_map, 1.0 - self.config.on_map

    def _travel(self, step: _Step, stamp_ns: int, odometry: Pose | None) -> _Travel:
        """Since the step began; remembers a pose of the odometry that can be believed as the last one."""
        if step.odometry is None or step.last is None:
            return _Travel(Motion(), (stamp_ns - step.stamp_ns) * 1e-9)
        # Another camera's frame may be older than the last pose: then only where the step began is known before it.
        told_ns, told = step.last if step.last[0] <= stamp_ns else (step.stamp_ns, step.odometry)
        if (
            odometry is not None
            and self._possible(step.odometry, odometry, stamp_ns - step.stamp_ns)
            and self._possible(told, odometry, stamp_ns - told_ns)
        ):
            if stamp_ns > step.last[0]:
                step.last = stamp_ns, odometry
            return _Travel(Motion.between(step.odometry, odometry))
        return _Travel(Motion.between(step.odometry, told), (stamp_ns - told_ns) * 1e-9)

    def _possible(self, before: Pose, after: Pose, elapsed_ns: int) -> bool:
        """Whether the robot can have come from one pose to the other."""
        # A spacing more: small times are not precise.
        reach = self.config.max_speed_mps * abs(elapsed_ns) * 1e-9 + self.spacing_m
        return Motion.between(before, after).distance <= reach

    def _length(self, travel: _Travel) -> float:
        """What the robot has moved, or how long blindly, in lengths of a step: from 1 on, the next one begins."""
        config, known = self.config, travel.known
        moved = max(known.distance / max(config.step_m, self.spacing_m), abs(known.turn) / config.step_rad)
        return max(moved, abs(travel.blind_s or 0.0) / config.step_s)

    def _share(self, travel: _Travel) -> float:
        """The part of an independent frame that this one is, in (0, 1]."""
        config, known = self.config, travel.known
        distance = known.distance + 0.5 * config.max_speed_mps * (travel.blind_s or 0.0)
        return min(1.0, distance / config.decorrelation_m + abs(known.turn) / config.decorrelation_rad)

    # --- prediction and update ----------------------------------------------------------------------------------------

    def _predict(self, travel: _Travel, silent_s: float, share: float) -> None:
        """Move the probabilities, ``silent_s`` seconds after the last frame."""
        config = self.config
        reach = None if travel.blind_s is None else config.max_speed_mps * travel.blind_s
        if reach is not None and silent_s > config.lost_after_s:
            self._know_nothing()
        stayed, crossing = (1.0 - config.restart) ** share, 1.0 - (1.0 - config.crossing) ** share
        known = float(self._weights.sum())
        lost = (1.0 - stayed) * known + (1.0 - crossing) * self._lost + crossing * self._off
        if len(self._rows):
            sources, targets, shares = self._transitions.shares(self._rows, travel.known, reach)
            self._rows, self._weights = _sums(targets, stayed * shares * self._weights[sources])
        self._lost = lost
        self._off = max(0.0, 1.0 - lost - float(self._weights.sum()))

    def _update(self, retrieved: Ints, log_ratios: Callable[[Ints], Floats], background: Floats, share: float) -> None:
        count = len(self._ids)
        known = [self._row_of[i] for i in np.asarray(retrieved).tolist() if i in self._row_of]
        rows = np.union1d(self._rows, np.array(known, dtype=np.int64))
        weights = np.zeros(len(rows))
        if len(rows):
            weights += self._lost / count
            weights[np.searchsorted(rows, self._rows)] += self._weights
            self._lost *= 1.0 - len(rows) / count
            weights *= np.exp(share * log_ratios(self._ids[rows]))
        lost = self._lost * (float(np.exp(share * background).mean()) if len(background) else 1.0)
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


@dataclass
class _Step:
    """The last step: when and where it began, how far its frames count, the cameras heard at it and at the one before;
    ``last``: when and where the robot was last, by an odometry that goes on from there. None where it began without.

    The first counts in full.
    """

    stamp_ns: int
    odometry: Pose | None
    share: float = 1.0
    heard_before: int = 0
    heard: set[str] = field(default_factory=set)
    last: tuple[int, Pose] | None = field(init=False)

    def __post_init__(self) -> None:
        self.last = None if self.odometry is None else (self.stamp_ns, self.odometry)


@dataclass(frozen=True)
class _Travel:
    """What the robot did since the last step began: the motion that odometry tells, and how many seconds go on without
    it from there; None where it tells all. They are negative where the frame is older.
    """

    known: Motion
    blind_s: float | None = None

    @property
    def moved(self) -> Motion | None:
        """The whole motion, where it is known."""
        return self.known if self.blind_s is None else None


def _is_finite(pose: Pose) -> bool:
    return bool(np.isfinite(pose.position).all() and np.isfinite(pose.quaternion).all())


def _sums(keys: Ints, values: Floats) -> tuple[Ints, Floats]:
    """The distinct keys, ascending, and the sum of the values of each."""
    distinct, where = np.unique(keys, return_inverse=True)
    sums = np.bincount(where.reshape(-1), values, minlength=len(distinct))
    return np.asarray(distinct, dtype=np.int64), np.asarray(sums, dtype=np.float64)
