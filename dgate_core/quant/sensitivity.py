"""Which layers show when they are quantised: one or a few at a time, over recorded calls, against the model as it is.

The error of a layer is the root of its squared change of the prediction over the prediction's own square. Errors of
single layers add up as squares, nearly, so one budget for all of them says which must keep their bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from dgate_core.backends.inputs import RecordedCall
from dgate_core.errors import UsageError
from dgate_core.models.families.latent import LatentModel
from dgate_core.quant.calibration import Calibration, Report, ignore_report
from dgate_core.quant.layers import list_layers, replace_layer
from dgate_core.quant.plan import Granularity, LayerRange, Quantization, QuantPlan
from dgate_core.quant.product import QuantisedProduct, quantise_layer
from dgate_core.quant.quantise import find_product
from dgate_core.quant.smoothing import find_range, find_smoothing


@dataclass(frozen=True, slots=True)
class SensitivityOptions:
    """How much may show."""

    error_budget: float = 0.05
    """Relative error of the prediction that all quantised layers together may make."""
    smoothing: float = 0.5
    """SmoothQuant's strength, tried on linear layers that take more than their share of the budget; 0 is off."""
    together: int = 1
    """Neighbours that are tried at once; only a group above its even share of the budget is taken apart. 1 tries every
    layer alone, which is the surest and takes as many trials as there are layers."""

    def __post_init__(self) -> None:
        if self.together < 1:
            raise UsageError(f"together={self.together}", "1 (every layer alone) or more")


@dataclass(frozen=True, slots=True)
class LayerTrial:
    """A layer quantised alone, or its even share of a group's error."""

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
    granularity: Granularity = "channel",
) -> tuple[QuantPlan, list[LayerTrial]]:
    """Tries every layer alone and keeps those in 16 or 32 bit that do not fit the budget, the worst first.

    Args:
        model: That was calibrated; unchanged afterwards.
        calibration: Of it.
        quantization: `int8` or `fp8`.
        options: Budget, smoothing.
        report: Takes progress lines.
        granularity: Of the weights' scales.

    Returns:
        The plan, and the trials, the greatest error first.
    """
    options = options or SensitivityOptions()
    trials = measure_sensitivity(model, calibration, quantization, options, report, granularity)
    kept = choose_kept(trials, options.error_budget)
    taken = {trial.name: trial for trial in trials if trial.name not in kept}
    order = [name for name in calibration.layers if name in taken]
    smoothing = {name: scale for name in order if (scale := taken[name].smoothing) is not None}
    limits = {name: taken[name].limits for name in order}
    return QuantPlan(quantization, limits, smoothing, kept, granularity), trials


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
    granularity: Granularity = "channel",
) -> list[LayerTrial]:
    """Every layer's trial, the greatest error first."""
    trials = _Trials(model, calibration, find_product(quantization, granularity), options)
    names, found = list(calibration.layers), []
    for first in range(0, len(names), options.together):
        found += trials.try_group(names[first : first + options.together])
        if len(found) // 10 > (len(found) - options.together) // 10 or len(found) == len(names):
            report(f"tried {len(found)} of {len(names)} layers in {trials.count} trials")
    return sorted(found, key=lambda each: each.error, reverse=True)


class _Trials:
    """Replays the calibration's calls with some layers quantised."""

    def __init__(
        self, model: LatentModel, calibration: Calibration, kind: type[QuantisedProduct], options: SensitivityOptions
    ) -> None:
        self.model, self.calibration, self.kind, self.options = model, calibration, kind, options
        self.layers = list_layers(model)
        self.wanted = [replay_call(model, call) for call in calibration.calls]
        self.share = options.error_budget / math.sqrt(max(len(calibration.layers), 1))
        """Of the budget, when all layers err alike."""
        self.count = 0

    def try_group(self, names: Sequence[str]) -> list[LayerTrial]:
        """Together they err as the root of their summed squares; above their even share each is tried alone."""
        if len(names) > 1:
            limits = {name: find_range(self.calibration.layers[name]) for name in names}
            each = self._measure({name: (limits[name], None) for name in names}) / math.sqrt(len(names))
            if each <= self.share:
                return [LayerTrial(name, each, limits[name], None) for name in names]
        return [self.try_alone(name) for name in names]

    def try_alone(self, name: str) -> LayerTrial:
        """Smoothing costs a multiplication per input, so it is for layers above their even share of the budget."""
        trial, layer = self._try_smoothed(name, None), self.layers[name]
        if not isinstance(layer, nn.Linear) or not self.options.smoothing or trial.error <= self.share:
            return trial
        scale = find_smoothing(self.calibration.layers[name], layer.weight, self.options.smoothing)
        return min(trial, self._try_smoothed(name, scale), key=lambda each: each.error)

    def _try_smoothed(self, name: str, smoothing: torch.Tensor | None) -> LayerTrial:
        limits = find_range(self.calibration.layers[name], smoothing)
        return LayerTrial(name, self._measure({name: (limits, smoothing)}), limits, smoothing)

    def _measure(self, how: Mapping[str, tuple[LayerRange, torch.Tensor | None]]) -> float:
        """Error of the prediction with these layers quantised."""
        self.count += 1
        with ExitStack() as exchanged:
            for name, (limits, smoothing) in how.items():
                module = quantise_layer(self.layers[name], self.kind, limits, smoothing)
                exchanged.enter_context(_exchange_layer(self.model, name, module))
            found = [replay_call(self.model, call) for call in self.calibration.calls]
        return compare_predictions(found, self.wanted)


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
