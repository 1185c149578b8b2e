"""Memory and utilisation of the GPUs: NVML where it is installed, else what torch knows, else nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU at one moment."""

    index: int
    """As the driver numbers them."""
    name: str
    """Of the product."""
    used_bytes: int
    """By all processes."""
    total_bytes: int
    """Of its memory."""
    utilisation: float | None = None
    """Share of the last moment in which a kernel ran, 0 to 1; None where nobody measures it."""


def read_gpus() -> Sequence[GpuReading]:
    """Every GPU that can be asked; empty without any, never zeros."""
    return _ask_nvml() if find_spec("pynvml") is not None else _ask_torch()


def _ask_nvml() -> Sequence[GpuReading]:
    pynvml: Any = import_module("pynvml")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []  # no driver: a machine without NVIDIA's GPUs
    try:
        return [_read_handle(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def _read_handle(pynvml: Any, index: int) -> GpuReading:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    try:
        utilisation = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
    except pynvml.NVMLError:
        utilisation = None  # slices of a GPU (MIG) have none
    name = pynvml.nvmlDeviceGetName(handle)
    return GpuReading(index, str(name), int(memory.used), int(memory.total), utilisation)


def _ask_torch() -> Sequence[GpuReading]:
    """Only where a model was loaded already: nobody imports torch to be told that there is no GPU."""
    if "torch" not in sys.modules:
        return []
    import torch

    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0):
        free, total = torch.cuda.mem_get_info(index)
        found.append(GpuReading(index, torch.cuda.get_device_name(index), total - free, total))
    return found
