"""Writes fetched weights as the files that pytorch-fid, torch-fidelity, torchmetrics and lpips find in TORCH_HOME."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch

from dgate_core.evaluation.weights.given import INCEPTION_LOGITS, load_given, locate_given
from dgate_core.evaluation.weights.store import load_weights

INCEPTION_FILES: Final = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
"""As pytorch-fid, and as torch-fidelity and torchmetrics call it."""
HOME_FILES: Final[Mapping[str, tuple[str, ...]]] = {
    "inception": INCEPTION_FILES,
    "lpips-alex": ("alexnet-owt-7be5be79.pth",),
    "lpips-vgg": ("vgg16-397923af.pth",),
}
_HEADS: Final[Mapping[str, Mapping[str, tuple[int, ...]]]] = {
    "inception": {"fc.weight": (1008, 2048), "fc.bias": (1008,)},
    "lpips-alex": {
        "classifier.1.weight": (4096, 9216),
        "classifier.1.bias": (4096,),
        "classifier.4.weight": (4096, 4096),
        "classifier.4.bias": (4096,),
        "classifier.6.weight": (1000, 4096),
        "classifier.6.bias": (1000,),
    },
    "lpips-vgg": {
        "classifier.0.weight": (4096, 25088),
        "classifier.0.bias": (4096,),
        "classifier.3.weight": (4096, 4096),
        "classifier.3.bias": (4096,),
        "classifier.6.weight": (1000, 4096),
        "classifier.6.bias": (1000,),
    },
}
"""Layers that the weights lack and that neither FID nor LPIPS reads, but that the libraries load."""


def write_torch_home(folder: Path, names: Sequence[str]) -> list[Path]:
    """Writes weights for use with `TORCH_HOME=folder`.

    Layers that are missing (and were not imported) are NaN: whoever reads them (an Inception score) gets no number
    rather than a wrong one.

    Args:
        folder: Made when it is not there.
        names: Fetched weights.

    Returns:
        The files, under `hub/checkpoints`.

    Raises:
        MissingWeightsError: not fetched.
    """
    checkpoints = folder / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    written = []
    for name in names:
        state = {key: torch.from_numpy(value) for key, value in load_weights(name).items()}
        head = {key: torch.tensor(torch.nan).expand(shape) for key, shape in _HEADS[name].items()}
        if name == "inception" and locate_given(INCEPTION_LOGITS).is_file():
            head = {key: torch.from_numpy(value) for key, value in load_given(INCEPTION_LOGITS).items()}
        for file in HOME_FILES[name]:
            torch.save({**state, **head}, checkpoints / file)
            written.append(checkpoints / file)
    return written
