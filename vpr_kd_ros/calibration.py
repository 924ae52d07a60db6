"""From similarity to the probability of being right, learnt on drives whose true places are known.

A retrieval always has a best candidate, even where the robot has never been. ``Calibration`` tells how far to trust
that of a single image, by its similarity and its margin over the best candidate of any *other* place. ``Evidence`` is
what an image says about any one place, for the filter over time (``vpr_kd_ros.belief``), and ``Filtered`` what that
filter's probabilities are worth. All are logistic regressions. ``Spread`` is how far the robot is from the pose of a
right answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from vpr_kd_ros.errors import DataError
from vpr_kd_ros.geometry import Floats

PRIOR_DEVIATION = 10.0
"""Standard deviation of the normal prior on the weights of the standardised features."""

MAX_LOG_RATIO = 6.0
"""No single image speaks more than this for or against a place."""
MIN_DEVIATION = 1e-3
"""Least deviation of the similarities of a background; a map of copies of one place has none."""
ELLIPSE_95 = -2.0 * math.log(0.05)
"""Squared Mahalanobis distance that 95 % of a normal density in the plane lie within."""

Section = TypeVar("Section", bound="Evidence | Spread | Filtered")


@dataclass(frozen=True)
class Evidence:
    """log p(image | the robot is there) / p(image | it is not) = intercept + similarity_weight s + score_weight t.

    t is the similarity s in deviations from the mean of its background, the image's similarities to a sample of the
    map's places. It takes out how the light or the weather moves all similarities of an image alike: the test
    normalisation of speaker verification (Auckenthaler, Carey, Lloyd-Thomas: Score normalization for text-independent
    speaker verification systems, 2000, section 3).

    Attributes:
        intercept, similarity_weight, score_weight: of the logistic model; the weights are at least 0.
    """

    intercept: float
    similarity_weight: float
    score_weight: float

    def __post_init__(self) -> None:
        _check("evidence", self, at_least_0=("similarity_weight", "score_weight"))

    def log_ratios(self, similarities: ArrayLike, background: ArrayLike) -> Floats:
        """(n,) similarities of one image, and those of its background (m,), to (n,) float64 within MAX_LOG_RATIO."""
        s = np.asarray(similarities, dtype=np.float64)
        found = self.intercept + self.similarity_weight * s + self.score_weight * scores(s, background)
        return np.clip(found, -MAX_LOG_RATIO, MAX_LOG_RATIO)

    @classmethod
    def fit(cls, similarities: ArrayLike, scores: ArrayLike, there: ArrayLike) -> Evidence:
        """Fit on pairs of an image and a place: (N,) similarities, (N,) scores, (N,) bool whether it was taken there.

        The shares of the two kinds of pairs do not matter: the logistic model's prior odds are taken out again.

        Raises:
            DataError: the lengths differ, a value is not finite, or one kind is missing.
        """
        labels = np.asarray(there, dtype=bool)
        if labels.all() or not labels.any():
            raise DataError("calibration: evidence needs pairs of an image and its place, and pairs of others")
        intercept, weights = _logistic(np.stack([similarities, scores], axis=-1), labels)
        prior = float(np.log(labels.sum() / (~labels).sum()))
        return cls(intercept - prior, float(weights[0]), float(weights[1]))


@dataclass(frozen=True)
class Spread:
    """How far the robot is from the pose of a right answer, beyond what the answer's own candidates and the distance
    between the map's places tell: standard deviations along the robot's heading and across it, metres.
    """

    along_m: float
    across_m: float

    def __post_init__(self) -> None:
        _check("spread", self, at_least_0=("along_m", "across_m"))

    @classmethod
    def fit(cls, residuals: Floats, covariances: Floats) -> Spread:
        """Make the answers' 95 % ellipses true.

        The second moments of the residuals give the deviations. Residuals have heavier tails than a normal density, so
        both are then scaled up until 95 % of the residuals lie in their ellipses.

        Args:
            residuals: (N, 2), true minus announced position in the announced pose's frame (along, across), metres.
            covariances: (N, 2, 2), announced without this spread, in that frame.

        Raises:
            DataError: there is no residual.
        """
        if len(residuals) == 0:
            raise DataError("calibration: no answer was right, so that its spread is not known")
        own = np.diagonal(covariances, axis1=1, axis2=2)
        moments = np.maximum((residuals**2 - own).mean(axis=0), 0.0)
        # A spread of 0 could not be scaled up.
        deviations = np.sqrt(np.maximum(moments, 0.1**2))
        for factor in np.geomspace(1.0, 10.0, 100):
            whole = covariances + np.diag((factor * deviations) ** 2)
            squared = np.einsum("ni,nij,nj->n", residuals, np.linalg.inv(whole), residuals)
            if (squared <= ELLIPSE_95).mean() >= 0.95:
                break
        return cls(float(factor * deviations[0]), float(factor * deviations[1]))


@dataclass(frozen=True)
class Filtered:
    """P(right | p) = 1 / (1 + exp(-(intercept + slope log(p / (1 - p))))), for p of the filter over time.

    Attributes:
        intercept, slope: of the logistic model; the slope is at least 0.
        spread: of the right answers.
        right, wrong: numbers of answers it was fitted on.
    """

    intercept: float
    slope: float
    spread: Spread
    right: int
    wrong: int

    def __post_init__(self) -> None:
        _check("filtered", self, at_least_0=("slope", "right", "wrong"))

    def probability(self, filtered: float) -> float:
        """Probability in [0, 1] of being right."""
        return float(expit(self.intercept + self.slope * log_odds(np.float64(filtered))))

    @classmethod
    def fit(cls, filtered: ArrayLike, right: ArrayLike, spread: Spread) -> Filtered:
        """Fit on (N,) probabilities of the filter and (N,) bool whether the answer was right; ``DataError`` if none."""
        labels = np.asarray(right, dtype=bool)
        intercept, slopes = _logistic(log_odds(np.asarray(filtered, dtype=np.float64))[:, None], labels)
        return cls(intercept, float(slopes[0]), spread, int(labels.sum()), int((~labels).sum()))


def log_odds(probabilities: Floats | np.float64) -> Floats:
    """log(p / (1 - p)), with p kept a millionth from 0 and 1."""
    p = np.clip(probabilities, 1e-6, 1.0 - 1e-6)
    return np.asarray(np.log(p / (1.0 - p)), dtype=np.float64)


def scores(similarities: Floats, background: ArrayLike) -> Floats:
    """Similarities (...) in standard deviations from the mean of their background (m,); 0 without a background."""
    sample = np.asarray(background, dtype=np.float64)
    if len(sample) == 0:
        return np.zeros_like(similarities)
    return np.asarray((similarities - sample.mean()) / max(float(sample.std()), MIN_DEVIATION))


@dataclass(frozen=True)
class Calibration:
    """P(right | similarity, margin) = 1 / (1 + exp(-(intercept + similarity_weight s + margin_weight m))).

    Both weights are at least 0: more similarity, or more margin, never makes a match less probable.

    Attributes:
        intercept, similarity_weight, margin_weight: of the logistic model.
        cluster_radius_m: candidates closer than this to one another count as the same place (see ``margins``).
        right, wrong: numbers of queries it was fitted on.
        spread: of the right answers of single images.
        evidence: for the filter over time.
        with_odometry, without_odometry: what the filter's probabilities are worth, with odometry and without. These
            and ``evidence`` and ``spread`` are None in artefacts of versions that did not learn them.
    """

    intercept: float
    similarity_weight: float
    margin_weight: float
    cluster_radius_m: float
    right: int
    wrong: int
    spread: Spread | None = None
    evidence: Evidence | None = None
    with_odometry: Filtered | None = None
    without_odometry: Filtered | None = None

    def __post_init__(self) -> None:
        _check("calibration", self, ("similarity_weight", "margin_weight", "cluster_radius_m", "right", "wrong"))

    def probability(self, similarity: float, margin: float) -> float:
        """Probability in [0, 1] that a candidate is right; 0 where an argument is not finite.

        Args:
            similarity: inner product of unit descriptors, clipped to [-1, 1].
            margin: see ``margins``, clipped to [-2, 2].
        """
        return float(self.probabilities(np.array([similarity]), np.array([margin]))[0])

    def probabilities(self, similarities: ArrayLike, margins: ArrayLike) -> Floats:
        """``probability`` of many: (N,) and (N,) to (N,) float64."""
        s = np.asarray(similarities, dtype=np.float64)
        m = np.asarray(margins, dtype=np.float64)
        finite = np.isfinite(s) & np.isfinite(m)
        s = np.clip(np.where(finite, s, 0.0), -1.0, 1.0)
        m = np.clip(np.where(finite, m, 0.0), -2.0, 2.0)
        logits = self.intercept + self.similarity_weight * s + self.margin_weight * m
        return np.where(finite, expit(logits), 0.0)

    def threshold(self, probability: float, margin: float) -> float | None:
        """The least similarity in [-1, 1] that reaches ``probability`` (0 to 1) at ``margin``; None where none does."""
        if self.probability(-1.0, margin) >= probability:
            return -1.0
        if self.probability(1.0, margin) < probability:
            return None
        low, high = -1.0, 1.0
        # Bisection, for ``high`` then reaches the probability exactly as ``probability`` rounds it.
        while (middle := 0.5 * (low + high)) not in (low, high):
            if self.probability(middle, margin) >= probability:
                high = middle
            else:
                low = middle
        return high

    @classmethod
    def fit(
        cls,
        similarities: ArrayLike,
        margins: ArrayLike,
        right: ArrayLike,
        cluster_radius_m: float = 10.0,
    ) -> Calibration:
        """Fit on one best candidate per query.

        Penalised maximum likelihood: the features are standardised, their weights have a normal prior of deviation
        ``PRIOR_DEVIATION`` and are kept at 0 or above, and the targets are Platt's (n+ + 1) / (n+ + 2) and
        1 / (n- + 2) (Platt 1999, "Probabilistic outputs for support vector machines", section 2.2). So the fit is
        finite and unique for any data: if all of n queries are right, the probability is (n + 1) / (n + 2) everywhere;
        a feature that never varies has weight 0.

        Args:
            similarities: (N,), of the best candidates.
            margins: (N,), of the best candidates, see ``margins``.
            right: (N,) bool, whether the best candidate is the true place.
            cluster_radius_m: that the margins were computed with.

        Raises:
            DataError: there is no query, the lengths differ, or a value is not finite.
        """
        labels = np.asarray(right, dtype=bool)
        intercept, weights = _logistic(
            np.stack([np.asarray(similarities, np.float64), np.asarray(margins, np.float64)], axis=-1), labels
        )
        return cls(
            intercept=intercept,
            similarity_weight=float(weights[0]),
            margin_weight=float(weights[1]),
            cluster_radius_m=float(cluster_radius_m),
            right=int(labels.sum()),
            wrong=int((~labels).sum()),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """The inverse of ``to_dict``. What later versions added may be missing.

        Raises:
            DataError: a key is missing or unknown, or a value is out of range.
        """
        numbers = dict(values)
        sections = {
            "spread": _section(Spread, "spread", numbers.pop("spread", None)),
            "evidence": _section(Evidence, "evidence", numbers.pop("evidence", None)),
            "with_odometry": _filtered("with_odometry", numbers.pop("with_odometry", None)),
            "without_odometry": _filtered("without_odometry", numbers.pop("without_odometry", None)),
        }
        known = {f.name for f in fields(cls) if f.default is MISSING}
        _check_numbers("calibration", numbers, known)
        return cls(**numbers, **sections)  # type: ignore[arg-type]


def _section(kind: type[Section], name: str, values: Any) -> Section | None:
    if values is None:
        return None
    _check_numbers(f"calibration: {name}", values, {f.name for f in fields(kind)})
    return kind(**values)


def _filtered(name: str, values: Any) -> Filtered | None:
    if values is None:
        return None
    numbers = dict(values) if isinstance(values, Mapping) else {}
    spread = _section(Spread, f"{name}.spread", numbers.pop("spread", None))
    _check_numbers(f"calibration: {name}", numbers, {f.name for f in fields(Filtered)} - {"spread"})
    if spread is None:
        raise DataError(f"calibration: {name} lacks its spread")
    return Filtered(**numbers, spread=spread)


def _check_numbers(name: str, values: Any, known: set[str]) -> None:
    if not isinstance(values, Mapping) or set(values) != known:
        raise DataError(f"{name}: wants the keys {sorted(known)}, got {sorted(values) if values else values}")
    if wrong := [key for key, value in values.items() if type(value) not in (int, float)]:
        raise DataError(f"{name}: {wrong[0]} is {values[wrong[0]]!r}, wants a number")


def _check(name: str, section: Any, at_least_0: tuple[str, ...]) -> None:
    numbers = [getattr(section, f.name) for f in fields(section)]
    finite = np.isfinite([value for value in numbers if isinstance(value, (int, float))]).all()
    if not finite or min(getattr(section, key) for key in at_least_0) < 0:
        raise DataError(f"{name}: {section} holds a value that is not finite or is negative; calibrate it again")


def margins(similarities: NDArray[Any], positions: Floats, cluster_radius_m: float) -> Floats:
    """How far each candidate stands above the best candidate of another place.

    The margin of candidate i is its similarity minus the highest similarity among the candidates that lie farther than
    ``cluster_radius_m`` from it. Where no candidate does, the best of another place is not among them and is at most as
    similar as the least similar candidate: that bound stands in for it.

    Args:
        similarities: (k,), of one query's candidates.
        positions: (k, 3) or (k, 2), metres.
        cluster_radius_m: metres.

    Returns:
        (k,) float64; of the most similar candidate never negative.
    """
    s = np.asarray(similarities, dtype=np.float64)
    if len(s) == 0:
        return s
    distances = np.linalg.norm(positions[:, None] - positions[None, :], axis=-1)
    elsewhere = np.where(distances > cluster_radius_m, s[None, :], -np.inf).max(axis=1)
    return np.asarray(s - np.where(np.isfinite(elsewhere), elsewhere, s.min()))


def _platt_targets(labels: NDArray[np.bool_]) -> Floats:
    right, wrong = int(labels.sum()), int((~labels).sum())
    return np.where(labels, (right + 1.0) / (right + 2.0), 1.0 / (wrong + 2.0))


def _logistic(features: Floats, labels: NDArray[np.bool_]) -> tuple[float, Floats]:
    """Intercept and weights (F,), at least 0, of P(label | features); see ``Calibration.fit``."""
    if features.ndim != 2 or features.shape[:1] != labels.shape or len(labels) == 0:
        raise DataError(f"calibration: {features.shape[:1]} samples and {labels.shape} labels; wants as many, > 0")
    if not np.isfinite(features).all():
        raise DataError("calibration: a similarity, a margin or a probability is not finite")
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    # Rounding leaves a deviation of about 1e-17 in a constant column; descriptors are good to about 1e-7.
    deviation = np.where(deviation > 1e-9, deviation, np.inf)
    weights = _fit_logistic((features - mean) / deviation, _platt_targets(labels))
    slopes = weights[1:] / deviation
    return float(weights[0] - slopes @ mean), slopes


def _fit_logistic(features: Floats, targets: Floats) -> Floats:
    """Intercept and weights (1 + F,) of the penalised fit, weights at least 0; the problem is convex."""
    design = np.concatenate([np.ones((len(features), 1)), features], axis=1)
    precision = np.full(design.shape[1], PRIOR_DEVIATION**-2)
    precision[0] = 0.0

    def loss(weights: Floats) -> tuple[float, Floats]:
        logits = design @ weights
        likelihood = targets @ log_expit(logits) + (1.0 - targets) @ log_expit(-logits)
        gradient = design.T @ (expit(logits) - targets) + precision * weights
        return float(0.5 * precision @ weights**2 - likelihood), gradient

    bounds = [(None, None)] + [(0.0, None)] * features.shape[1]
    result = minimize(
        loss,
        np.zeros(design.shape[1]),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": 1000, "ftol": 0.0, "gtol": 1e-8},
    )
    return np.asarray(result.x, dtype=np.float64)
