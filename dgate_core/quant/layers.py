"""Which layers of a denoiser may be quantised: a table per family, and what the 8-bit products ask of a layer."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Final, TypeGuard

import torch
from torch import nn

from dgate_core.errors import ModelError
from dgate_core.models.families.latent import LatentModel

Layer = nn.Linear | nn.Conv2d
ALIGNMENT: Final = 16
"""Both sides of an 8-bit product are multiples of this, as cuBLAS and TensorRT ask."""

SKIPPED: Final[Mapping[str, tuple[str, ...]]] = {
    "unet": (
        "conv_in",
        "conv_out",
        "time_embedding.*",
        "add_embedding.*",
        "*.time_emb_proj",
        "*.conv_shortcut",
    ),
    "dit": (
        "*embedder*",
        "*embed.*",
        "img_in",
        "txt_in",
        "caption_projection.*",
        "adaln_single.*",
        "*modulation*",
        "*norm*.linear",
        "*img_mod*",
        "*txt_mod*",
        "norm_out.*",
        "proj_out",
        "*final_layer*",
    ),
}
"""By family, patterns of module names that keep their bits: they are small, look at single values per picture, or write
what the sampler reads directly."""


def list_layers(model: LatentModel) -> dict[str, Layer]:
    """Layers that may be quantised, by their module names, in the denoiser's order."""
    patterns = SKIPPED[model.checkpoint.family]
    return {
        name: module
        for name, module in model.denoiser.named_modules()
        if is_layer(module) and is_aligned(module) and not any(fnmatchcase(name, each) for each in patterns)
    }


def is_layer(module: nn.Module) -> TypeGuard[Layer]:
    """Linear layers and plain convolutions, not those that other libraries derive from them."""
    if type(module) is nn.Linear:
        return True
    return type(module) is nn.Conv2d and module.groups == 1 and module.dilation == (1, 1) and _pads_zeros(module)


def is_aligned(layer: Layer) -> bool:
    """Whether both sides of its product are multiples of ALIGNMENT."""
    outputs, inputs = layer.weight.shape[0], layer.weight[0].numel()
    return outputs % ALIGNMENT == 0 and inputs % ALIGNMENT == 0


def channels_of(tensor: torch.Tensor, layer: Layer) -> torch.Tensor:
    """A layer's input as (values, channels)."""
    if isinstance(layer, nn.Conv2d):
        tensor = tensor.movedim(1, -1)
    return tensor.reshape(-1, tensor.shape[-1])


def replace_layer(denoiser: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Puts a module into the place of another, and returns the other.

    Raises:
        ModelError: there is no such place.
    """
    parent, _, last = name.rpartition(".")
    try:
        before = denoiser.get_submodule(name)
    except AttributeError as error:
        raise ModelError(
            f"{type(denoiser).__name__} has no layer {name}",
            "a plan that was made for this model",
            "run dgate optimize",
        ) from error
    setattr(denoiser.get_submodule(parent), last, module)
    return before


def _pads_zeros(conv: nn.Conv2d) -> bool:
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
