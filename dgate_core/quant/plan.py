"""What is to be quantised, and with which ranges: data that a calibration makes and an artefact keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dgate_core.errors import ModelError

Quantization = Literal["int8", "fp8", "nf4"]
Granularity = Literal["channel", "tensor"]
PLAN_VERSION: Final = 1
_SMOOTHING: Final = "smoothing."


@dataclass(frozen=True, slots=True)
class LayerRange:
    """What a layer's tensors were seen to hold."""

    low: float
    """Least value of the input, after smoothing."""
    high: float
    """Greatest value of the input, after smoothing."""
    output_low: float
    """Least value of the output."""
    output_high: float
    """Greatest value of the output."""

    @property
    def magnitude(self) -> float:
        """Greatest absolute value of the input; never 0, so that it can be divided by."""
        return max(abs(self.low), abs(self.high), 1e-12)


@dataclass(frozen=True, slots=True)
class QuantPlan:
    """How a denoiser is quantised: inputs by static ranges per tensor, weights by their own."""

    quantization: Quantization
    """Number format of weights and, but for `nf4`, activations."""
    layers: Mapping[str, LayerRange]
    """Module name → ranges; every other layer keeps its 16 or 32 bits."""
    smoothing: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Module name → what its input channels are divided by, float32 (channels,); see `smoothing`."""
    kept: tuple[str, ...] = ()
    """Layers that could be quantised and are not, because it shows too much."""
    granularity: Granularity = "channel"
    """Weight scales: one per output channel, or one in all, which is the faster kernel of `fp8` and loses little."""
    attention: bool = False
    """Whether attention between quantised layers takes 8 bits too; see `quant.attention`."""


def write_plan(plan: QuantPlan, file: Path) -> None:
    """Writes the plan as safetensors: ranges (layers, 4), smoothing per layer, names in the metadata."""
    ranges = [list(asdict(layer).values()) for layer in plan.layers.values()]
    tensors = {"ranges": torch.tensor(ranges, dtype=torch.float64).reshape(-1, 4)}
    tensors |= {_SMOOTHING + name: scale.float().cpu().contiguous() for name, scale in plan.smoothing.items()}
    about = {
        "version": PLAN_VERSION,
        "quantization": plan.quantization,
        "layers": list(plan.layers),
        "kept": list(plan.kept),
        "granularity": plan.granularity,
        "attention": plan.attention,
    }
    save_file(tensors, file, {"plan": json.dumps(about)})


def read_plan(file: Path) -> QuantPlan:
    """The inverse of `write_plan`.

    Raises:
        ModelError: it is damaged, or of another version.
    """
    try:
        with safe_open(file, "pt") as stored:
            about = json.loads(stored.metadata()["plan"])
            if about["version"] != PLAN_VERSION:
                raise ValueError(f"version {about['version']}")
            ranges = [LayerRange(*row) for row in stored.get_tensor("ranges").tolist()]
            names = [name for name in stored.keys() if name.startswith(_SMOOTHING)]  # noqa: SIM118 - no mapping
            smoothing = {name.removeprefix(_SMOOTHING): stored.get_tensor(name) for name in names}
        layers = dict(zip(about["layers"], ranges, strict=True))
    except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
        raise ModelError(
            f"the quantisation plan {file} cannot be read: {error}",
            f"what `dgate optimize` writes, version {PLAN_VERSION}",
            "run dgate optimize again",
        ) from error
    kept, attention = tuple(about["kept"]), about.get("attention", False)
    return QuantPlan(about["quantization"], layers, smoothing, kept, about["granularity"], attention)
