"""From similarity to the probability of being right.

A retrieval always has a best candidate, even where the robot has never been. Two numbers tell how far to trust it: its
similarity, and its margin over the best candidate of any *other* place. A logistic regression on both, fitted on
queries whose true place is known, gives the probability that the best candidate is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from vpr_kd_ros.errors import DataError
from vpr_kd_ros.geometry import Floats

PRIOR_DEVIATION = 10.0
"""Standard deviation of the normal prior on the weights of the standardised features."""


@dataclass(frozen=True)
class Calibration:
    """P(right | similarity, margin) = 1 / (1 + exp(-(intercept + similarity_weight s + margin_weight m))).

    Both weights are at least 0: more similarity, or more margin, never makes a match less probable.

    Attributes:
        intercept, similarity_weight, margin_weight: of the logistic model.
        cluster_radius_m: candidates closer than this to one another count as the same place (see ``margins``).
        right, wrong: numbers of queries it was fitted on.
    """

    intercept: float
    similarity_weight: float
    margin_weight: float
    cluster_radius_m: float
    right: int
    wrong: int

    def __post_init__(self) -> None:
        numbers = (self.intercept, self.similarity_weight, self.margin_weight, self.cluster_radius_m)
        if not np.isfinite(numbers).all() or min(numbers[1:]) < 0 or min(self.right, self.wrong) < 0:
            raise DataError(f"calibration: {self} holds a value that is not finite or is negative; fit it again")

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
        features = np.stack([np.asarray(similarities, np.float64), np.asarray(margins, np.float64)], axis=-1)
        labels = np.asarray(right, dtype=bool)
        if features.ndim != 2 or features.shape[:1] != labels.shape or len(labels) == 0:
            raise DataError(
                f"calibration: {features.shape[:1]} similarities and {labels.shape} labels; wants as many, > 0"
            )
        if not np.isfinite(features).all():
            raise DataError("calibration: a similarity or a margin is not finite")
        mean, deviation = features.mean(axis=0), features.std(axis=0)
        # Rounding leaves a deviation of about 1e-17 in a constant column; descriptors are good to about 1e-7.
        deviation = np.where(deviation > 1e-9, deviation, np.inf)
        weights = _fit_logistic((features - mean) / deviation, _platt_targets(labels))
        slopes = weights[1:] / deviation
        return cls(
            intercept=float(weights[0] - slopes @ mean),
            similarity_weight=float(slopes[0]),
            margin_weight=float(slopes[1]),
            cluster_radius_m=float(cluster_radius_m),
            right=int(labels.sum()),
            wrong=int((~labels).sum()),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """The inverse of ``to_dict``.

        Raises:
            DataError: a key is missing or unknown, or a value is out of range.
        """
        known = {f.name for f in fields(cls)}
        if set(values) != known:
            raise DataError(f"calibration: wants the keys {sorted(known)}, got {sorted(values)}")
        if wrong := [key for key, value in values.items() if type(value) not in (int, float)]:
            raise DataError(f"calibration: {wrong[0]} is {values[wrong[0]]!r}, wants a number")
        return cls(**values)


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
