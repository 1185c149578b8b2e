"""Puts a plan into a model: the layers that it names give way to 8-bit ones, in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from dgate_core.errors import ModelError, UsageError
from dgate_core.models.families.latent import LatentModel
from dgate_core.quant.attention import quantise_attentions
from dgate_core.quant.calibration import Calibration
from dgate_core.quant.fp8 import ADA, Fp8Product, Fp8TensorProduct
from dgate_core.quant.int8 import Int8Product
from dgate_core.quant.layers import Layer, is_layer, replace_layer
from dgate_core.quant.plan import Granularity, Quantization, QuantPlan
from dgate_core.quant.product import QuantisedProduct, quantise_layer
from dgate_core.quant.smoothing import find_range

PRODUCTS: Final[Mapping[tuple[Quantization, Granularity], type[QuantisedProduct]]] = {
    ("int8", "channel"): Int8Product,
    ("fp8", "channel"): Fp8Product,
    ("fp8", "tensor"): Fp8TensorProduct,
}
"""By quantization and granularity of the weights."""


def make_plan(calibration: Calibration, quantization: Quantization, granularity: Granularity = "channel") -> QuantPlan:
    """Every layer that was seen, none tried alone: for measuring speed, where `plan_quantization` would take long."""
    layers = {name: find_range(seen) for name, seen in calibration.layers.items()}
    return QuantPlan(quantization, layers, granularity=granularity)


@torch.inference_mode()
def quantise_model(model: LatentModel, plan: QuantPlan) -> None:
    """Replaces the plan's layers by quantised ones; the 16-bit weights are freed. Compile after this, not before.

    Args:
        model: In 16 or 32 bit, on its device.
        plan: Made for these weights.

    Raises:
        ModelError: the plan names a layer that the model lacks, or the GPU has no E4M3.
        MissingExtraError: `nf4` without bitsandbytes, or 8-bit attention on CUDA without cuDNN's frontend.
    """
    if plan.quantization == "nf4":
        from dgate_core.quant.nf4 import quantise_to_nf4

        quantise_to_nf4(model, plan)
        return
    check_device(model.device, plan.quantization)
    kind = find_product(plan.quantization, plan.granularity)
    modules = dict(model.denoiser.named_modules())
    for name, limits in plan.layers.items():
        layer = find_layer(modules, name)
        replace_layer(model.denoiser, name, quantise_layer(layer, kind, limits, plan.smoothing.get(name)))
    if plan.attention:
        quantise_attentions(model.denoiser, plan, model.device)


def find_product(quantization: Quantization, granularity: Granularity) -> type[QuantisedProduct]:
    """Raises UsageError where there is no such product."""
    if (quantization, granularity) not in PRODUCTS:
        raise UsageError(
            f"{quantization} with one weight scale per {granularity}", "int8 and fp8 per channel, fp8 per tensor"
        )
    return PRODUCTS[quantization, granularity]


def find_layer(modules: Mapping[str, torch.nn.Module], name: str) -> Layer:
    """A layer that a plan names.

    Raises:
        ModelError: there is none, or it is of another kind.
    """
    module = modules.get(name)
    if module is None or not is_layer(module):
        found = "no such layer" if module is None else type(module).__name__
        raise ModelError(
            f"the plan names {name}, and the model has {found} there",
            "a plan that was made for this model, which is not quantised yet",
            "run dgate optimize for this model",
        )
    return module


def check_device(device: torch.device, quantization: str) -> None:
    """Raises ModelError for a GPU without the number format."""
    if quantization == "fp8" and device.type == "cuda" and torch.cuda.get_device_capability(device) < ADA:
        raise ModelError(
            f"{torch.cuda.get_device_name(device)} has no FP8 tensor cores",
            "compute capability 8.9 (Ada) or later",
            "take int8, or the profile fast",
        )
