"""Where and with what a figure was measured."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from dgate_core.engine.precision import list_instructions

PACKAGES: Final = (
    "torch",
    "diffusers",
    "transformers",
    "triton",
    "accelerate",
    "nvidia-cudnn-frontend",
    "onnxruntime",
    "tensorrt_rtx",
    "torchao",
)


def describe_machine(device: str) -> dict[str, Any]:
    """Date, machine and versions, for a result's head."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "machine": {"system": platform.platform(), "cores": count_cores(), **_describe_compute(device)},
        "versions": {"python": platform.python_version(), **_list_packages()},
    }


def pick_device(wanted: str) -> str:
    """`auto` is the GPU where there is one."""
    if wanted != "auto":
        return wanted
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _describe_compute(device: str) -> dict[str, Any]:
    if device != "cuda":
        return {"instructions": list_instructions()}
    import torch

    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "gpu_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
    }


def _list_packages() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
