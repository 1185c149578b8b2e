"""NF4 (Dettmers et al., QLoRA, 2023) by bitsandbytes: weights in 4 bits, for memory; it is not faster."""

from __future__ import annotations

import torch
from torch import nn

from dgate_core.errors import MissingExtraError
from dgate_core.models.families.latent import LatentModel
from dgate_core.quant.layers import replace_layer
from dgate_core.quant.plan import QuantPlan


def quantise_to_nf4(model: LatentModel, plan: QuantPlan) -> None:
    """Replaces the plan's linear layers, in place, one by one: 16 bits of one layer at a time are on the device.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
    """
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ModuleNotFoundError as error:
        raise MissingExtraError("bitsandbytes", "bitsandbytes") from error
    for name in plan.layers:
        linear = model.denoiser.get_submodule(name)
        if not isinstance(linear, nn.Linear):
            continue
        packed = Linear4bit(
            linear.in_features, linear.out_features, linear.bias is not None, linear.weight.dtype, quant_type="nf4"
        )
        packed.weight = Params4bit(linear.weight.detach().cpu(), requires_grad=False, quant_type="nf4")
        if linear.bias is not None:
            packed.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
        replace_layer(model.denoiser, name, packed.to(torch.device(model.device)))
    # What waited on the host comes after the layers; a part that is offloaded goes back until it is called.
    model.denoiser.to(model.device if model.memory.offload == "none" else "cpu")
