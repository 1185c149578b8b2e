"""Values times a factor in E4M3 (Micikevicius et al., FP8 Formats for Deep Learning, 2022), outside compiled blocks."""

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl

_BLOCK: Final = 4096


@triton.jit
def _round(
    values, factor, result, number, channels, has_factors: tl.constexpr, largest: tl.constexpr, block: tl.constexpr
):
    """A part of all values."""
    start = tl.program_id(0).to(tl.int64) * block
    place = start + tl.arange(0, block)
    inside = place < number
    value = tl.load(values + place, mask=inside, other=0.0).to(tl.float32)
    if has_factors:
        value = value * tl.load(factor + place % channels, mask=inside, other=0.0)
    else:
        value = value * tl.load(factor)
    value = tl.minimum(tl.maximum(value, -largest), largest)
    tl.store(result + place, value.to(result.dtype.element_ty), mask=inside)


def run_rounding(values: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """The nearest E4M3 of each product; what is out of range becomes the greatest.

    Args:
        values: (..., channels), any float dtype.
        factor: Float32, one or (channels,).

    Returns:
        The same shape, E4M3.
    """
    values = values.contiguous()
    kind = torch.float8_e4m3fn
    result = torch.empty_like(values, dtype=kind)
    _round[(triton.cdiv(values.numel(), _BLOCK),)](
        values,
        factor,
        result,
        values.numel(),
        values.shape[-1],
        factor.numel() > 1,
        torch.finfo(kind).max,
        _BLOCK,
        num_warps=8,
    )
    return result
