"""How networks are computed here: in true fp32, with the time of each stage taken.

Torch is imported by the first computation: features that are all cached need none.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def compute_in_fp32() -> Iterator[None]:
    """True fp32: on a GPU, convolutions would round their inputs to TF32 by default, which moves FID."""
    import torch

    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


class StageClock(defaultdict[str, float]):
    """Seconds by stage."""

    def __init__(self) -> None:
        super().__init__(float)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Adds the time of the body to a stage."""
        started = time.perf_counter()
        yield
        self[stage] += time.perf_counter() - started
