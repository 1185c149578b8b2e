"""The denoiser as diffusers has it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from dgate_core.backends.contract import BackendRequest, PreparedDecoder, PreparedDenoiser
from dgate_core.backends.quantised import find_wanted_artefact
from dgate_core.errors import BackendUnfitError
from dgate_core.manifest.item import BatchKey
from dgate_core.models.families.contract import Samples
from dgate_core.models.families.latent import LatentModel


class EagerBackend:
    """Serves everything, strict runs included: one sample's arithmetic is that of its place in a padded batch."""

    name: ClassVar[str] = "eager"

    def prepare(self, model: LatentModel, request: BackendRequest) -> PreparedDenoiser:
        """See `Backend`."""
        return EagerDenoiser(model, quantise_in_place(model, request, self.name))


class EagerDenoiser:
    """Calls the module."""

    pads_batches: ClassVar[bool] = False

    def __init__(self, model: LatentModel, artefact: str | None) -> None:
        self.model, self.artefact = model, artefact
        self.decoder: PreparedDecoder | None = None

    def __call__(self, samples: Samples, timestep: torch.Tensor, **conditioning: Any) -> torch.Tensor:
        """See `DenoiserCall`."""
        return self.model.call_module(samples, timestep, **conditioning)

    def warm_up(self, key: BatchKey, samples: int) -> None:
        """Nothing is to be built."""

    def release(self) -> None:
        """See `PreparedDenoiser`."""
        if self.decoder is not None:
            self.decoder.release()


def quantise_in_place(model: LatentModel, request: BackendRequest, backend: str) -> str | None:
    """Puts the quantised layers of the wanted artefact into the model, and returns its name.

    Raises:
        BackendUnfitError: there is none that passed its gate.
    """
    artefact = find_wanted_artefact(model, request, backend)
    if artefact is None:
        return None
    if model.memory.offload in {"group", "sequential"}:
        raise BackendUnfitError(
            f"8-bit layers with the denoiser's weights offloaded by {model.memory.offload}",
            "a denoiser that lies on the device whole",
            "take the profile fast, or a larger GPU"
            if artefact.quantization == "nf4"
            else "take the profile fast or small",
        )
    from dgate_core.quant.artefact import PLAN_FILE
    from dgate_core.quant.plan import read_plan
    from dgate_core.quant.quantise import quantise_model

    quantise_model(model, read_plan(artefact.find_file(PLAN_FILE)))
    return artefact.name
