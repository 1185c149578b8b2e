"""Which 8-bit products pay on a device: what is quantised is chosen by speed first, the gate judges it afterwards.

On an H200 linear layers in FP8 by one weight scale gain (reports/benchmarks/h200). Convolutions in FP8 were not timed:
by windows they move nine times their bytes, so they stay in cuDNN's 16 bits until a figure says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from torch import nn

from dgate_core.models.families.latent import LatentModel
from dgate_core.quant.calibration import Calibration
from dgate_core.quant.layers import list_layers
from dgate_core.quant.plan import Granularity, Quantization

_BY_OUR_PRODUCTS: Final = frozenset({"compiled", "eager"})
"""Backends that compute by `product`'s modules; the others have convolutions of their own."""


@dataclass(frozen=True, slots=True)
class KernelOptions:
    """What a user may decide; None leaves it to `choose_kernels`."""

    linear_only: bool | None = None
    """Whether convolutions keep their 16 bits."""
    granularity: Granularity | None = None
    """Weight scales: one per output `channel`, or one in all (`tensor`, fp8 only)."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """What is quantised, and how finely."""

    linear_only: bool = False
    """Whether convolutions keep their 16 bits."""
    granularity: Granularity = "channel"
    """Of the weights' scales."""


def choose_kernels(
    quantization: Quantization, backend: str, device: str, options: KernelOptions | None = None
) -> Kernels:
    """What is fastest there, unless the user says otherwise.

    Args:
        quantization: `int8`, `fp8` or `nf4`.
        backend: Name in BACKENDS.
        device: `cpu`, `cuda` or `mps`.
        options: What the user says.
    """
    options = options or KernelOptions()
    is_fp8_on_cuda = (quantization, device) == ("fp8", "cuda") and backend in _BY_OUR_PRODUCTS
    fastest = Kernels(linear_only=True, granularity="tensor") if is_fp8_on_cuda else Kernels()
    return Kernels(
        fastest.linear_only if options.linear_only is None else options.linear_only,
        options.granularity or fastest.granularity,
    )


def narrow_calibration(calibration: Calibration, model: LatentModel, kernels: Kernels) -> Calibration:
    """The same without the layers that the kernels leave in 16 bit."""
    if not kernels.linear_only:
        return calibration
    linear = {name for name, layer in list_layers(model).items() if isinstance(layer, nn.Linear)}
    return replace(calibration, layers={name: seen for name, seen in calibration.layers.items() if name in linear})
