"""Layer normalisation of a residual stream, in one pass (Ba, Kiros and Hinton, Layer Normalization, 2016).

Inductor walks over rows longer than 1,024 values twice, at half of what an H200's memory allows; here a row lies in a
program's registers, and a sum with the stream, or the scale of a product in E4M3, costs no further pass.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _normalise_row(
    values,
    stream,
    weight,
    bias,
    factor,
    total,
    normalised,
    channels,
    epsilon,
    has_stream: tl.constexpr,
    has_factors: tl.constexpr,
    largest: tl.constexpr,
    block: tl.constexpr,
):
    """One row: the sum with the stream, its normal form, and the scale of an 8-bit format where `largest` is not 0."""
    start = tl.program_id(0).to(tl.int64) * channels
    channel = tl.arange(0, block)
    inside = channel < channels
    value = tl.load(values + start + channel, mask=inside, other=0.0).to(tl.float32)
    if has_stream:
        value += tl.load(stream + start + channel, mask=inside, other=0.0).to(tl.float32)
        tl.store(total + start + channel, value.to(total.dtype.element_ty), mask=inside)
    mean = tl.sum(value) / channels
    centred = tl.where(inside, value - mean, 0.0)
    deviation = 1.0 / tl.sqrt(tl.sum(centred * centred) / channels + epsilon)
    gain = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    result = centred * deviation * gain + tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    if largest > 0:
        if has_factors:
            result = result * tl.load(factor + channel, mask=inside, other=0.0)
        else:
            result = result * tl.load(factor)
        result = tl.minimum(tl.maximum(result, -largest), largest)
    tl.store(normalised + start + channel, result.to(normalised.dtype.element_ty), mask=inside)


def run_layer_norm(
    values: torch.Tensor,
    stream: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    epsilon: float,
    factor: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds to the stream, and normalises.

    Args:
        values: (..., channels), any float dtype.
        stream: The same shape, or None.
        weight: (channels,).
        bias: (channels,).
        epsilon: Added to the variance.
        factor: Float32, one or (channels,): values are multiplied by it and written as E4M3; None keeps the dtype.

    Returns:
        values + stream (without a stream an empty tensor), and its normal form.
    """
    values = values.contiguous()
    channels = values.shape[-1]
    kind = values.dtype if factor is None else torch.float8_e4m3fn
    total = values.new_empty(0) if stream is None else torch.empty_like(values)
    normalised = torch.empty_like(values, dtype=kind)
    block = triton.next_power_of_2(channels)
    _normalise_row[(values.numel() // channels,)](
        values,
        values if stream is None else stream.contiguous(),
        weight,
        bias,
        weight if factor is None else factor,
        total if stream is not None else values,
        normalised,
        channels,
        epsilon,
        stream is not None,
        factor is not None and factor.numel() > 1,
        0.0 if factor is None else torch.finfo(kind).max,
        block,
        num_warps=1 if block <= 1024 else 4,
    )
    return total, normalised
