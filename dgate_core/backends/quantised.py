"""The quantised artefact that a profile asks for."""

from __future__ import annotations

from dgate_core.backends.contract import BackendRequest
from dgate_core.errors import BackendUnfitError
from dgate_core.models.families.latent import LatentModel
from dgate_core.quant.artefact import Artefact, find_artefact


def find_wanted_artefact(model: LatentModel, request: BackendRequest, backend: str) -> Artefact | None:
    """What is to compute; None where nothing quantised is asked for.

    Raises:
        BackendUnfitError: there is none that passed its gate.
    """
    if request.quantization is None:
        return None
    found = find_artefact(model.checkpoint.weights_hash, request.quantization, backend)
    if found is None:
        name = model.checkpoint.spec.name
        raise BackendUnfitError(
            f"there is no {request.quantization} of {name} for {backend}",
            "an artefact that passed its gate",
            f"run: dgate optimize {name}",
        )
    return found
