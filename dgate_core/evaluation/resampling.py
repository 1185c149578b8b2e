"""Corpus metrics as functions of how often each picture is drawn, for the bootstrap over features (Efron 1979)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dgate_core.evaluation.corpus_names import parse_family
from dgate_core.evaluation.metrics.frechet import FrechetResampler
from dgate_core.evaluation.metrics.kernel_distance import (
    CMMD_SCALE,
    KernelResampler,
    gaussian_kernel,
    normalise_rows,
    polynomial_kernel,
)
from dgate_core.evaluation.metrics.precision_recall import find_covered
from dgate_core.evaluation.results import EvaluationError
from dgate_core.evaluation.statistics import ReferenceStatistics


class Resampler(Protocol):
    """A metric of pictures that are drawn with replacement, against a reference that stays as it is."""

    @property
    def size(self) -> int:
        """Pictures."""
        ...

    def distance(self, weights: np.ndarray) -> float:
        """The metric when each picture is drawn as often as its weight (size,) says; weights sum to size.

        Up to a constant of the reference's own: right for differences and intervals.
        """
        ...


def open_resampler(name: str, features: np.ndarray, reference: ReferenceStatistics) -> Resampler:
    """The resampler of a corpus metric; what costs much is computed here, once.

    Args:
        name: `fid`, `fd`, `kid`, `cmmd` or `precision`, with or without `:EXTRACTOR`.
        features: float32 (N, D); its pictures are those that are drawn.
        reference: Of the same extractor.

    Raises:
        EvaluationError: the reference keeps no features, or the metric cannot be drawn again.
    """
    family = parse_family(name)
    if family in ("fid", "fd"):
        return FrechetResampler(features, reference.statistics)
    if family == "kid":
        return KernelResampler(features, find_features(reference), polynomial_kernel)
    if family == "cmmd":
        unit, others = normalise_rows(features), normalise_rows(find_features(reference))
        return KernelResampler(unit, others, gaussian_kernel, CMMD_SCALE)
    if family == "precision":
        return ShareResampler(find_covered(features, find_features(reference)))
    raise EvaluationError(f"{name} cannot be drawn again", "fid, fd, kid, cmmd or precision")


@dataclass(frozen=True, slots=True)
class ShareResampler:
    """The share of pictures for which something holds."""

    holds: np.ndarray
    """bool (N,)."""

    @property
    def size(self) -> int:
        """Pictures."""
        return len(self.holds)

    def distance(self, weights: np.ndarray) -> float:
        """Share, 0 to 1."""
        return float(weights @ self.holds / weights.sum())


def draw_interval(resampler: Resampler, value: float, resamples: int, seed: int) -> tuple[float, float] | None:
    """95 % of the draws around their mean, moved to the value: a draw's distance is biased, its spread is not."""
    if resamples == 0:
        return None
    rng, size = np.random.default_rng(seed), resampler.size
    counts = (np.bincount(rng.integers(size, size=size), minlength=size) for _ in range(resamples))
    draws = np.array([resampler.distance(count.astype(np.float64)) for count in counts])
    low, high = np.quantile(draws - draws.mean(), [0.025, 0.975])
    return value + float(low), value + float(high)


def find_features(reference: ReferenceStatistics) -> np.ndarray:
    """The reference's features float32 (M, D); raises EvaluationError when it keeps its statistics alone."""
    if reference.features is None:
        raise EvaluationError(
            f"the reference {reference.reference!r} keeps its mean and covariance alone",
            "its features, which this metric compares one by one",
            "build it from its pictures: dgate reference build",
        )
    return reference.features
