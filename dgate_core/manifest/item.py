"""One request of a manifest, and the limits that a model sets on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

MAX_SEED = 2**63 - 1
MAX_STEPS = 1000
MAX_IMAGES = 1000


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What a manifest's rows may ask of one model; filled in by the model catalogue."""

    model: str
    """Canonical name, as it stands in the results."""
    weights_hash: str
    """sha256 over the checkpoint's files; enters every row_id."""
    schedulers: frozenset[str]
    """Names that a row may give."""
    width: int
    """Native width in pixels, used when nothing is said."""
    height: int
    """Native height in pixels."""
    size_multiple: int
    """Width and height are multiples of this."""
    size_min: int
    """Smallest side in pixels."""
    size_max: int
    """Largest side in pixels."""
    num_inference_steps: int
    """Default number of steps."""
    guidance_scale: float
    """Default guidance."""
    scheduler: str
    """Default scheduler."""
    seconds_per_step: float
    """Rough time of one sample's step at native size on this machine; for estimates only."""
    bytes_per_pixel: float = 1.6
    """Rough size of a written file per pixel; for estimates only."""
    adapters: frozenset[str] = frozenset()
    """LoRA names that can be found; others are a row error."""
    styles: frozenset[str] = frozenset()
    """Style presets that can be found."""


ModelLookup = Callable[[str], ModelLimits]
"""Resolves a model's name or path; raises ModelError with a clear message when there is none."""


@dataclass(frozen=True, slots=True)
class BatchKey:
    """What rows must share to be denoised in one batch."""

    model: str
    width: int
    height: int
    num_inference_steps: int
    scheduler: str
    guidance_scale: float
    lora: str = "[]"

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))


def batch_key_from_json(text: str) -> BatchKey:
    """The inverse of `BatchKey.to_json`."""
    return BatchKey(**json.loads(text))
