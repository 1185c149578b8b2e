"""What a run is asked to make: all of it determines pixels or bytes, so all of it enters the fingerprint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

SPEC_VERSION = 1

Determinism = Literal["fast", "strict"]
Precision = Literal["float32", "bfloat16", "float16"]
Container = Literal["files", "webdataset", "parquet"]
SafetyPolicy = Literal["keep", "blur", "drop", "quarantine"]


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Values for what a manifest row leaves unsaid; None means the model's own default."""

    model: str = "starter-unet"
    """Name in the catalogue, or a path or URI of a checkpoint."""
    negative_prompt: str = ""
    """What guidance steers away from."""
    num_images: int = 1
    """Images per row, 1 to 1,000; image k has the row's seed + k."""
    width: int | None = None
    """Pixels."""
    height: int | None = None
    """Pixels."""
    num_inference_steps: int | None = None
    """Denoising steps, 1 to 1,000."""
    guidance_scale: float | None = None
    """Classifier-free guidance (Ho and Salimans, 2022); 1 switches it off."""
    scheduler: str | None = None
    """Name of a scheduler, see SCHEDULERS in dgate_core.models.spec."""
    lora: str | None = None
    """`name`, `name:scale`, or several joined by commas."""
    style_preset: str | None = None
    """Name of a style preset."""


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """How a picture becomes bytes."""

    format: Literal["png", "jpeg", "webp"] = "png"
    """File format; PNG is lossless."""
    level: int = 1
    """zlib level of PNG, 0 to 9: 1 is four times as fast as 6 and about 5 % larger."""
    quality: int = 95
    """Quality of JPEG and WebP, 1 to 100."""
    container: Container = "files"
    """Loose files, one WebDataset tar per shard, or bytes in one Parquet file per shard."""


@dataclass(frozen=True, slots=True)
class SafetySpec:
    """Who looks at every picture, and what becomes of those that are flagged: it decides what lies in the files."""

    checker: str
    """Name in CHECKERS of dgate_core.safety, or `module:function`."""
    policy: SafetyPolicy = "quarantine"
    """keep only says so, blur replaces, drop makes no file, quarantine puts the file aside."""
    threshold: float = 0.5
    """Score from which a picture is flagged, 0 to 1."""


@dataclass(frozen=True, slots=True)
class RunSpec:
    """The whole request of a run besides its manifest."""

    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    """For what the rows leave unsaid."""
    seed: int = 0
    """Base seed, from which rows without a seed get theirs."""
    determinism: Determinism = "fast"
    """`strict` gives byte-equal files in any batch; `fast` differs by rounding."""
    strict_batch_size: int = 8
    """Samples in the padded batch of `strict` (the forward's shape enters the rounding)."""
    precision: Precision = "float32"
    """Dtype of the text encoder, UNet and VAE; latents and scheduler are float32 always."""
    image: ImageFormat = field(default_factory=ImageFormat)
    """Format of the files."""
    profile: str = "exact"
    """What is given for speed, see PROFILES in dgate_core.models.profiles."""
    safety: SafetySpec | None = None
    """Who looks at the pictures; None lets all pass."""

    def to_dict(self) -> dict[str, Any]:
        """Nested plain data, for run.json and the fingerprint; what came later is named only where it is used."""
        unused = {"profile": "exact", "safety": None}
        return {name: value for name, value in asdict(self).items() if name not in unused or value != unused[name]}


def spec_from_dict(data: dict[str, Any]) -> RunSpec:
    """The inverse of `RunSpec.to_dict`."""
    nested: dict[str, Any] = {
        "defaults": GenerationDefaults(**data["defaults"]),
        "image": ImageFormat(**data["image"]),
        "safety": SafetySpec(**data["safety"]) if data.get("safety") else None,
    }
    return RunSpec(**{**data, **nested})
