"""Which devices there are, asked without loading torch where that is possible."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache


@cache
def list_gpus() -> tuple[str, ...]:
    """Ids for CUDA_VISIBLE_DEVICES of the NVIDIA GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(part for part in visible.split(",") if part.strip() not in {"", "-1"})
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    asked = subprocess.run(
        [command, "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, timeout=30, check=False
    )
    return tuple(asked.stdout.split()) if asked.returncode == 0 else ()


def count_gpus() -> int:
    """How many GPUs there are."""
    return len(list_gpus())


def read_free_bytes(device: str) -> int:
    """Memory that is free on a device now: of the first visible GPU, or of the machine for everything else."""
    if device == "cuda":
        import torch

        free: int = torch.cuda.mem_get_info()[0]
        # What the allocator keeps for the next tensors, less what batches were seen to need of it.
        return free + max(0, torch.cuda.memory_reserved() - torch.cuda.max_memory_allocated())
    import psutil

    return int(psutil.virtual_memory().available)


def read_total_bytes(device: str) -> int:
    """All memory of a device: of the first visible GPU, or of the machine for everything else."""
    if device == "cuda":
        import torch

        total: int = torch.cuda.get_device_properties(0).total_memory
        return total
    import psutil

    return int(psutil.virtual_memory().total)
