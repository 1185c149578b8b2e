"""Fetched weights on this machine: safetensors in the cache, checked by their tensors' hash whenever they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dgate_core.evaluation.results import EvaluationError, MissingWeightsError
from dgate_core.evaluation.weights.catalog import find_spec
from dgate_core.models.hashing import find_cache_folder

Tensors = Mapping[str, np.ndarray]


def locate_weights(name: str) -> Path:
    """Where the weights of this name are, or would be."""
    return find_cache_folder() / "weights" / f"{find_spec(name).name}.safetensors"


def has_weights(name: str) -> bool:
    """Whether the weights of this name are on this machine."""
    return locate_weights(name).is_file()


def check_weights(name: str) -> Path:
    """Where the weights of this name are; raises MissingWeightsError, which names the command, when they are not."""
    spec, path = find_spec(name), locate_weights(name)
    if not path.is_file():
        raise MissingWeightsError(
            f"the weights {name!r} are not on this machine",
            f"{path} ({spec.purpose})",
            f"run: dgate weights fetch {name}   ({spec.megabytes} MB)",
        )
    return path


def load_weights(name: str) -> dict[str, np.ndarray]:
    """The tensors of fetched weights, under the names of torch-fidelity (Inception) or torchvision (LPIPS).

    Raises:
        MissingWeightsError: not fetched; names the command.
        EvaluationError: the file is not what was fetched.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = check_weights(name)
    try:
        tensors: dict[str, np.ndarray] = load_file(path)
    except SafetensorError as error:
        raise _explain_damage(name, path, str(error)) from error
    if (found := hash_tensors(tensors)) != find_spec(name).tensors_sha256:
        raise _explain_damage(name, path, f"its tensors have sha256 {found[:16]}…")
    return tensors


def hash_tensors(tensors: Tensors) -> str:
    """sha256 (hex) over names, dtypes, shapes and bytes in the order of the names, whatever file holds them."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        digest.update(f"{name}\0{tensor.dtype.str}\0{tensor.shape}\0".encode())
        digest.update(tensor.data)
    return digest.hexdigest()


def _explain_damage(name: str, path: Path, problem: str) -> EvaluationError:
    return EvaluationError(
        f"{path} is damaged: {problem}",
        f"tensors with sha256 {find_spec(name).tensors_sha256[:16]}…",
        f"run: dgate weights fetch {name} --again",
    )
