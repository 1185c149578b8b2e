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
