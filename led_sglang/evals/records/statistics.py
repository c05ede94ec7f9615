"""pass@n, its error, paired bootstrap intervals and the accuracy-temperature slope; pure functions of counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "NS",
    "NUM_RESAMPLES",
    "Floats",
    "Interval",
    "bootstrap_mean",
    "pass_at",
    "pass_values",
    "slope",
    "slope_weights",
    "standard_error",
]

Floats = NDArray[np.float64]
NS = (1, 2, 4, 8, 16)
NUM_RESAMPLES = 10_000
CHUNK = 256  # resamples drawn at a time: memory stays at CHUNK x questions


@lru_cache(maxsize=4096)
def pass_at(n: int, total: int, correct: int) -> float:
    """Probability that n of `total` samples, without replacement, hold a right one: 1 - C(total-c, n) / C(total, n).

    Raises ValueError where fewer than n samples were drawn: there is no unbiased estimate.
    """
    if not 0 <= correct <= total or not 1 <= n <= total:
        raise ValueError(f"pass@{n} of {correct} right in {total} samples is not defined")
    return 1.0 - math.comb(total - correct, n) / math.comb(total, n)


def pass_values(n: int, totals: Sequence[int], corrects: Sequence[int]) -> Floats:
    """pass@n of every question."""
    return np.array([pass_at(n, int(t), int(c)) for t, c in zip(totals, corrects, strict=True)])  # (Q,)


def standard_error(values: Floats) -> float:
    """Of the mean over questions, the questions taken as drawn at random; nan for a single one."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


@dataclass(frozen=True)
class Interval:
    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def bootstrap_mean(strata: Sequence[Floats], seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> Interval:
    """Mean over strata (tasks) of the mean over questions, with its 95 % percentile interval.

    Questions are drawn again with replacement inside each stratum. Differences are paired by giving each question's
    difference as its value. The same seed gives the same interval.
    """
    if not strata or any(len(values) == 0 for values in strata):
        raise ValueError("nothing to draw from")
    means = np.zeros(num_resamples)
    for index, values in enumerate(strata):
        rng = np.random.default_rng([seed, index])
        for start in range(0, num_resamples, CHUNK):
            size = min(CHUNK, num_resamples - start)
            picks = rng.integers(0, len(values), size=(size, len(values)))  # (size, Q)
            means[start : start + size] += values[picks].mean(axis=1) / len(strata)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(np.mean([values.mean() for values in strata])), float(low), float(high))


def slope_weights(num_temperatures: int, num_ns: int) -> Floats:
    """Weights w with alpha = sum(w * accuracy): the least-squares plane's slope along the temperature index.

    On a full grid the two indices are orthogonal, so the slope is that of the row means.
    """
    if num_temperatures < 2:
        raise ValueError("a slope needs two temperatures")
    centred = np.arange(num_temperatures) - (num_temperatures - 1) / 2
    row = centred / (centred**2).sum() / num_ns
    return np.repeat(row[:, None], num_ns, axis=1)  # (temperatures, ns)


def slope(accuracies: Floats) -> float:
    """The paper's alpha of a (temperatures, ns) matrix of pass@n, per step of the temperature index."""
    return float((slope_weights(*accuracies.shape) * accuracies).sum())
