"""Inception score (Salimans et al. 2016) of the logits of FID's Inception without their bias, as torch-fidelity's."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True, slots=True)
class InceptionScoreOptions:
    """How the score is estimated; the defaults are torch-fidelity's."""

    splits: int = 10
    """Parts whose scores are averaged."""
    seed: int = 2020
    """Of the shuffle before the split."""


def inception_score(
    logits: np.ndarray, options: InceptionScoreOptions = InceptionScoreOptions()
) -> tuple[float, float]:
    """Mean and standard deviation over the splits of logits (N, 1008)."""
    from scipy.special import log_softmax

    order = np.random.RandomState(options.seed).permutation(len(logits))
    chances = log_softmax(logits[order].astype(np.float64), axis=1)
    edges = [number * len(chances) // options.splits for number in range(options.splits + 1)]
    scores = [_score_part(chances[start:stop]) for start, stop in pairwise(edges) if stop > start]
    return float(np.mean(scores)), float(np.std(scores))


def _score_part(chances: np.ndarray) -> float:
    """exp of the mean divergence of each picture's log probabilities (N, C) from their mean."""
    from scipy.special import logsumexp

    average = logsumexp(chances, axis=0) - np.log(len(chances))
    return float(np.exp((np.exp(chances) * (chances - average)).sum(1).mean()))
