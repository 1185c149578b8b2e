"""A UNet's and a decoder's blocks with D-Gate's kernels in the place of PyTorch's, for the compiled backend on CUDA.

A block keeps its layers and their names; only its class changes, to one whose forward computes the same by fewer
passes over memory. What has an option that such a forward does not know stays as diffusers has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_blocks import CrossAttnDownBlock2D, CrossAttnUpBlock2D, UpBlock2D
from torch import nn

from dgate_core.backends.fused_blocks import (
    FusedBlock,
    FusedCrossDown,
    FusedCrossUp,
    FusedNorm,
    FusedResnet,
    FusedTransformer,
    FusedUp,
    WideAttention,
    is_freed,
)
from dgate_core.backends.fused_steps import find_factor
from dgate_core.quant.product import QuantisedConv2d, QuantisedLinear

_WIDEST: Final = 256
"""Width of a head that PyTorch's own kernels are made for."""
_FUSED: Final[Mapping[type, type]] = {
    ResnetBlock2D: FusedResnet,
    BasicTransformerBlock: FusedBlock,
    Transformer2DModel: FusedTransformer,
    UpBlock2D: FusedUp,
    CrossAttnUpBlock2D: FusedCrossUp,
    CrossAttnDownBlock2D: FusedCrossDown,
}

_UPS: Final = (UpBlock2D, CrossAttnUpBlock2D)
LEAST_CHANNELS: Final = 512
"""A narrower network waits for its launches, which these kernels have more of, and not for memory."""


def fuse(module: nn.Module, least_channels: int = LEAST_CHANNELS) -> None:
    """Gives the blocks of a UNet or a decoder their fused classes, where their options allow.

    Args:
        module: On CUDA.
        least_channels: A module whose widest normalisation has fewer stays as it is.
    """
    widest = max((each.num_channels for each in module.modules() if isinstance(each, nn.GroupNorm)), default=0)
    if widest < least_channels:
        return
    from dgate_core.kernels import ops  # noqa: F401 - defines torch.ops.dgate

    for each in list(list_fusible(module)):
        each.__class__ = cast("type[nn.Module]", _FUSED[type(each)])
        if isinstance(each, FusedBlock):
            each.shares_input = _share_input(each.attn1.to_q, each.attn1.to_k, each.attn1.to_v)
    for each in module.modules():
        if isinstance(each, Attention) and _is_wide(each):
            each.set_processor(WideAttention(each.processor))
    if _begins_with_text(module):
        cast("Any", module.down_blocks)[0].__class__ = FusedCrossDown
    module.__dict__["joins_by_kernel"] = True
    norm, act = getattr(module, "conv_norm_out", None), getattr(module, "conv_act", None)
    if type(norm) is nn.GroupNorm and isinstance(act, nn.SiLU):
        norm.__class__ = FusedNorm
        module.conv_act = nn.Identity()


def share_halves(unet: Any, are_pairs: bool) -> None:
    """Says whether the second half of the samples to come repeats the first but for its text, as under guidance.

    A UNet whose first level reads the text computes what is before it once for both halves; others take no notice.
    """
    first = next(iter(getattr(unet, "down_blocks", ())), None)
    if isinstance(first, FusedCrossDown):
        first.halves_alike = are_pairs


def unfuse(module: nn.Module) -> None:
    """The inverse of `fuse`."""
    share_halves(module, False)
    module.__dict__.pop("joins_by_kernel", None)
    for each in module.modules():
        if isinstance(each, Attention) and isinstance(each.processor, WideAttention):
            each.set_processor(each.processor.plain)
    plain = {fused: name for name, fused in _FUSED.items()}
    for each in module.modules():
        if type(each) in plain:
            each.__class__ = plain[type(each)]
            if isinstance(each, Transformer2DModel):
                each.__dict__.pop("_words", None)
                each.__dict__.pop("_known_text", None)
    if type(getattr(module, "conv_norm_out", None)) is FusedNorm:
        module.conv_norm_out.__class__ = nn.GroupNorm
        module.conv_act = nn.SiLU()


