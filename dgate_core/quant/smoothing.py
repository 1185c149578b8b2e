"""SmoothQuant (Xiao et al., 2023): outlier channels of a linear layer's input are scaled down, its weights up."""

from __future__ import annotations

import torch

from dgate_core.quant.calibration import LayerStatistics
from dgate_core.quant.plan import LayerRange

_LEAST = 1e-5


def find_smoothing(statistics: LayerStatistics, weight: torch.Tensor, strength: float) -> torch.Tensor:
    """What the input channels are divided by, float32 (inputs,) on the CPU, of geometric mean 1.

    Args:
        statistics: Of the layer.
        weight: (outputs, inputs).
        strength: Share of the difficulty that moves from input to weight, 0 to 1.
    """
    inputs = torch.maximum(statistics.channel_low.abs(), statistics.channel_high.abs()).clamp_min(_LEAST)
    weights = weight.detach().float().abs().amax(dim=0).cpu().clamp_min(_LEAST)
    scale = inputs**strength / weights ** (1 - strength)
    return scale / scale.log().mean().exp()


def find_range(statistics: LayerStatistics, smoothing: torch.Tensor | None = None) -> LayerRange:
    """The layer's ranges; with smoothing the input's is that of the smoothed channels, whose outliers are gone."""
    low, high = statistics.low, statistics.high
    if smoothing is not None:
        low = float((statistics.channel_low / smoothing).min())
        high = float((statistics.channel_high / smoothing).max())
    return LayerRange(low, high, statistics.output_low, statistics.output_high)
