"""How sure a mean over pictures is: the percentile bootstrap (Efron, 1979), and Wilson's interval (1927) for shares."""

from __future__ import annotations

import math
import statistics

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 1_000
_NORMAL = statistics.NormalDist()
_SEED = 20_260
_DRAWS_AT_ONCE = 1 << 22
"""Indices drawn in one piece, so that memory does not grow with the number of pictures."""


def estimate_interval(scores: np.ndarray, *, is_share: bool) -> tuple[float, float] | None:
    """Confidence interval of the mean of scores (N,).

    Resamples of nothing but ones are all ones; that 20 of 20 were right does not mean that all would be. So a share, of
    scores that are 0 or 1, has Wilson's interval.
    """
    if is_share and len(scores) > 1:
        return estimate_share(float(scores.mean()), len(scores))
    return bootstrap_mean(scores)


def estimate_share(share: float, number: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a share, 0 to 1, of `number` pictures."""
    z = _NORMAL.inv_cdf((1 + confidence) / 2)
    middle = share + z * z / (2 * number)
    spread = z * math.sqrt(share * (1 - share) / number + z * z / (4 * number * number))
    scale = 1 + z * z / number
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def bootstrap_mean(scores: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Confidence interval of the mean; the same scores always give the same interval.

    Args:
        scores: float (N,), without NaN.
        confidence: 0 to 1.

    Returns:
        Lower and upper end; None for fewer than two scores, which tell nothing of their spread.
    """
    number = len(scores)
    if number < 2:
        return None
    rng = np.random.default_rng((_SEED, number))
    step = max(_DRAWS_AT_ONCE // number, 1)
    rounds = [min(step, RESAMPLES - start) for start in range(0, RESAMPLES, step)]
    means = np.concatenate([scores[rng.integers(number, size=(count, number))].mean(1) for count in rounds])
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
