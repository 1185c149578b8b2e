"""How sure a difference of two runs is: the paired bootstrap (Efron, 1979), and Holm's correction for many questions.

Rows are drawn with replacement, the same rows for both runs and for all metrics, so what a hard prompt does to both
cancels out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

_DRAWS_AT_ONCE = 1 << 22
"""Rows drawn in one piece, so that memory does not grow with the number of pictures."""

_DRAWS_KEPT = 1 << 24
"""Largest number of rows drawn that is kept for the next metric: 64 MiB."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and what it would have been with other rows."""

    value: float
    """Over all rows."""
    draws: np.ndarray
    """float64 (resamples,): the same over each resample."""
    is_smooth: bool = True
    """Whether the ends of an interval are the quantiles of the draws; else the draws only tell the spread, because
    distances between distributions are biased upwards in every resample (repeated rows look like mode collapse)."""

    @property
    def spread(self) -> float:
        """Standard error."""
        return float(self.draws.std())

    def find_interval(self, confidence: float) -> tuple[float, float]:
        """Two-sided interval at this level, 0 to 1."""
        tail = (1 - confidence) / 2
        if self.is_smooth:
            low, high = np.quantile(self.draws, [tail, 1 - tail])
            return float(low), float(high)
        reach = NormalDist().inv_cdf(1 - tail) * self.spread
        return self.value - reach, self.value + reach

    def find_p_value(self, sign: int) -> float:
        """One-sided chance of a value this far on the bad side of 0; sign 1 where higher is good, else -1."""
        if self.is_smooth:
            return float((1 + np.count_nonzero(sign * self.draws >= 0)) / (1 + len(self.draws)))
        if self.spread == 0:
            return 1.0 if sign * self.value >= 0 else 0.0
        return NormalDist().cdf(sign * self.value / self.spread)


def draw_weights(rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each row is in each resample: float32 (some, rows) at a time, `resamples` in all; each sums to rows."""
    if rows * resamples <= _DRAWS_KEPT:
        yield from _keep_weights(rows, resamples, seed)
    else:
        yield from _draw_anew(rows, resamples, seed)


@lru_cache(maxsize=2)
def _keep_weights(rows: int, resamples: int, seed: int) -> tuple[np.ndarray, ...]:
    """All metrics of a gate ask for the same draws."""
    return tuple(_draw_anew(rows, resamples, seed))


def _draw_anew(rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng((seed, rows))
    step = max(_DRAWS_AT_ONCE // rows, 1)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        cells = rng.integers(rows, size=(count, rows)) + rows * np.arange(count)[:, None]
        weights = np.bincount(cells.ravel(), minlength=count * rows).reshape(count, rows).astype(np.float32)
        weights.flags.writeable = False
        yield weights


def resample_means(scores: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means of every column over each resample of the rows, float64 (resamples, columns).

    Args:
        scores: float (rows, columns); NaN where a row has no score, which is then left out of that column's mean.
        resamples: How many.
        seed: Of the draws; the same seed gives the same rows to every caller.
    """
    known = np.isfinite(scores)
    centre = np.where(known, scores, 0.0).sum(0) / np.maximum(known.sum(0), 1)
    deviations = np.where(known, scores - centre, 0.0).astype(np.float32)
    counts = known.astype(np.float32)
    means = []
    for weights in draw_weights(len(scores), resamples, seed):
        drawn = weights @ counts
        means.append(weights @ deviations / np.maximum(drawn, 1.0))
    return np.concatenate(means).astype(np.float64) + centre


def adjust_p_values(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979): comparing each with α keeps the chance of any false alarm at α."""
    order = np.argsort(p_values, kind="stable")
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
