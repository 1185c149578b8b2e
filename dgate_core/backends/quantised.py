"""The quantised artefact that a profile asks for."""

from __future__ import annotations

from dgate_core.backends.contract import BackendRequest
from dgate_core.errors import BackendUnfitError
from dgate_core.models.families.latent import LatentModel
from dgate_core.models.profiles import PROFILES, find_profile
from dgate_core.quant.artefact import Artefact, find_artefact, list_artefacts


def find_wanted_artefact(model: LatentModel, request: BackendRequest, backend: str) -> Artefact | None:
    """What is to compute; None where nothing quantised is asked for.

    Raises:
        BackendUnfitError: there is none that passed its gate.
    """
    if request.quantization is None:
        return None
    weights = model.checkpoint.weights_hash
    found = find_artefact(weights, request.quantization, backend)
    if found is None:
        raise _explain_absence(model.checkpoint.spec.name, weights, request, backend)
    return found


def _explain_absence(model: str, weights: str, request: BackendRequest, backend: str) -> BackendUnfitError:
    """Says whether there is none, or none that passed."""
    kind = (request.quantization, backend)
    failed = [each for each in list_artefacts(weights) if (each.quantization, each.backend) == kind]
    ends = {"fail": "did not pass its gate", "undecided": "its gate could not decide"}
    why = f", and {failed[0].name}: {ends.get(failed[0].decision, 'no gate has judged it yet')}" if failed else ""
    profile = next((name for name in PROFILES if find_profile(name, request.device).quantization == kind[0]), "turbo")
    return BackendUnfitError(
        f"there is no {kind[0]} of {model} for {backend}{why}",
        "an artefact that passed its gate",
        f"run: dgate optimize {model} --profile {profile}" + ("; its report says what to change" if failed else ""),
    )
