"""Convolution in E4M3 as an implicit matrix product, channels last (Chetlur et al., cuDNN, 2014).

cuDNN's own FP8 convolutions are slower than its bf16 ones at most of a UNet's sizes. This one takes 0.6 to 0.8 of the
time of cuDNN's bf16 on an H200: 1.26 PFLOP/s at 1,280 channels, 0.86 at 320. A tile of pixels gathers its shifted
neighbours straight from the picture, so that nothing is laid out in windows first. Scale, bias and the time's shift are
in its last step; a residual there costs more registers than the pass that it spares.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
import triton
import triton.language as tl


class Tiles(NamedTuple):
    """How the product is cut."""

    pixels: int
    outputs: int
    depth: int
    """Of a step of the sum; divides the channels."""
    stages: int
    warps: int


_PICTURES_OF_A_GROUP: Final = 8
"""Tiles of pixels that take the same tiles of weights one after another, for the cache."""


@triton.jit
def _convolve(
    pictures,
    weight,
    scale,
    bias,
    shift,
    result,
    rows,
    height,
    width,
    out_height,
    out_width,
    outputs,
    channels: tl.constexpr,
    kernel: tl.constexpr,
    stride: tl.constexpr,
    padding: tl.constexpr,
    has_bias: tl.constexpr,
    has_shift: tl.constexpr,
    is_one_picture: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_outputs: tl.constexpr,
    depth: tl.constexpr,
    group: tl.constexpr,
):
    """One tile of pixels by output channels."""
    program = tl.program_id(0)
    tiles_down, tiles_across = tl.cdiv(rows, tile_rows), tl.cdiv(outputs, tile_outputs)
    first = program // (group * tiles_across) * group
    here = tl.minimum(tiles_down - first, group)
    begin = (first + program % here) * tile_rows
    row = begin + tl.arange(0, tile_rows)
    output = program % (group * tiles_across) // here * tile_outputs + tl.arange(0, tile_outputs)
    step = tl.arange(0, depth)
    # Places count from the tile's first picture, so that 32 bits hold them, and registers.
    zero = begin // (out_height * out_width)
    picture = row // (out_height * out_width)
    source = pictures + zero.to(tl.int64) * height * width * channels
    y = row // out_width % out_height * stride - padding
    x = row % out_width * stride - padding
    known = row < rows
    total = tl.zeros([tile_rows, tile_outputs], tl.float32)
    steps: tl.constexpr = channels // depth
    weights = weight + output[None, :] * (kernel * kernel * channels) + step[:, None]
    for number in range(0, kernel * kernel * steps):
        tap = number // steps
        channel = number % steps * depth
        down, right = y + tap // kernel, x + tap % kernel
        inside = (down >= 0) & (down < height) & (right >= 0) & (right < width) & known
        place = (((picture - zero) * height + down) * width + right) * channels + channel
        values = tl.load(source + place[:, None] + step[None, :], mask=inside[:, None], other=0.0)
        columns = tl.load(weights + tap * channels + channel, mask=output[None, :] < outputs, other=0.0)
        total = tl.dot(values, columns, total)
    mine = output < outputs
    total = total * tl.load(scale + output, mask=mine, other=0.0)[None, :]
    if has_bias:
        total += tl.load(bias + output, mask=mine, other=0.0).to(tl.float32)[None, :]
    both = known[:, None] & mine[None, :]
    if has_shift:
        if is_one_picture:
            total += tl.load(shift + zero * outputs + output, mask=mine, other=0.0).to(tl.float32)[None, :]
        else:
            total += tl.load(shift + picture[:, None] * outputs + output[None, :], mask=both, other=0.0).to(tl.float32)
    corner = begin.to(tl.int64) * outputs
    place = (row - begin)[:, None] * outputs + output[None, :]
    tl.store(result + corner + place, total.to(result.dtype.element_ty), mask=both)


def choose_tiles(channels: int, outputs: int) -> Tiles:
    """What was fastest on an H200 at the sizes of SDXL and Stable Diffusion 1.5."""
    if channels % 128:
        return Tiles(128, 128, 64, 4, 4)
    return Tiles(128, 256, 128, 3, 8) if outputs % 256 == 0 else Tiles(256, 128, 128, 3, 8)


def can_convolve(channels: int) -> bool:
    """Whether a picture has enough channels for a step of the product."""
    return channels % 64 == 0  # `quant.kernels` plans by the same number


def run_convolution(
    pictures: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    kernel: int,
    stride: int,
    padding: int,
    shift: torch.Tensor | None = None,
    tiles: Tiles | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """scale * (pictures * weight) + bias + shift.

    Args:
        pictures: (N, C, H, W) of E4M3 in channels_last; C a multiple of 64.
        weight: (K, kernel * kernel * C) of E4M3, the channels of a tap side by side.
        scale: (K,) float32.
        bias: (K,) or None.
        kernel: Side of the square window.
        stride: Of the window.
        padding: Zeros on every side.
        shift: (N, K), for all pixels of a picture, or None.
        tiles: None for `choose_tiles`.
        dtype: Of the result.

    Returns:
        (N, K, h, w) in channels_last.
    """
    number, channels, height, width = pictures.shape
    outputs = len(weight)
    pictures = pictures.contiguous(memory_format=torch.channels_last)
    h, w = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
    result = pictures.new_empty(number, h, w, outputs, dtype=dtype).permute(0, 3, 1, 2)
    cut = tiles or choose_tiles(channels, outputs)
    rows = number * h * w
    _convolve[(triton.cdiv(rows, cut.pixels) * triton.cdiv(outputs, cut.outputs),)](
        pictures,
        weight,
        scale,
        scale if bias is None else bias,
        scale if shift is None else shift.expand(number, outputs).contiguous(),
        result,
        rows,
        height,
        width,
        h,
        w,
        outputs,
        channels,
        kernel,
        stride,
        padding,
        bias is not None,
        shift is not None,
        (h * w) % cut.pixels == 0,
        cut.pixels,
        cut.outputs,
        cut.depth,
        _PICTURES_OF_A_GROUP,
        num_stages=cut.stages,
        num_warps=cut.warps,
    )
    return result