def list_fusible(module: nn.Module) -> Iterator[nn.Module]:
    """Blocks whose options the fused classes know. A transformer is one only with all its blocks."""
    for each in list(module.modules()):
        if (type(each) is ResnetBlock2D and _is_plain_resnet(each)) or (type(each) in _UPS and not is_freed(each)):
            yield each
        elif type(each) is Transformer2DModel and _is_plain_transformer(each):
            yield each
            yield from cast("nn.ModuleList", each.transformer_blocks)


def _begins_with_text(unet: Any) -> bool:
    """Whether a UNet's first level reads the text, and nothing that differs between the texts comes before it."""
    first: Any = next(iter(getattr(unet, "down_blocks", ())), None)
    if type(first) is not CrossAttnDownBlock2D:
        return False
    attention = first.attentions[0]
    named = ("addition_embed_type", "class_embed_type", "time_cond_proj_dim", "encoder_hid_dim_type")
    return (
        type(first.resnets[0]) is FusedResnet
        and type(attention) is FusedTransformer
        and attention.transformer_blocks[0].attn2 is not None
        and all(unet.config.get(name) is None for name in named)
    )


def _share_input(*layers: nn.Module) -> bool:
    """Whether layers that see the same values quantise them alike; sensitivity may have kept one in 16 bit."""
    first, *others = (find_factor(layer) for layer in layers)
    return first is not None and all(other is not None and torch.equal(first, other) for other in others)


def _is_plain_resnet(block: ResnetBlock2D) -> bool:
    return (
        (block.time_embedding_norm == "default" or block.time_emb_proj is None)
        and block.upsample is None
        and block.downsample is None
        and isinstance(block.nonlinearity, nn.SiLU)
        and block.output_scale_factor == 1
        and all(type(norm) is nn.GroupNorm and norm.affine for norm in (block.norm1, block.norm2))
    )


def _is_plain_transformer(transformer: Transformer2DModel) -> bool:
    return (
        transformer.is_input_continuous
        and type(transformer.norm) is nn.GroupNorm
        and _is_pointwise(transformer.proj_in)
        and _is_pointwise(transformer.proj_out)
        and all(_is_plain_block(block) for block in transformer.transformer_blocks)
    )


def _is_pointwise(layer: nn.Module) -> bool:
    if isinstance(layer, QuantisedConv2d):
        return layer.kernel == (1, 1)
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size == (1, 1)
    return isinstance(layer, nn.Linear | QuantisedLinear)


def _is_plain_block(block: Any) -> bool:
    attentions = [each for each in (block.attn1, block.attn2) if each is not None]
    return (
        type(block) is BasicTransformerBlock
        and block.norm_type == "layer_norm"
        and block.pos_embed is None
        and not block.only_cross_attention
        and block.attn1.is_cross_attention is False
        and not hasattr(block, "fuser")
        and type(block.ff.net[0]).__name__ == "GEGLU"
        and all(_is_plain_attention(each) for each in attentions)
        and all(norm is None or _has_affine(norm) for norm in (block.norm1, block.norm2, block.norm3))
    )


def _has_affine(norm: nn.Module) -> bool:
    return type(norm) is nn.LayerNorm and norm.weight is not None and norm.bias is not None


def _is_plain_attention(attention: Attention) -> bool:
    return (
        type(attention.processor) is AttnProcessor2_0
        and attention.norm_q is None
        and attention.norm_k is None
        and attention.group_norm is None
        and attention.spatial_norm is None
        and not attention.norm_cross
        and not attention.residual_connection
        and attention.rescale_output_factor == 1
    )


def _is_wide(attention: Attention) -> bool:
    return (
        type(attention.processor) is AttnProcessor2_0
        and attention.heads == 1
        and isinstance(attention.to_q, nn.Linear)
        and attention.to_q.out_features > _WIDEST
        and attention.group_norm is not None
        and attention.spatial_norm is None
        and attention.norm_q is None
        and attention.norm_k is None
        and attention.residual_connection
        and attention.rescale_output_factor == 1
    )
