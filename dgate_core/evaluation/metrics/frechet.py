"""Fréchet distance of two sets of features (FID: Heusel et al. 2017), without the matrix square root of a product.

The eigenvalues of S1 S2 are those of A^T S2 A for any A with A A^T = S1: a symmetric matrix, and a small one where
there are fewer pictures than features.
"""

from __future__ import annotations

import numpy as np

from dgate_core.evaluation.statistics import FeatureStatistics, features_to_statistics


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """|m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^½), at least 0."""
    values, vectors = np.linalg.eigh(first.covariance)
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return _combine(first.mean, np.trace(first.covariance), vectors[:, kept] * np.sqrt(values[kept]), second)


def frechet_distance_of_features(features: np.ndarray, second: FeatureStatistics) -> float:
    """The same of features (N, D), N at least 2; quick where N is below D."""
    if len(features) > features.shape[1]:
        return frechet_distance(features_to_statistics([features], features.shape[1]), second)
    features = np.asarray(features, np.float64)
    mean = features.mean(0)
    factor = (features - mean).T / np.sqrt(len(features) - 1)
    return _combine(mean, np.sum(factor**2), factor, second)


def _combine(mean: np.ndarray, spread: float, factor: np.ndarray, second: FeatureStatistics) -> float:
    shift = mean - second.mean
    overlap = _trace_of_root(factor.T @ second.covariance @ factor)
    return max(float(shift @ shift + spread + np.trace(second.covariance) - 2 * overlap), 0.0)


def _trace_of_root(matrix: np.ndarray) -> float:
    """Trace of the square root of a symmetric matrix; eigenvalues that rounding made negative are 0."""
    return float(np.sqrt(np.linalg.eigvalsh(matrix).clip(min=0)).sum())


class FrechetResampler:
    """The distance of resampled pictures to a reference that stays as it is, from products made once.

    Args:
        features: (N, D), N at least 2.
        reference: Statistics of the reference.
    """

    def __init__(self, features: np.ndarray, reference: FeatureStatistics) -> None:
        self.size, centred = len(features), np.asarray(features, np.float64) - reference.mean
        self._inner = centred @ centred.T
        self._product = centred @ reference.covariance @ centred.T
        self._spread = float(np.trace(reference.covariance))

    def distance(self, weights: np.ndarray) -> float:
        """Distance when each picture is taken as often as its weight (N,) says.

        Equal to `frechet_distance_of_features` of the repeated rows.
        """
        total, chosen = weights.sum(), weights > 0
        share = weights[chosen] / total
        inner, product = self._inner[np.ix_(chosen, chosen)], self._product[np.ix_(chosen, chosen)]
        shift = share @ inner @ share
        spread = (share @ np.diag(inner) - shift) * total / (total - 1)
        row = product @ share
        centred = product - row - row[:, None] + share @ row
        root = np.sqrt(weights[chosen] / (total - 1))
        return max(float(shift + spread + self._spread - 2 * _trace_of_root(root[:, None] * centred * root)), 0.0)
