"""A UNet's and a decoder's blocks with D-Gate's kernels in the place of PyTorch's, for the compiled backend on CUDA.

A block keeps its layers and their names; only its class changes, to one whose forward computes the same by fewer
passes over memory. What has an option that such a forward does not know stays as diffusers has it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_blocks import CrossAttnUpBlock2D, UpBlock2D
from torch import nn

from dgate_core.errors import ModelError
from dgate_core.quant.fp8 import Fp8Product
from dgate_core.quant.product import QuantisedConv2d, QuantisedLinear

Words = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of a text, (N, tokens, channels) each."""


class FusedNorm(nn.GroupNorm):
    """Group normalisation followed by SiLU, for an output layer whose own activation becomes nothing."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) → the same shape."""
        return normalise_groups(self, pictures, silu=True)


class FusedResnet(ResnetBlock2D):
    """SiLU inside the normalisation, which writes what the convolution takes."""

    def forward(self, input_tensor: torch.Tensor, temb: torch.Tensor | None = None, *_: Any, **__: Any) -> torch.Tensor:
        """See `ResnetBlock2D`."""
        shift = None
        if temb is not None:
            if self.time_emb_proj is None:
                return super().forward(input_tensor, temb)
            shift = self.time_emb_proj(temb if self.skip_time_act else self.nonlinearity(temb))
        hidden = normalise_groups(self.norm1, input_tensor, silu=True, into=self.conv1)
        hidden = convolve(self.conv1, hidden, input_tensor.dtype, shift)
        hidden = normalise_groups(self.norm2, hidden, silu=True, into=self.conv2)
        residual = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        return residual + convolve(self.conv2, hidden, input_tensor.dtype)


class FusedBlock(BasicTransformerBlock):
    """Sums with the stream inside the normalisation, which writes what the next product takes."""

    shares_input = False
    """Whether query, key and value take the same numbers of 8 bits."""

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | Words | None = None, **given: Any
    ) -> torch.Tensor:
        """See `BasicTransformerBlock`; the text may come as its keys and values."""
        assert not any(value is not None for value in given.values()), given.keys()
        stream, dtype = hidden_states, hidden_states.dtype
        _, normal = normalise_rows(self.norm1, stream, into=self.attn1.to_q if self.shares_input else None)
        added = attend(self.attn1, normal, None, dtype)
        if self.attn2 is not None:
            words = encoder_hidden_states
            words = words if isinstance(words, tuple) else read_words(self.attn2, words)
            into = None if words is None else self.attn2.to_q
            stream, normal = normalise_rows(self.norm2, added, stream, into=into)
            added = attend(self.attn2, normal, words, dtype)
        stream, normal = normalise_rows(self.norm3, added, stream, into=self.ff.net[0].proj)
        return feed_forward(self.ff.net, normal, dtype) + stream


class FusedTransformer(Transformer2DModel):
    """Pictures stay channels last, and a text's keys and values are computed once for all steps of a batch."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        return_dict: bool = True,
        **given: Any,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """See `Transformer2DModel`."""
        self._check(given)
        height, width = hidden_states.shape[2:]
        tokens = enter(self.norm, self.proj_in, hidden_states)
        for block, words in zip(self.transformer_blocks, self._read(encoder_hidden_states), strict=True):
            tokens = block(tokens, encoder_hidden_states=words)
        pictures = leave(self.proj_out, tokens.unflatten(1, (height, width)), hidden_states)
        return Transformer2DModelOutput(sample=pictures) if return_dict else (pictures,)

    def _check(self, given: Mapping[str, Any]) -> None:
        """What came after the kernels were put in would be left out of the pictures without a word."""
        strange = [name for name, value in given.items() if value is not None]
        attentions = [each for block in self.transformer_blocks for each in (block.attn1, block.attn2)]
        strange += {type(each.processor).__name__ for each in attentions if each is not None} - {_PLAIN}
        if strange:
            raise _refuse(", ".join(strange))

    def _read(self, text: torch.Tensor | None) -> list[Words | None]:
        if text is None:
            return [None] * len(self.transformer_blocks)
        known = self.__dict__.get("_known_text")
        if known is None or known() is not text:
            here, attentions = weakref.ref(self), [block.attn2 for block in self.transformer_blocks]
            self.__dict__["_words"] = [None if each is None else read_words(each, text) for each in attentions]
            self.__dict__["_known_text"] = weakref.ref(text, lambda _: _forget(here))
        return self.__dict__["_words"]


def _forget(transformer: weakref.ref[FusedTransformer]) -> None:
    """The text is gone, and with it what it was good for; a batch's words are hundreds of megabytes."""
    if (here := transformer()) is not None:
        here.__dict__.pop("_words", None)
        here.__dict__.pop("_known_text", None)


