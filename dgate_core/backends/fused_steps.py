"""What a fused block is put together from: layers in 16 bit or E4M3, and D-Gate's kernels between them."""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from dgate_core.quant.fp8 import Fp8Product
from dgate_core.quant.product import QuantisedConv2d, QuantisedLinear

Words = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of a text, (N, tokens, channels) each."""


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
