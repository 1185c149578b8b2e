"""Weights that no package carries, given as a file: Inception's final layer, and the SqueezeNet of LPIPS.

Nothing pins them but their shapes (and, for Inception, the network under the layer), so results carry their hash.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from dgate_core.evaluation.results import EvaluationError, MissingWeightsError
from dgate_core.evaluation.weights.catalog import find_spec
from dgate_core.evaluation.weights.fetch import drop_head, keep_weights
from dgate_core.evaluation.weights.store import Tensors, hash_tensors
from dgate_core.models.hashing import find_cache_folder
from dgate_core.registry import explain_unknown

INCEPTION_LOGITS: Final = "inception-logits"
LPIPS_SQUEEZE: Final = "lpips-squeeze"
GIVEN: Final[Mapping[str, str]] = {
    INCEPTION_LOGITS: "weights-inception-2015-12-05-6726825d.pth of torch-fidelity, or pt_inception-… of pytorch-fid, "
    "with the final layer, for the Inception score",
    LPIPS_SQUEEZE: "squeezenet1_1-b8a52dc0.pth of torchvision, for lpips:squeeze",
}
"""What can be imported, and the file that it is in."""
_LOGITS: Final = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
_SQUEEZE_STEM: Final = (64, 3, 3, 3)


def import_weights(name: str, file: Path) -> tuple[Path, str]:
    """Takes weights out of a file (safetensors, or torch's, of which tensors alone are loaded) into the cache.

    Returns:
        Where they are kept, and their hash.

    Raises:
        EvaluationError: unknown name, no such file, or it holds something else.
    """
    if name not in GIVEN:
        raise explain_unknown("weights to import", name, GIVEN, EvaluationError)
    tensors = _PICKERS[name](read_tensors(file), file)
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise EvaluationError(f"{file} holds numbers that are none", f"trained weights: {GIVEN[name]}")
    path = locate_given(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    _save(tensors, draft)
    draft.replace(path)
    return path, hash_tensors(tensors)


def locate_given(name: str) -> Path:
    """Where imported weights are, or would be."""
    return find_cache_folder() / "weights" / f"{name}.safetensors"


def load_given(name: str) -> dict[str, np.ndarray]:
    """Imported weights under torchvision's names; raises MissingWeightsError, which names the command."""
    path = locate_given(name)
    if not path.is_file():
        raise MissingWeightsError(
            f"the weights {name!r} are not on this machine, and no package carries them",
            GIVEN[name],
            f"run: dgate weights import {name} FILE",
        )
    return read_tensors(path)


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    """Tensors of a safetensors file, or of one of torch's without running anything that it says."""
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        if file.suffix == ".safetensors":
            return dict(load_file(file))
        state = torch.load(file, map_location="cpu", weights_only=True)
        return {key: value.float().numpy() for key, value in state.items()}
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, AttributeError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise EvaluationError(f"{file} cannot be read: {reason}", "tensors in a .safetensors or .pth file") from error


def _save(tensors: Tensors, path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)


def _pick_logits(tensors: Tensors, file: Path) -> dict[str, np.ndarray]:
    """The final layer, of FID's Inception only: the network under it must be the pinned one, which is kept too."""
    spec = find_spec("inception")
    network = drop_head(tensors)
    if hash_tensors(network) != spec.tensors_sha256:
        raise EvaluationError(f"{file} is not FID's Inception", f"tensors with sha256 {spec.tensors_sha256[:16]}…")
    found = {name: tensors[name] for name in _LOGITS if name in tensors}
    if {name: tensor.shape for name, tensor in found.items()} != _LOGITS:
        raise EvaluationError(f"{file} has no final layer", f"{_LOGITS}", f"give {GIVEN[INCEPTION_LOGITS]}")
    keep_weights(spec, network)
    return found


def _pick_squeeze(tensors: Tensors, file: Path) -> dict[str, np.ndarray]:
    found = {name: tensor for name, tensor in tensors.items() if name.startswith("features.")}
    stem = found.get("features.0.weight")
    if stem is None or stem.shape != _SQUEEZE_STEM or len(found) != 50:
        raise EvaluationError(f"{file} is no SqueezeNet 1.1", "torchvision's features, 50 tensors")
    return found


_PICKERS: Final[Mapping[str, Callable[[Tensors, Path], dict[str, np.ndarray]]]] = {
    INCEPTION_LOGITS: _pick_logits,
    LPIPS_SQUEEZE: _pick_squeeze,
}
