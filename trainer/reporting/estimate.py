"""What a few runs tell of a mean, or of the difference of two: the value and its 95 % confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """mean  of the runs; margin  half the width of its confidence interval, None where runs are too few for one"""

    mean: float
    margin: float | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """(lower, upper) end."""
        return None if self.margin is None else (self.mean - self.margin, self.mean + self.margin)

    @property
    def within_chance(self) -> bool | None:
        """Of a difference: whether its interval contains 0; None without an interval."""
        return None if self.margin is None else abs(self.mean) <= self.margin


def of_mean(values: Sequence[float]) -> Estimate:
    """Student's t interval of the mean of independent values; one value alone has none."""
    return _estimate(float(np.mean(values)), _variance_of_mean(values), len(values) - 1)


def of_difference(ours: Sequence[float], theirs: Sequence[float], paired: bool) -> Estimate:
    """Mean of `ours` minus mean of `theirs`.

    paired  value i of both is of the same seed: Student's t interval of the differences' mean. Otherwise Welch's
            interval (Welch, Biometrika 34, 1947), which takes the two variances for different ones; None where either
            side is one value alone
    Raises ValueError where pairs have no partner.
    """
    if paired:
        if len(ours) != len(theirs):
            raise ValueError(f"{len(ours)} values cannot be paired with {len(theirs)}; compare them unpaired")
        return of_mean([mine - other for mine, other in zip(ours, theirs, strict=True)])
    mean = float(np.mean(ours)) - float(np.mean(theirs))
    parts = [_variance_of_mean(values) for values in (ours, theirs)]
    freedoms = [len(values) - 1 for values in (ours, theirs)]
    if not all(freedoms):
        return Estimate(mean, None)
    total = sum(parts)
    split = sum(part**2 / freedom for part, freedom in zip(parts, freedoms, strict=True))
    return _estimate(mean, total, total**2 / split if split else sum(freedoms))


def _variance_of_mean(values: Sequence[float]) -> float:
    return float(np.var(values, ddof=1)) / len(values) if len(values) > 1 else 0.0


def _estimate(mean: float, variance: float, freedom: float) -> Estimate:
    if not freedom:
        return Estimate(mean, None)
    return Estimate(mean, float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance))