class FusedUp(UpBlock2D):
    """Joins the stream and what was skipped by one pass."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        res_hidden_states_tuple: tuple[torch.Tensor, ...],
        temb: torch.Tensor | None = None,
        upsample_size: int | None = None,
    ) -> torch.Tensor:
        """See `UpBlock2D`."""
        _check_is_not_freed(self)
        for resnet, skipped in zip(self.resnets, reversed(res_hidden_states_tuple), strict=True):
            hidden_states = resnet(torch.ops.dgate.joining(hidden_states, skipped), temb)
        for upsampler in self.upsamplers or ():
            hidden_states = upsampler(hidden_states, upsample_size)
        return hidden_states


class FusedCrossUp(CrossAttnUpBlock2D):
    """The same with attention to the text."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        res_hidden_states_tuple: tuple[torch.Tensor, ...],
        temb: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        upsample_size: int | None = None,
        **given: Any,
    ) -> torch.Tensor:
        """See `CrossAttnUpBlock2D`."""
        _check_is_not_freed(self)
        skips = reversed(res_hidden_states_tuple)
        for resnet, attention, skipped in zip(self.resnets, self.attentions, skips, strict=True):
            hidden_states = resnet(torch.ops.dgate.joining(hidden_states, skipped), temb)
            hidden_states = attention(hidden_states, encoder_hidden_states, return_dict=False, **given)[0]
        for upsampler in self.upsamplers or ():
            hidden_states = upsampler(hidden_states, upsample_size)
        return hidden_states


class WideAttention:
    """A decoder's attention with one wide head, for which PyTorch has no kernel of Hopper's.

    Two products and a softmax, by parts of the queries, with scores in float32 as PyTorch's own are.
    """

    def __init__(self, plain: Any) -> None:
        self.plain = plain

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `AttnProcessor2_0`."""
        given = (encoder_hidden_states, attention_mask, temb)
        tokens = hidden_states.shape[2] * hidden_states.shape[3]
        if any(each is not None for each in given) or not self.fits(hidden_states.dtype, tokens):
            found: torch.Tensor = self.plain(attn, hidden_states, *given)
            return found
        normal = normalise_groups(attn.group_norm, hidden_states, silu=False).permute(0, 2, 3, 1).flatten(1, 2)
        query, key, value = attn.to_q(normal), attn.to_k(normal), attn.to_v(normal)
        rows = torch.empty_like(query)
        for number in range(len(rows)):
            for start in range(0, tokens, _QUERIES_AT_ONCE):
                part = slice(start, start + _QUERIES_AT_ONCE)
                scores = torch.mm(query[number, part], key[number].t(), out_dtype=torch.float32)
                weights = torch.ops.dgate.softmax(scores, query.shape[-1] ** -0.5, rows.dtype)
                torch.mm(weights, value[number], out=rows[number, part])
        pictures = attn.to_out[0](rows).unflatten(1, hidden_states.shape[2:]).permute(0, 3, 1, 2)
        return pictures + hidden_states

    @staticmethod
    def fits(dtype: torch.dtype, tokens: int) -> bool:
        """Whether the products are in 16 bit and a row of scores has a program's size."""
        from dgate_core.kernels.softmax import MOST_KEYS

        return dtype in (torch.bfloat16, torch.float16) and tokens <= MOST_KEYS


_QUERIES_AT_ONCE: Final = 4096
"""Rows of scores that lie in memory at once; 256 MiB at a picture of 1,024 pixels."""
_WIDEST: Final = 256
"""Width of a head that PyTorch's own kernels are made for."""
_FUSED: Final[Mapping[type, type]] = {
    ResnetBlock2D: FusedResnet,
    BasicTransformerBlock: FusedBlock,
    Transformer2DModel: FusedTransformer,
    UpBlock2D: FusedUp,
    CrossAttnUpBlock2D: FusedCrossUp,
}

_UPS: Final = (UpBlock2D, CrossAttnUpBlock2D)


_PLAIN: Final = AttnProcessor2_0.__name__
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
    module.__dict__["joins_by_kernel"] = True
    norm, act = getattr(module, "conv_norm_out", None), getattr(module, "conv_act", None)
    if type(norm) is nn.GroupNorm and isinstance(act, nn.SiLU):
        norm.__class__ = FusedNorm
        module.conv_act = nn.Identity()


def unfuse(module: nn.Module) -> None:
    """The inverse of `fuse`."""
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
        if (type(each) is ResnetBlock2D and _is_plain_resnet(each)) or (type(each) in _UPS and not _is_freed(each)):
            yield each
        elif type(each) is Transformer2DModel and _is_plain_transformer(each):
            yield each
            yield from cast("nn.ModuleList", each.transformer_blocks)


def _share_input(*layers: nn.Module) -> bool:
    """Whether layers that see the same values quantise them alike; sensitivity may have kept one in 16 bit."""
    first, *others = (find_factor(layer) for layer in layers)
    return first is not None and all(other is not None and torch.equal(first, other) for other in others)


def _is_freed(block: nn.Module) -> bool:
    """Whether FreeU is on, which weighs what is joined."""
    return any(getattr(block, name, None) for name in ("s1", "s2", "b1", "b2"))


