"""The first of a profile's backends that is there and fits; a fall to the next one is told once, and in every row."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch

from dgate_core.backends.contract import BackendRequest, PreparedDenoiser
from dgate_core.errors import BackendUnfitError, DgateError, MissingExtraError, StorageError
from dgate_core.manifest.item import BatchKey
from dgate_core.models.families.contract import Samples, Serving
from dgate_core.models.families.latent import LatentModel
from dgate_core.models.profiles import BACKENDS, EXACT, Profile, check_steps
from dgate_core.models.savers.installing import apply_savers

logger = logging.getLogger(__name__)

_UNFIT = (BackendUnfitError, MissingExtraError, StorageError)


def serve_model(model: LatentModel, profile: Profile, *, is_strict: bool = False) -> LatentModel:
    """Puts a profile's levers on a loaded model, and returns it.

    Args:
        model: Fresh from its family.
        profile: What may be given for speed.
        is_strict: Whether a row must give the same bytes in any batch.

    Raises:
        ModelError: the checkpoint is not for this profile.
        DgateError: none of the profile's backends serves.
    """
    check_steps(model.checkpoint.spec, profile)
    if profile.name == EXACT:
        return model
    names = apply_savers(model, profile.savers, strict=is_strict)
    serving = model.serving
    request = BackendRequest(serving.device, serving.precision, is_strict, profile.quantization, profile.savers)
    serving = replace(serving, quantization=profile.quantization, savers=names)
    model.serve_by(ServedDenoiser(model, profile.backends, request, serving))
    return model


class ServedDenoiser:
    """A `Server` that goes on to the next backend when one does not fit.

    Args:
        model: Whose denoiser it is.
        backends: In order of preference.
        request: How it is to be served.
        serving: What is known before the backend is.

    Raises:
        DgateError: none serves.
    """

    def __init__(
        self, model: LatentModel, backends: tuple[str, ...], request: BackendRequest, serving: Serving
    ) -> None:
        self.model, self.request, self.serving = model, request, serving
        self._waiting = list(backends)
        self._prepared = self._prepare_next()
        self._unfit: dict[tuple[int, int, int], DgateError] = {}

    def __call__(self, samples: Samples, timestep: torch.Tensor, **conditioning: Any) -> torch.Tensor:
        """See `DenoiserCall`."""
        return self._prepared(samples, timestep, **conditioning)

    def warm_up(self, key: BatchKey, samples: int) -> None:
        """See `Server`.

        Raises:
            DgateError: the last backend does not fit this size; told again at once when it is asked again.
        """
        size = (key.height, key.width, samples)
        while True:
            if size in self._unfit:
                raise self._unfit[size]
            try:
                self._prepared.warm_up(key, samples)
                return
            except _UNFIT as error:
                if not self._waiting:
                    self._unfit[size] = error
                    raise
                self._prepared.release()
                self._prepared = self._prepare_next(self.serving.backend, error)

    def warm_up_decoder(self, key: BatchKey, pictures: int) -> None:
        """See `Server`; a decoder that cannot be compiled is eager, and the rows say why."""
        if self.serving.decoder == "eager" or self._prepared.decoder is None:
            return
        try:
            self._prepared.decoder.warm_up(key, pictures)
        except BackendUnfitError as error:
            self.release_decoder(error.got)

    def release_decoder(self, why: str) -> None:
        """See `Server`."""
        if self.serving.decoder == "eager" or self._prepared.decoder is None:
            return
        self._prepared.decoder.release()
        warnings = (*self.serving.warnings, f"decoder: eager, because {why}")
        logger.warning("%s: %s", self.model.checkpoint.spec.name, warnings[-1])
        self.serving = replace(self.serving, decoder="eager", warnings=warnings)

    def _prepare_next(self, failed: str = "", why: DgateError | None = None) -> PreparedDenoiser:
        """Takes the next backend that can be prepared."""
        reasons = [f"{failed}: {why.got}"] if why is not None else []
        while True:
            name = self._waiting.pop(0)
            try:
                prepared: PreparedDenoiser = BACKENDS.load(name)().prepare(self.model, self.request)
            except _UNFIT as error:
                if not self._waiting:
                    raise
                reasons.append(f"{name}: {error.got}")
                continue
            self._tell(name, prepared, reasons)
            return prepared

    def _tell(self, name: str, prepared: PreparedDenoiser, reasons: list[str]) -> None:
        warnings = self.serving.warnings
        if reasons:
            warnings = (*warnings, f"backend: {name} serves, because of {'; '.join(reasons)}")
            logger.warning("%s: %s", self.model.checkpoint.spec.name, warnings[-1])
        self.serving = replace(
            self.serving,
            backend=name,
            artefact=prepared.artefact,
            warnings=warnings,
            pads_batches=prepared.pads_batches,
            decoder=name if prepared.decoder is not None else "eager",
        )
