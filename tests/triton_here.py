"""D-Gate's kernels without a GPU: Triton's interpreter, which conftest.py asks for, runs the same source on the CPU."""

from __future__ import annotations

import torch

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
