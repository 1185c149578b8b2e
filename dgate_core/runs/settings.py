"""Everything a person can say about a run, flat, as the command line, a config file and the Prefect form take it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from dgate_core.errors import ConfigError
from dgate_core.runs.spec import (
    Container,
    Determinism,
    GenerationDefaults,
    ImageFormat,
    Precision,
    RunSpec,
    SafetyPolicy,
    SafetySpec,
)
from dgate_core.tracking.contract import check_tracker

PrecisionChoice = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class RunSettings:
    """A run's settings; the first group determines pixels and enters the fingerprint, the second does not."""

    model: str = "starter-unet"
    """For rows that name none."""
    negative_prompt: str = ""
    """For rows that give none."""
    num_images: int = 1
    """Images per row."""
    width: int | None = None
    """Pixels; None is the model's native size."""
    height: int | None = None
    """Pixels; None is the model's native size."""
    num_inference_steps: int | None = None
    """None is the model's default."""
    guidance_scale: float | None = None
    """None is the model's default."""
    scheduler: str | None = None
    """None is the model's own."""
    style_preset: str | None = None
    """Name of a style preset."""
    seed: int = 0
    """Base seed for rows that give none."""
    determinism: Determinism = "fast"
    """`strict` gives byte-equal files in any batch."""
    strict_batch_size: int = 8
    """Samples in the padded batch of `strict`."""
    precision: PrecisionChoice = "auto"
    """`auto` takes what the device does fastest."""
    image_format: Literal["png", "jpeg", "webp"] = "png"
    """File format."""
    png_level: int = 1
    """zlib level, 0 to 9."""
    quality: int = 95
    """Of JPEG and WebP, 1 to 100."""
    container: Container = "files"
    """files, webdataset or parquet."""
    profile: str = "exact"
    """exact, fast, turbo, draft or small: what may be given for speed or memory; or a backend alone, by its name."""
    safety: str | None = None
    """Who looks at every picture: `opennsfw`, or `module:function`; None lets all pass."""
    safety_policy: SafetyPolicy = "quarantine"
    """keep, blur, drop or quarantine those that are flagged."""
    safety_threshold: float = 0.5
    """Score from which a picture is flagged, 0 to 1."""

    lanes: int | None = None
    """Workers; None is one per GPU, or one on the CPU."""
    device: str = "auto"
    """cpu, cuda, mps or auto."""
    batch_size: int | None = None
    """Rows per batch; None finds the best."""
    rows_per_shard: int | None = None
    """None takes 10 to 30 minutes' worth."""
    lease_seconds: float = 120.0
    """How long a silent lane keeps its shard."""
    strict: bool = False
    """Bad rows stop the run before it starts."""
    score: tuple[str, ...] = ()
    """Metrics of the evaluation at the run's end, prepared while the pictures are in memory; none by default."""
    reference: str | None = None
    """Reference set of those metrics: a card's name, or an address."""
    trackers: tuple[str, ...] = ()
    """wandb, mlflow or `module:function`, told of the run and its evaluations; the run's own JSON lines always are."""

    def __post_init__(self) -> None:
        _check_range("lanes", self.lanes, 1, 1024)
        _check_range("batch_size", self.batch_size, 1, 4096)
        _check_range("strict_batch_size", self.strict_batch_size, 1, 256)
        _check_range("rows_per_shard", self.rows_per_shard, 1, 1_000_000)
        _check_range("png_level", self.png_level, 0, 9)
        _check_range("quality", self.quality, 1, 100)
        _check_range("safety_threshold", self.safety_threshold, 0.0, 1.0)
        _check_range("num_images", self.num_images, 1, 1000)
        _check_range("lease_seconds", self.lease_seconds, 1.0, 86_400.0)
        for tracker in self.trackers:
            check_tracker(tracker)
        _check_range("seed", self.seed, 0, 2**63 - 1)


def settings_to_spec(settings: RunSettings, precision: Precision) -> RunSpec:
    """What enters the fingerprint, with the precision that was chosen."""
    names = [field.name for field in fields(GenerationDefaults) if field.name != "lora"]
    return RunSpec(
        defaults=GenerationDefaults(**{name: getattr(settings, name) for name in names}),
        seed=settings.seed,
        determinism=settings.determinism,
        strict_batch_size=settings.strict_batch_size,
        precision=precision,
        image=ImageFormat(settings.image_format, settings.png_level, settings.quality, settings.container),
        profile=settings.profile,
        safety=settings_to_safety(settings),
    )


def settings_to_safety(settings: RunSettings) -> SafetySpec | None:
    """None when nobody looks."""
    if settings.safety is None:
        return None
    return SafetySpec(settings.safety, settings.safety_policy, settings.safety_threshold)


def _check_range(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise ConfigError(f"{name}={value}", f"{name} from {low} to {high}")
