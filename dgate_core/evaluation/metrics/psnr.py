"""Peak signal-to-noise ratio between a picture and the baseline's picture of the same row."""

from __future__ import annotations

import numpy as np

from dgate_core.evaluation.picture_metric import MetricCard, Tools, list_pairs
from dgate_core.evaluation.pictures import Chunk

LARGEST_PSNR = 100.0
"""Decibels at most: the ratio of equal pictures is infinite, and a mean with infinity in it tells nothing."""


class PeakSignalToNoise:
    """10 log10(255² / MSE) over all three channels, in decibels; LARGEST_PSNR at most."""

    card = MetricCard("psnr", "paired", needs="both pictures, of one size")
    extractors = ()

    def score(self, chunk: Chunk) -> np.ndarray:
        """See `PictureMetric`."""
        scores = np.full(len(chunk), np.nan)
        for index, ours, theirs in list_pairs(chunk):
            scores[index] = measure_psnr(ours, theirs)
        return scores


def measure_psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Decibels between two pictures uint8 (height, width, 3)."""
    error = float(np.mean((ours.astype(np.float64) - theirs) ** 2))
    return min(10 * float(np.log10(255**2 / error)), LARGEST_PSNR) if error else LARGEST_PSNR


def open_metric(variant: str, tools: Tools) -> PeakSignalToNoise:  # noqa: ARG001 - part of the contract
    """See `MetricFactory`."""
    return PeakSignalToNoise()
