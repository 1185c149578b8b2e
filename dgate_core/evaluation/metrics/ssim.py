"""Structural similarity (Wang et al., 2004) between a picture and the baseline's picture of the same row."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from dgate_core.evaluation.picture_metric import MetricCard, Tools, list_pairs, stack_by_size
from dgate_core.evaluation.pictures import Chunk

SIGMA = 1.5
RADIUS = 5
"""Window of 11 pixels, as in the paper."""
LUMINANCE, CONTRAST = (0.01 * 255) ** 2, (0.03 * 255) ** 2
"""C1 and C2 of the paper for pixels in 0 to 255."""


class StructuralSimilarity:
    """Mean of the SSIM map over all three channels, with mirrored borders, as torchmetrics computes it; -1 to 1."""

    card = MetricCard("ssim", "paired", needs="both pictures, of one size and at least 6 pixels wide and high")
    extractors = ()

    def __init__(self, device: str) -> None:
        self._device = device

    def score(self, chunk: Chunk) -> np.ndarray:
        """See `PictureMetric`."""
        scores = np.full(len(chunk), np.nan)
        pairs = {index: np.stack(pair) for index, *pair in list_pairs(chunk) if min(pair[0].shape[:2]) > RADIUS}
        for indices, pictures in stack_by_size(pairs):
            for index, pair in zip(indices, pictures, strict=True):
                pixels = torch.from_numpy(pair).to(self._device).permute(0, 3, 1, 2).double()
                scores[index] = float(measure_ssim(pixels[:1], pixels[1:])[0])
        return scores


def measure_ssim(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """SSIM (N,) of pictures (N, C, H, W) with values in 0 to 255."""
    number = len(ours)
    both = torch.cat([ours, theirs, ours * ours, theirs * theirs, ours * theirs])
    mean_a, mean_b, square_a, square_b, product = _blur(both).split(number)
    variance_a, variance_b = (square_a - mean_a**2).clamp(min=0), (square_b - mean_b**2).clamp(min=0)
    likeness = (2 * mean_a * mean_b + LUMINANCE) * (2 * (product - mean_a * mean_b) + CONTRAST)
    limit = (mean_a**2 + mean_b**2 + LUMINANCE) * (variance_a + variance_b + CONTRAST)
    return (likeness / limit).flatten(1).mean(1)


def _blur(planes: torch.Tensor) -> torch.Tensor:
    """Planes (N, C, H, W) under a Gaussian window, of the same size."""
    steps = torch.arange(-RADIUS, RADIUS + 1, dtype=planes.dtype, device=planes.device)
    window = torch.exp(-((steps / SIGMA) ** 2) / 2)
    window = window / window.sum()
    flat = functional.pad(planes, (RADIUS,) * 4, mode="reflect").flatten(0, 1).unsqueeze(1)
    flat = functional.conv2d(functional.conv2d(flat, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))
    return flat.view(planes.shape)


def open_metric(variant: str, tools: Tools) -> StructuralSimilarity:  # noqa: ARG001 - part of the contract
    """See `MetricFactory`."""
    return StructuralSimilarity(tools.device)
