"""Which 8-bit products pay on a device: what is quantised is chosen by speed first, the gate judges it afterwards.

On CUDA linear layers take one weight scale, whose product needs no kernel for scales of rows, and convolutions a kernel
of D-Gate's, where they have channels enough for it; Flux's attention goes to cuDNN in 8 bits, where its frontend is
installed (reports/benchmarks/h200).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from torch import nn

from dgate_core.errors import UsageError
from dgate_core.kernels.attention import has_attention
from dgate_core.models.families.latent import LatentModel
from dgate_core.quant.calibration import Calibration
from dgate_core.quant.layers import Layer, list_layers
from dgate_core.quant.plan import Granularity, Quantization

STEP: Final = 64
"""Channels of a step of D-Gate's FP8 convolution."""
_BY_OUR_PRODUCTS: Final = frozenset({"compiled", "eager"})
"""Backends that compute by `product`'s modules; the others have convolutions of their own."""


@dataclass(frozen=True, slots=True)
class KernelOptions:
    """What a user may decide; None leaves it to `choose_kernels`."""

    linear_only: bool | None = None
    """Whether convolutions keep their 16 bits."""
    granularity: Granularity | None = None
    """Weight scales: one per output `channel`, or one in all (`tensor`, fp8 only)."""
    attention: bool | None = None
    """Whether attention takes 8 bits too (fp8 in Flux only)."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """What is quantised, and how finely."""

    linear_only: bool = False
    """Whether convolutions keep their 16 bits."""
    granularity: Granularity = "channel"
    """Of the linear weights' scales."""
    attention: bool = False
    """Whether attention takes 8 bits too, where the model's is known."""
    channel_step: int = 1
    """Convolutions whose input channels are no multiple of it keep their 16 bits."""


def choose_kernels(
    quantization: Quantization, backend: str, device: str, options: KernelOptions | None = None
) -> Kernels:
    """What is fastest there, unless the user says otherwise.

    Args:
        quantization: `int8`, `fp8` or `nf4`.
        backend: Name in BACKENDS.
        device: `cpu`, `cuda` or `mps`.
        options: What the user says.

    Raises:
        UsageError: 8-bit attention by a backend or in a format that has none.
    """
    options = options or KernelOptions()
    by_our_products = quantization == "fp8" and backend in _BY_OUR_PRODUCTS
    fastest = Kernels()
    if by_our_products and device == "cuda":
        fastest = Kernels(granularity="tensor", channel_step=STEP, attention=has_attention())
    if options.attention and not by_our_products:
        raise UsageError(
            f"8-bit attention with {quantization} by {backend}", "fp8 by compiled or eager", "leave attention out"
        )
    return replace(
        fastest,
        linear_only=fastest.linear_only if options.linear_only is None else options.linear_only,
        granularity=options.granularity or fastest.granularity,
        attention=fastest.attention if options.attention is None else options.attention,
    )


def narrow_calibration(calibration: Calibration, model: LatentModel, kernels: Kernels) -> Calibration:
    """The same without the layers that the kernels leave in 16 bit."""

    def takes(layer: Layer) -> bool:
        if isinstance(layer, nn.Linear):
            return True
        return not kernels.linear_only and layer.in_channels % kernels.channel_step == 0

    taken = {name for name, layer in list_layers(model).items() if takes(layer)}
    return replace(calibration, layers={name: seen for name, seen in calibration.layers.items() if name in taken})
