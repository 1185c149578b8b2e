"""Softmax over rows of float32 scores into the 16 bits of the product that follows."""

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl

MOST_KEYS: Final = 16384
"""A row lies in the registers of one program."""


@triton.jit
def _softmax_row(scores, weights, keys, factor, block: tl.constexpr):
    """One row; `factor` holds the scale of the scores and the step from powers of e to powers of two."""
    row = tl.program_id(0).to(tl.int64)
    key = tl.arange(0, block)
    inside = key < keys
    score = tl.load(scores + row * keys + key, mask=inside, other=float("-inf")) * factor
    weight = tl.exp2(score - tl.max(score))
    tl.store(weights + row * keys + key, (weight / tl.sum(weight)).to(weights.dtype.element_ty), mask=inside)


def run_softmax(scores: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
    """softmax(scale * scores) over the last dimension.

    Args:
        scores: (rows, keys) float32, contiguous; at most MOST_KEYS.
        scale: Above 0.
        dtype: Of the result.

    Returns:
        (rows, keys).
    """
    rows, keys = scores.shape
    weights = torch.empty_like(scores, dtype=dtype)
    block = triton.next_power_of_2(keys)
    warps = min(16, max(1, block // 512))
    _softmax_row[(rows,)](scores, weights, keys, scale * 1.4426950408889634, block, num_warps=warps)
    return weights
