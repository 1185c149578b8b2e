"""What a denoiser is called with: recorded from the model's own loop, and flat under names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import torch

from dgate_core.backends.contract import ShapeBucket
from dgate_core.errors import BackendUnfitError
from dgate_core.manifest.item import BatchKey
from dgate_core.models.families.contract import BatchRequest, Samples
from dgate_core.models.families.latent import LatentModel
from dgate_core.models.spec import DEFAULT_SCHEDULER

SAMPLES: Final = "samples"
TIMESTEP: Final = "timestep"
PREDICTION: Final = "prediction"
SHARED_INPUTS: Final = frozenset({"txt_ids", "img_ids"})
"""Positions: the same for all samples, so without a dimension of samples."""

Inputs = dict[str, torch.Tensor]
"""Flat and by name; the first dimension is that of the samples, but for SHARED_INPUTS."""


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """The arguments of one `DenoiserCall`."""

    samples: Samples
    timestep: torch.Tensor
    conditioning: dict[str, Any]


class _RecordedError(Exception):
    """Ends the loop whose first call is known."""


@torch.inference_mode()
def record_call(model: LatentModel, bucket: ShapeBucket, samples: int) -> RecordedCall:
    """What the model's loop gives its denoiser at the first step, without computing it.

    Args:
        model: On its device.
        bucket: Size of the pictures.
        samples: Rows of the batch; guidance is off.
    """
    found: list[RecordedCall] = []

    def record(samples: Samples, timestep: torch.Tensor, **conditioning: Any) -> NoReturn:
        found.append(RecordedCall(samples, timestep, conditioning))
        raise _RecordedError

    key = BatchKey(
        model=model.checkpoint.spec.name,
        width=bucket.width,
        height=bucket.height,
        num_inference_steps=2,
        guidance_scale=0.0,
        scheduler=DEFAULT_SCHEDULER,
        lora="",
    )
    words = tuple(model.encode_prompts([""], one_by_one=True)) * samples
    before, model.call_denoiser = model.call_denoiser, record
    try:
        model.denoise(BatchRequest(key, tuple(range(samples)), words, words))
    except _RecordedError:
        return found[0]
    finally:
        model.call_denoiser = before
    raise AssertionError("the loop ended without a step")


def flatten_inputs(samples: Samples, timestep: torch.Tensor, conditioning: Mapping[str, Any]) -> Inputs:
    """Samples, timestep float32 (N,), and every tensor of the conditioning by name; nested names are joined by a dot.

    Raises:
        BackendUnfitError: lists go in, so that there is no one shape.
    """
    if not isinstance(samples, torch.Tensor):
        raise BackendUnfitError("its denoiser takes a list of pictures", "a denoiser that takes tensors")
    inputs = {SAMPLES: samples, TIMESTEP: timestep.to(samples.device, torch.float32).expand(len(samples))}
    inputs.update((name, value) for name, value in _walk(conditioning) if isinstance(value, torch.Tensor))
    return inputs


def nest_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Conditioning from its flat names."""
    nested: dict[str, Any] = {}
    for name, value in inputs.items():
        place, *inner = name.split(".", 1)
        if inner:
            nested.setdefault(place, {})[inner[0]] = value
        else:
            nested[place] = value
    return nested


def list_constants(conditioning: Mapping[str, Any]) -> dict[str, None]:
    """Names that are given without a value."""
    return {name: None for name, value in _walk(conditioning) if value is None}


def pad_inputs(inputs: Inputs, samples: int) -> Inputs:
    """Repeats the last sample until there are so many."""
    missing = samples - len(inputs[SAMPLES])
    if missing <= 0:
        return inputs
    return {
        name: value if name in SHARED_INPUTS else torch.cat([value, value[-1:].expand(missing, *value.shape[1:])])
        for name, value in inputs.items()
    }


def _walk(conditioning: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, torch.Tensor | None]]:
    for name, value in conditioning.items():
        if isinstance(value, Mapping):
            yield from _walk(value, f"{before}{name}.")
        elif value is None or isinstance(value, torch.Tensor):
            yield f"{before}{name}", value
        else:
            raise BackendUnfitError(f"its denoiser takes {name} as {type(value).__name__}", "tensors only")
