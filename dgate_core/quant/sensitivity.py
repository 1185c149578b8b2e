"""Which layers show when they are quantised: one at a time, over recorded denoiser calls, against the model as it is.

The error of a layer is the root of its squared change of the prediction over the prediction's own square. Errors of
single layers add up as squares, nearly, so one budget for all of them says which must keep their bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from dgate_core.backends.inputs import RecordedCall
from dgate_core.models.families.latent import LatentModel
from dgate_core.quant.calibration import Calibration, Report, ignore_report
from dgate_core.quant.layers import list_layers, replace_layer
from dgate_core.quant.plan import LayerRange, Quantization, QuantPlan
from dgate_core.quant.product import quantise_layer
from dgate_core.quant.quantise import find_product
from dgate_core.quant.smoothing import find_range, find_smoothing


@dataclass(frozen=True, slots=True)
class SensitivityOptions:
    """How much may show."""

    error_budget: float = 0.05
    """Relative error of the prediction that all quantised layers together may make."""
    smoothing: float = 0.5
    """SmoothQuant's strength, tried on linear layers that take more than their share of the budget; 0 is off."""


@dataclass(frozen=True, slots=True)
class LayerTrial:
    """A layer quantised alone."""

    name: str
    """Of the module."""
    error: float
    """Relative change of the prediction."""
    limits: LayerRange
    """Ranges that it was quantised with."""
    smoothing: torch.Tensor | None
    """(inputs,), where it made the error smaller."""


def plan_quantization(
    model: LatentModel,
    calibration: Calibration,
    quantization: Quantization,
    options: SensitivityOptions | None = None,
    report: Report = ignore_report,
) -> tuple[QuantPlan, list[LayerTrial]]:
    """Tries every layer alone and keeps those in 16 or 32 bit that do not fit the budget, the worst first.

    Args:
        model: That was calibrated; unchanged afterwards.
        calibration: Of it.
        quantization: `int8` or `fp8`.
        options: Budget, smoothing.
        report: Takes progress lines.

    Returns:
        The plan, and the trials, the greatest error first.
    """
    options = options or SensitivityOptions()
    trials = measure_sensitivity(model, calibration, quantization, options, report)
    kept = choose_kept(trials, options.error_budget)
    taken = {trial.name: trial for trial in trials if trial.name not in kept}
    order = [name for name in calibration.layers if name in taken]
    smoothing = {name: scale for name in order if (scale := taken[name].smoothing) is not None}
    return QuantPlan(quantization, {name: taken[name].limits for name in order}, smoothing, kept), trials


def choose_kept(trials: Sequence[LayerTrial], error_budget: float) -> tuple[str, ...]:
    """Layers that keep their bits, from trials sorted by falling error."""
    left = sum(trial.error**2 for trial in trials)
    kept = []
    for trial in trials:
        if left <= error_budget**2:
            break
        left -= trial.error**2
        kept.append(trial.name)
    return tuple(kept)


@torch.inference_mode()
def measure_sensitivity(
    model: LatentModel,
    calibration: Calibration,
    quantization: Quantization,
    options: SensitivityOptions,
    report: Report = ignore_report,
) -> list[LayerTrial]:
    """Every layer's trial, the greatest error first."""
    layers, kind = list_layers(model), find_product(quantization, "channel")
    wanted = [replay_call(model, call) for call in calibration.calls]
    # Smoothing costs a multiplication per input, so it is for layers above their even share of the budget.
    share = options.error_budget / math.sqrt(max(len(calibration.layers), 1))

    def measure(name: str, smoothing: torch.Tensor | None) -> LayerTrial:
        limits = find_range(calibration.layers[name], smoothing)
        module = quantise_layer(layers[name], kind, limits, smoothing)
        with _exchange_layer(model, name, module):
            found = [replay_call(model, call) for call in calibration.calls]
        return LayerTrial(name, compare_predictions(found, wanted), limits, smoothing)

    trials = []
    for number, name in enumerate(calibration.layers, start=1):
        trial, layer = measure(name, None), layers[name]
        if isinstance(layer, nn.Linear) and options.smoothing and trial.error > share:
            scale = find_smoothing(calibration.layers[name], layer.weight, options.smoothing)
            trial = min(trial, measure(name, scale), key=lambda each: each.error)
        trials.append(trial)
        if number % 10 == 0 or number == len(calibration.layers):
            report(f"tried {number} of {len(calibration.layers)} layers alone")
    return sorted(trials, key=lambda each: each.error, reverse=True)


@torch.inference_mode()
def replay_call(model: LatentModel, call: RecordedCall) -> torch.Tensor:
    """The denoiser's prediction, float32."""
    return model.call_module(call.samples, call.timestep, **call.conditioning).float()


def compare_predictions(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    """Root of the summed squared differences over the summed squares; infinite where a prediction is not finite."""
    change = sum(float((a - b).square().sum()) for a, b in zip(found, wanted, strict=True))
    error = math.sqrt(change / max(sum(float(b.square().sum()) for b in wanted), 1e-30))
    return error if math.isfinite(error) else math.inf


@contextmanager
def _exchange_layer(model: LatentModel, name: str, module: nn.Module) -> Iterator[None]:
    before = replace_layer(model.denoiser, name, module)
    try:
        yield
    finally:
        replace_layer(model.denoiser, name, before)
