"""Mean, spread and paired differences over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds, with its standard deviation and the half width of its 95 % confidence interval (Student's t).

    Attributes:
        seeds: how many; with one, spread and interval are NaN.
    """

    mean: float
    deviation: float
    half_width: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Of one value a seed."""
        n = len(values)
        mean = float(np.mean(values)) if n else math.nan
        if n < 2:
            return cls(mean, math.nan, math.nan, n)
        deviation = float(np.std(values, ddof=1))
        t = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))
        return cls(mean, deviation, t * deviation / math.sqrt(n), n)


@dataclass(frozen=True)
class Difference:
    """One row against another, seed by seed: both began with the same weights.

    Attributes:
        estimate: of the differences.
        p: of a two-sided paired t test; NaN with fewer than two seeds, or where all differences are equal.
    """

    estimate: Estimate
    p: float

    @classmethod
    def of(cls, row: Mapping[int, float], base: Mapping[int, float]) -> Difference:
        """Of the seeds that both have."""
        seeds = sorted(row.keys() & base.keys())
        differences = [row[seed] - base[seed] for seed in seeds]
        p = math.nan
        if len(seeds) > 1 and np.ptp(differences) > 0:
            p = float(stats.ttest_1samp(differences, 0.0).pvalue)
        return cls(Estimate.of(differences), p)


def gap_closed(row: Mapping[int, float], base: Mapping[int, float], teacher: float) -> Estimate:
    """Share of the gap between teacher and plain student that each seed closes, over the seeds that both have.

    Of no seed where the plain student of one is as good as the teacher: there is no gap to speak of.
    """
    seeds = sorted(row.keys() & base.keys())
    if any(base[seed] >= teacher for seed in seeds):
        return Estimate.of([])
    return Estimate.of([(row[seed] - base[seed]) / (teacher - base[seed]) for seed in seeds])
