"""Which dtype a device does fastest."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch

    from dgate_core.runs.spec import Precision

WORTHWHILE = 1.1
"""Sixteen bit must be this much faster on a CPU to be taken."""
_PASSES: Final = 12
_INSTRUCTIONS: Final = frozenset(
    {"amx_bf16", "amx_int8", "avx2", "avx512_bf16", "avx512_vnni", "avx_vnni", "asimddp", "bf16", "i8mm", "sve"}
)


def choose_precision(device: str) -> Precision:
    """bfloat16 on GPUs that have it (float16 elsewhere, and on MPS); on the CPU what is faster."""
    import torch

    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if device == "mps":
        return "float16"
    return choose_cpu_precision()


@cache
def choose_cpu_precision() -> Precision:
    """bfloat16 where the processor has matrix instructions for it, else by the clock.

    The same command must choose the same every time, whatever else the machine is doing: a processor with AMX is not
    timed (its bf16 is three times as fast), others pass by pass in turns, a UNet-like block in both dtypes.
    """
    import torch

    if "amx_bf16" in list_instructions():
        return "bfloat16"
    gain = _time_blocks(torch.float32, torch.bfloat16)
    return "bfloat16" if gain > WORTHWHILE else "float32"


def list_instructions(file: Path = Path("/proc/cpuinfo")) -> list[str]:
    """The processor's own that decide how fast 8 and 16 bits are; empty where Linux does not tell."""
    words = file.read_text(encoding="utf-8").split() if file.is_file() else []
    return sorted(_INSTRUCTIONS & set(words))


def _time_blocks(first: torch.dtype, second: torch.dtype) -> float:
    """How often the second goes into the first: the fastest pass of each."""
    import torch
    from torch import nn

    layers = nn.Sequential(nn.Conv2d(128, 128, 3, padding=1), nn.GroupNorm(32, 128), nn.SiLU(), nn.Conv2d(128, 128, 1))
    sample = torch.randn(8, 128, 16, 16, generator=torch.Generator().manual_seed(0))
    times: dict[torch.dtype, list[float]] = {first: [], second: []}
    with torch.inference_mode():
        for _ in range(_PASSES):
            for dtype, seconds in times.items():
                block, given = layers.to(dtype), sample.to(dtype)
                started = time.perf_counter()
                block(given)
                seconds.append(time.perf_counter() - started)
    return min(times[first]) / min(times[second])
