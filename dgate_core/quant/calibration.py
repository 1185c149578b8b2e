"""What a denoiser's layers hold while it draws: ranges over a prompt list of its own, at every step of the schedule."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import torch

from dgate_core.backends.inputs import RecordedCall
from dgate_core.errors import UsageError
from dgate_core.manifest.item import BatchKey
from dgate_core.models.families.contract import BatchRequest, Samples
from dgate_core.models.families.latent import LatentModel
from dgate_core.models.spec import DEFAULT_SCHEDULER
from dgate_core.quant.layers import Layer, channels_of, list_layers

Method = Literal["max", "percentile"]
Report = Callable[[str], None]
SAMPLED_VALUES: Final = 65_536
"""Of a tensor, for its percentile."""


def ignore_report(line: str) -> None:
    """For callers that show nothing."""


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """How a calibration is made."""

    method: Method = "percentile"
    """`max` takes the extremes, `percentile` leaves out a share of the values at each end, step by step."""
    percentile: float = 99.99
    """Share of the values inside the range, in percent."""
    prompts: int = 32
    """How many of the prompts are drawn, at most."""
    batch_size: int = 8
    """Pictures at once."""
    num_inference_steps: int | None = None
    """None is the model's default."""
    guidance_scale: float | None = None
    """None is the model's default."""
    width: int | None = None
    """Pixels; None is the native size."""
    height: int | None = None
    """Pixels; None is the native size."""
    replayed_steps: int = 4
    """Denoiser calls of the first batch that are kept for the sensitivity, spread over the schedule."""
    seed: int = 0
    """Of the first picture's noise; the others count on."""

    def __post_init__(self) -> None:
        if not 90.0 <= self.percentile <= 100.0:
            raise UsageError(f"percentile={self.percentile}", "from 90 to 100")
        if min(self.prompts, self.batch_size, self.replayed_steps) < 1:
            raise UsageError("prompts, batch_size and replayed_steps", "at least 1 each")


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """What one layer was given and gave; float32 on the CPU."""

    channel_low: torch.Tensor
    """(channels,): least value of each input channel."""
    channel_high: torch.Tensor
    """(channels,): greatest value of each input channel."""
    low: float
    """Lower end of the input's range, by the method."""
    high: float
    """Upper end of the input's range, by the method."""
    output_low: float
    """Lower end of the output's range, by the method."""
    output_high: float
    """Upper end of the output's range, by the method."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """All that a plan is made from."""

    layers: Mapping[str, LayerStatistics]
    """By module name."""
    calls: tuple[RecordedCall, ...]
    """Denoiser calls for the sensitivity."""
    options: CalibrationOptions
    """How it was made."""
    prompts_hash: str
    """sha256 of the prompts that were drawn."""


@torch.inference_mode()
def calibrate(
    model: LatentModel,
    prompts: Sequence[str],
    options: CalibrationOptions | None = None,
    report: Report = ignore_report,
) -> Calibration:
    """Draws the prompts with the model as it is and watches its layers; the model is unchanged afterwards.

    Args:
        model: On its device, in 16 or 32 bit; random weights will do.
        prompts: Never those of an evaluation; see `check_no_overlap`.
        options: Method, how many pictures and steps.
        report: Takes progress lines.

    Raises:
        UsageError: there is no prompt.
    """
    options = options or CalibrationOptions()
    drawn = list(prompts)[: options.prompts]
    if not drawn:
        raise UsageError("the calibration manifest has no prompts", "at least one", "give --calibration MANIFEST")
    calls: list[RecordedCall] = []
    with _watch_layers(model, options) as watched:
        for first in range(0, len(drawn), options.batch_size):
            batch = drawn[first : first + options.batch_size]
            request = _make_request(model, batch, replace(options, seed=options.seed + first))
            with _record_calls(model, calls if first == 0 else []):
                model.denoise(request)
            report(f"calibrated on {min(first + options.batch_size, len(drawn))} of {len(drawn)} prompts")
    step = max(1, len(calls) // options.replayed_steps)
    digest = hashlib.sha256("\n".join(drawn).encode()).hexdigest()
    layers = {name: each.conclude() for name, each in watched.items() if each.seen}
    return Calibration(layers, tuple(calls[step // 2 :: step][: options.replayed_steps]), options, digest)


class _Watcher:
    """Hooks of one layer."""

    def __init__(self, layer: Layer, options: CalibrationOptions) -> None:
        self.layer, self.share = layer, options.percentile / 100 if options.method == "percentile" else 1.0
        self.seen: list[torch.Tensor] = []

    def __call__(self, module: torch.nn.Module, given: tuple[Any, ...], output: torch.Tensor) -> None:  # noqa: ARG002
        values = channels_of(given[0], self.layer)
        now = [values.amin(0).float(), *self._find_ends(values), values.amax(0).float(), *self._find_ends(output)]
        lows, highs = [now[0], now[1], now[4]], [now[3], now[2], now[5]]
        if self.seen:
            lows = list(map(torch.minimum, lows, self.seen[:3]))
            highs = list(map(torch.maximum, highs, self.seen[3:]))
        self.seen = [*lows, *highs]

    def _find_ends(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both ends of this step's range: the whole range is the widest of the steps'."""
        flat = values.flatten()
        if self.share == 1.0:
            return flat.amin().float(), flat.amax().float()
        flat = flat[:: max(1, flat.numel() // SAMPLED_VALUES)].float()
        left_out = int((1 - self.share) * flat.numel())
        return flat.kthvalue(1 + left_out).values, flat.kthvalue(flat.numel() - left_out).values

    def conclude(self) -> LayerStatistics:
        """The ranges over all steps."""
        channel_low, low, output_low, channel_high, high, output_high = (each.cpu() for each in self.seen)
        return LayerStatistics(
            channel_low, channel_high, float(low), float(high), float(output_low), float(output_high)
        )


@contextmanager
def _watch_layers(model: LatentModel, options: CalibrationOptions) -> Iterator[dict[str, _Watcher]]:
    layers = list_layers(model)
    watched = {name: _Watcher(layer, options) for name, layer in layers.items()}
    handles = [layer.register_forward_hook(watched[name]) for name, layer in layers.items()]
    try:
        yield watched
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _record_calls(model: LatentModel, calls: list[RecordedCall]) -> Iterator[None]:
    """Keeps what the loop gives its denoiser."""

    def record(samples: Samples, timestep: torch.Tensor, **conditioning: Any) -> torch.Tensor:
        calls.append(RecordedCall(samples, timestep, conditioning))
        return before(samples, timestep, **conditioning)

    before, model.call_denoiser = model.call_denoiser, record
    try:
        yield
    finally:
        model.call_denoiser = before


def _make_request(model: LatentModel, prompts: Sequence[str], options: CalibrationOptions) -> BatchRequest:
    spec, native = model.checkpoint.spec, model.checkpoint.native_size
    guidance = spec.guidance_scale if options.guidance_scale is None else options.guidance_scale
    key = BatchKey(
        model=spec.name,
        width=options.width or native,
        height=options.height or native,
        num_inference_steps=options.num_inference_steps or spec.num_inference_steps,
        guidance_scale=guidance,
        scheduler=DEFAULT_SCHEDULER,
    )
    seeds = tuple(range(options.seed, options.seed + len(prompts)))
    words = model.encode_prompts(prompts, one_by_one=False)
    negatives = model.encode_negatives([""] * len(prompts), one_by_one=False) if model.reads_negatives(guidance) else []
    return BatchRequest(key, seeds, tuple(words), tuple(negatives))