def _check_is_not_freed(block: nn.Module) -> None:
    if _is_freed(block):
        raise _refuse("FreeU")


def _refuse(what: str) -> ModelError:
    return ModelError(
        f"{what} in a UNet whose blocks D-Gate's kernels compute",
        "what is known when the backend is prepared",
        "load adapters before the model is served, or take the profile exact",
    )


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


def normalise_groups(
    norm: nn.GroupNorm, pictures: torch.Tensor, *, silu: bool, into: nn.Module | None = None
) -> torch.Tensor:
    """Group normalisation; in E4M3 where a layer takes it.

    Args:
        norm: With weight and bias.
        pictures: (N, C, H, W).
        silu: Whether SiLU follows.
        into: What takes the result.
    """
    factor = find_factor(into)
    scale = factor if factor is not None and factor.numel() == 1 else None
    found: torch.Tensor = torch.ops.dgate.group_norm(
        pictures, norm.weight, norm.bias, norm.num_groups, norm.eps, silu, scale
    )
    return found


def normalise_rows(
    norm: nn.LayerNorm, values: torch.Tensor, stream: torch.Tensor | None = None, *, into: nn.Module | None
) -> Words:
    """values + stream, and its layer normalisation, in E4M3 where a layer takes it."""
    factor = find_factor(into)
    found: Words = torch.ops.dgate.layer_norm(values, stream, norm.weight, norm.bias, norm.eps, factor)
    return found


def find_factor(layer: Any) -> torch.Tensor | None:
    """What a layer's input is multiplied by on its way to E4M3; None where it takes 16 bits."""
    if isinstance(layer, QuantisedLinear | QuantisedConv2d) and isinstance(layer.product, Fp8Product):
        return layer.product.input_factor
    return None


def convolve(
    conv: nn.Module, pictures: torch.Tensor, dtype: torch.dtype, shift: torch.Tensor | None = None
) -> torch.Tensor:
    """conv(pictures) + shift.

    Args:
        conv: In 16 bit, or quantised; then the pictures may be too.
        pictures: (N, C, H, W).
        dtype: Of the result.
        shift: (N, outputs), for all pixels of a picture.
    """
    if isinstance(conv, QuantisedConv2d) and pictures.dtype == conv.product.storage:
        return conv.convolve(pictures, shift, dtype)
    result: torch.Tensor = conv(pictures)
    return result if shift is None else result + shift[:, :, None, None]


def project(layer: nn.Module, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A linear layer, or a convolution of one pixel, over rows.

    Args:
        layer: In 16 bit, or quantised; then the values may be too.
        values: (..., inputs).
        dtype: Of the result.
    """
    if isinstance(layer, QuantisedLinear | QuantisedConv2d):
        rows = values.reshape(-1, values.shape[-1])
        rows = rows if rows.dtype == layer.product.storage else layer.product.quantise(rows)
        return layer.product.multiply(rows, dtype).reshape(*values.shape[:-1], -1)
    if isinstance(layer, nn.Conv2d):
        return nn.functional.linear(values, layer.weight.flatten(1), layer.bias)
    found: torch.Tensor = layer(values)
    return found


def read_words(attention: Attention, text: torch.Tensor | None) -> Words | None:
    """A text's keys and values."""
    return None if text is None else (attention.to_k(text), attention.to_v(text))


def attend(attention: Attention, values: torch.Tensor, words: Words | None, dtype: torch.dtype) -> torch.Tensor:
    """Attention to the values themselves, or to a text's keys and values.

    Args:
        attention: A plain one.
        values: (N, queries, channels), normalised, in 16 bit or E4M3.
        words: None for self-attention.
        dtype: Of the result.
    """
    query = project(attention.to_q, values, dtype)
    key, value = words or (project(attention.to_k, values, dtype), project(attention.to_v, values, dtype))
    heads = [each.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for each in (query, key, value)]
    found = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    return project(attention.to_out[0], found, dtype)


def feed_forward(layers: nn.ModuleList, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Product, gate, product.

    Args:
        layers: GEGLU, dropout, linear.
        values: (N, rows, channels), normalised, in 16 bit or E4M3.
        dtype: Of the result.
    """
    into, out = cast("Any", layers[0]).proj, layers[2]
    return project(out, torch.ops.dgate.gate(project(into, values, dtype), find_factor(out)), dtype)


def enter(norm: nn.GroupNorm, layer: nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) → rows of pixels (N, H * W, channels)."""
    normal = normalise_groups(norm, pictures, silu=False, into=layer)
    return project(layer, normal.permute(0, 2, 3, 1).flatten(1, 2), pictures.dtype)


def leave(layer: nn.Module, rows: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """Rows of pixels (N, H, W, channels) → pictures in channels_last, added to the residual."""
    factor = find_factor(layer)
    taken = rows if factor is None else torch.ops.dgate.rounding(rows, factor)
    return project(layer, taken, residual.dtype).permute(0, 3, 1, 2) + residual
