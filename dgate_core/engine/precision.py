"""Which dtype a device does fastest."""

from __future__ import annotations

import time
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from dgate_core.runs.spec import Precision

WORTHWHILE = 1.1
"""Sixteen bit must be this much faster on a CPU to be taken."""


def choose_precision(device: str) -> Precision:
    """bfloat16 on GPUs that have it (float16 elsewhere, and on MPS); on the CPU what measures faster."""
    import torch

    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if device == "mps":
        return "float16"
    return choose_cpu_precision()


@cache
def choose_cpu_precision() -> Precision:
    """Times a UNet-like block (convolution, group norm, linear) in both dtypes; takes about a tenth of a second."""
    import torch

    gain = _time_block(torch.float32) / _time_block(torch.bfloat16)
    return "bfloat16" if gain > WORTHWHILE else "float32"


def _time_block(dtype: torch.dtype) -> float:
    """Seconds of the fastest of a few passes."""
    import torch
    from torch import nn

    layers = nn.Sequential(
        nn.Conv2d(128, 128, 3, padding=1), nn.GroupNorm(32, 128), nn.SiLU(), nn.Conv2d(128, 128, 1)
    ).to(dtype)
    sample = torch.randn(8, 128, 16, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    times = []
    with torch.inference_mode():
        for _ in range(6):
            started = time.perf_counter()
            layers(sample)
            times.append(time.perf_counter() - started)
    return min(times)
