"""Maximum mean discrepancy of two sets of features: KID (Bińkowski et al. 2018), CMMD (Jayasumana et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(N, D), (M, D) → (N, M)."""
CMMD_SIGMA: Final = 10.0
CMMD_SCALE: Final = 1000.0
_BLOCK: Final = 1024


def polynomial_kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """KID's kernel: (x·y / D + 1)³."""
    values: np.ndarray = (first @ second.T / first.shape[1] + 1) ** 3
    return values


def gaussian_kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """CMMD's kernel of unit vectors: exp(-|x - y|² / (2 · 10²))."""
    values: np.ndarray = np.exp((first @ second.T - 1) / CMMD_SIGMA**2)
    return values


@dataclass(frozen=True, slots=True)
class KidOptions:
    """How KID is estimated; the defaults are torch-fidelity's."""

    subsets: int = 100
    """Estimates that are averaged."""
    subset_size: int = 1000
    """Pictures of each; never more than the smaller set has."""
    seed: int = 2020
    """Of the choice of subsets."""


@dataclass(frozen=True, slots=True)
class KidEstimate:
    """KID over subsets."""

    mean: float
    """The value; can be a little below 0 for like sets."""
    standard_deviation: float
    """Over the subsets; 0 when every subset is the whole set."""
    subset_size: int
    """Pictures of each subset."""


def kernel_inception_distance(first: np.ndarray, second: np.ndarray, options: KidOptions = KidOptions()) -> KidEstimate:
    """Unbiased squared MMD with the cubic kernel, averaged over subsets of two sets of features (N, D), (M, D)."""
    size = min(options.subset_size, len(first), len(second))
    rng = np.random.RandomState(options.seed)
    whole = size == len(first) == len(second)
    estimates = []
    for _ in range(1 if whole else options.subsets):
        rows = [side[rng.choice(len(side), size, replace=False)].astype(np.float64) for side in (first, second)]
        estimates.append(squared_discrepancy(rows[0], rows[1]))
    return KidEstimate(float(np.mean(estimates)), float(np.std(estimates)), size)


def squared_discrepancy(first: np.ndarray, second: np.ndarray) -> float:
    """Unbiased squared MMD of features (N, D) and (M, D), with KID's kernel."""
    within = sum(_mean_of_pairs(polynomial_kernel(side, side)) for side in (first, second))
    return float(within - 2 * polynomial_kernel(first, second).mean())


def _mean_of_pairs(kernel: np.ndarray) -> float:
    """Mean over pairs of two different pictures."""
    return float((kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1)))


def clip_discrepancy(first: np.ndarray, second: np.ndarray) -> float:
    """CMMD: 1000 x the squared MMD (every pair counts, also a picture with itself) of embeddings (N, D) and (M, D)."""
    first, second = normalise_rows(first), normalise_rows(second)
    within = sum(_mean_in_blocks(side, side) for side in (first, second))
    return float(CMMD_SCALE * (within - 2 * _mean_in_blocks(first, second)))


def normalise_rows(features: np.ndarray) -> np.ndarray:
    """Features (N, D) in float64, each of length 1."""
    features = np.asarray(features, np.float64)
    unit: np.ndarray = features / np.linalg.norm(features, axis=1, keepdims=True)
    return unit


def _mean_in_blocks(first: np.ndarray, second: np.ndarray) -> float:
    total = sum(gaussian_kernel(block, other).sum() for block in _split(first) for other in _split(second))
    return float(total / (len(first) * len(second)))


def _split(features: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(features), _BLOCK):
        yield features[start : start + _BLOCK]


class KernelResampler:
    """The discrepancy of resampled pictures to a reference that stays as it is, from kernels made once.

    The reference's own term is left out: no draw changes it, and a large reference would spend minutes on it.

    Args:
        features: (N, D); N² kernel values are held.
        reference: (M, D).
        kernel: KID's or CMMD's; for CMMD both sides have rows of length 1.
        scale: Of the result.
    """

    def __init__(self, features: np.ndarray, reference: np.ndarray, kernel: Kernel, scale: float = 1.0) -> None:
        features, reference = np.asarray(features, np.float64), np.asarray(reference, np.float64)
        self.size, self.scale, self._own = len(features), scale, kernel(features, features)
        self._cross = np.asarray(sum(kernel(features, block).sum(1) for block in _split(reference))) / len(reference)
        np.fill_diagonal(self._own, 0)

    def distance(self, weights: np.ndarray) -> float:
        """Discrepancy less the reference's own term; a picture is never its own pair, however often it is drawn."""
        pairs = weights.sum() ** 2 - weights @ weights
        return float(self.scale * (weights @ self._own @ weights / pairs - 2 * weights @ self._cross / weights.sum()))
