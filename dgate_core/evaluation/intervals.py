"""How sure a mean over pictures is: the percentile bootstrap (Efron, 1979)."""

from __future__ import annotations

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 1_000
_SEED = 20_260
_DRAWS_AT_ONCE = 1 << 22
"""Indices drawn in one piece, so that memory does not grow with the number of pictures."""


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
