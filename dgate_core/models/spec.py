"""What D-Gate knows of a checkpoint before it is opened: families, schedulers and defaults, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dgate_core.registry import Registry

FAMILIES = Registry(
    "model family",
    {
        "unet": "dgate_core.models.families.unet:UNetFamily",
        "dit": "dgate_core.models.families.dit:DiTFamily",
    },
)


@dataclass(frozen=True, slots=True)
class SchedulerSpec:
    """A diffusers scheduler under the name that users know it by."""

    class_name: str
    """Class in `diffusers`."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Set on top of the checkpoint's own scheduler config (betas, prediction type, spacing stay the checkpoint's)."""


SCHEDULERS: Mapping[str, SchedulerSpec] = {
    "ddim": SchedulerSpec("DDIMScheduler"),
    "ddpm": SchedulerSpec("DDPMScheduler"),
    "deis": SchedulerSpec("DEISMultistepScheduler"),
    "dpmpp_2m": SchedulerSpec("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmpp_2m_karras": SchedulerSpec(
        "DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}
    ),
    "dpmpp_2m_sde": SchedulerSpec("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "euler": SchedulerSpec("EulerDiscreteScheduler"),
    "euler_a": SchedulerSpec("EulerAncestralDiscreteScheduler"),
    "heun": SchedulerSpec("HeunDiscreteScheduler"),
    "lcm": SchedulerSpec("LCMScheduler"),
    "pndm": SchedulerSpec("PNDMScheduler", {"skip_prk_steps": True}),
    "unipc": SchedulerSpec("UniPCMultistepScheduler"),
}
"""Names that a manifest may give; `default` is the checkpoint's own."""

DEFAULT_SCHEDULER = "default"


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """What holds for every checkpoint of one diffusers pipeline class."""

    family: str
    """Key of FAMILIES."""
    guidance_scale: float
    """The pipeline's own default; what it does is told in the family's module."""
    num_inference_steps: int = 50
    """The pipeline's own default."""
    denoiser: str = "transformer"
    """Part that is called at every step."""
    sample_size: int | None = None
    """Native side in latents where the denoiser's config does not say it."""
    size_multiple: int = 16
    """Sides are multiples of this: the decoder's scale times the denoiser's patch."""
    schedulers: frozenset[str] = frozenset()
    """Names that a manifest may give besides `default`; flow matching has its own."""


_DIFFUSION_SCHEDULERS = frozenset(SCHEDULERS)

PIPELINES: Mapping[str, PipelineSpec] = {
    "StableDiffusionPipeline": PipelineSpec(
        "unet", 7.5, denoiser="unet", size_multiple=8, schedulers=_DIFFUSION_SCHEDULERS
    ),
    "StableDiffusionXLPipeline": PipelineSpec(
        "unet", 5.0, denoiser="unet", size_multiple=8, schedulers=_DIFFUSION_SCHEDULERS
    ),
    # A UNet that was distilled from a guided one; its own scheduler is what it was distilled for.
    "LatentConsistencyModelPipeline": PipelineSpec("unet", 8.5, 4, denoiser="unet", size_multiple=8),
    "StableDiffusion3Pipeline": PipelineSpec("dit", 7.0, 28),
    "FluxPipeline": PipelineSpec("dit", 3.5, 28, sample_size=128),
    "Flux2Pipeline": PipelineSpec("dit", 4.0, sample_size=128),
    "Flux2KleinPipeline": PipelineSpec("dit", 4.0, sample_size=128),
    "PixArtSigmaPipeline": PipelineSpec("dit", 4.5, 20, schedulers=_DIFFUSION_SCHEDULERS),
    "QwenImagePipeline": PipelineSpec("dit", 4.0, sample_size=128),
    "ZImagePipeline": PipelineSpec("dit", 5.0, sample_size=128),
}
"""`_class_name` of a diffusers model_index.json → what it is."""


@dataclass(frozen=True, slots=True)
class CheckpointSpec:
    """One row of the catalogue: where a checkpoint comes from and what it is made for."""

    name: str
    """Name that a manifest or `--model` gives."""
    source: str
    """Hub repository, folder, or `.safetensors` file."""
    revision: str | None = None
    """Commit of the hub repository; None for local ones."""
    variant: str | None = None
    """File variant, as in `unet/diffusion_pytorch_model.fp16.safetensors`."""
    num_inference_steps: int = 50
    """Default steps."""
    guidance_scale: float = 7.5
    """Default classifier-free guidance."""
    size_multiple: int = 8
    """Sides are multiples of this, in pixels."""
    size_range: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest side, as multiples of the native one."""
    max_sequence_length: int | None = None
    """Tokens that the longest text encoder reads; None is the pipeline's own number."""
    licence: str = "unknown"
    """As its card states it."""
    step_gflops: float = 800.0
    """Of one sample's forward at native size; for estimates only."""


@dataclass(frozen=True, slots=True)
class LocalCheckpoint:
    """A checkpoint on this machine's disk, checked but not loaded."""

    spec: CheckpointSpec
    folder: str
    """A diffusers folder, or one `.safetensors` file."""
    family: str
    """Key of FAMILIES."""
    weights_hash: str
    """sha256 over its files' names and contents."""
    native_size: int
    """Side in pixels that it was trained at."""
    pipeline_class: str
    """`_class_name` of its model_index.json."""
    config_folder: str | None = None
    """Of a single file: the diffusers folder whose configs say how to read it."""
