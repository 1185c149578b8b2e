"""The real architectures that are measured, as data, and how one is built with random weights on a device.

Speed does not depend on the values of the weights. Configs are those of the checkpoints' own config.json files
(`source` names each); the toy ones keep the classes and every kind of block. Text encoders are not built: they are off
the timed path, and random embeddings of the right shape stand in for what they would give.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dgate_core.models.spec import PIPELINES, CheckpointSpec, LocalCheckpoint

if TYPE_CHECKING:
    import torch

    from dgate_core.models.families.contract import PromptEmbedding

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TextShape:
    """What the text encoders give for a prompt."""

    tokens: int
    """Length of the sequence."""
    width: int
    """Of the hidden states."""
    pooled: int | None = None
    """Width of the pooled embedding; None when there is none."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A pipeline without its weights."""

    name: str
    """As the results carry it."""
    source: str
    """Checkpoint whose config.json files these are."""
    pipeline_class: str
    """Of diffusers."""
    denoiser_class: str
    """Of diffusers."""
    denoiser: Config
    """Arguments of the denoiser's class."""
    vae: Config
    """Arguments of AutoencoderKL."""
    scheduler_class: str
    """Of diffusers."""
    scheduler: Config
    """Arguments of the scheduler's class."""
    text: TextShape
    """Shape of the embeddings that stand in."""
    native_size: int
    """Pixels of a side."""


_VAE: Final[Config] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
}
_TOY_VAE: Final[Config] = {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 4,
    "norm_num_groups": 8,
}
_BETAS: Final[Config] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
_SDXL_UNET: Final[Config] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_SD15_UNET: Final[Config] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
_FLUX: Final[Config] = {
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "axes_dims_rope": (16, 56, 56),
}
_FLUX_VAE: Final[Config] = {
    **_VAE,
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
_TOY_UNET: Final[Config] = {"sample_size": 16, "block_out_channels": (16, 32), "layers_per_block": 1} | {
    "norm_num_groups": 8,
    "attention_head_dim": 8,
    "cross_attention_dim": 32,
}
_TOY_SDXL: Final[Config] = {
    **_TOY_UNET,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
}
_TOY_SD15: Final[Config] = {
    **_TOY_UNET,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
_TOY_FLUX: Final[Config] = {
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (4, 4, 8),
}
_TOY_FLUX_VAE: Final[Config] = {**_TOY_VAE, "scaling_factor": 0.4, "shift_factor": 0.1}
_SD: Final = ("StableDiffusionPipeline", "UNet2DConditionModel")
_XL: Final = ("StableDiffusionXLPipeline", "UNet2DConditionModel")
_FL: Final = ("FluxPipeline", "FluxTransformer2DModel")
_EULER: Final = ("EulerDiscreteScheduler", {**_BETAS, "timestep_spacing": "leading"})
_DDIM: Final = ("DDIMScheduler", {**_BETAS, "clip_sample": False, "set_alpha_to_one": False})
_FLOW_DEV: Final = ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_dynamic_shifting": True})
_FLOW_SCHNELL: Final = ("FlowMatchEulerDiscreteScheduler", {"shift": 1.0})
_SDXL_VAE: Final[Config] = {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025}
_SD15_VAE: Final[Config] = {**_VAE, "sample_size": 512, "scaling_factor": 0.18215}
_TOY_XL_TEXT: Final = TextShape(7, 32, 32)

ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    each.name: each
    for each in (
        Architecture(
            "sdxl",
            "stabilityai/stable-diffusion-xl-base-1.0; scheduler of MLPerf Inference",
            *_XL,
            _SDXL_UNET,
            _SDXL_VAE,
            *_EULER,
            TextShape(77, 2048, 1280),
            1024,
        ),
        Architecture(
            "sd15",
            "stable-diffusion-v1-5/stable-diffusion-v1-5; DDIM, one forward a step",
            *_SD,
            _SD15_UNET,
            _SD15_VAE,
            *_DDIM,
            TextShape(77, 768),
            512,
        ),
        Architecture(
            "flux-dev",
            "black-forest-labs/FLUX.1-dev",
            *_FL,
            {**_FLUX, "guidance_embeds": True},
            _FLUX_VAE,
            *_FLOW_DEV,
            TextShape(512, 4096, 768),
            1024,
        ),
        Architecture(
            "flux-schnell",
            "black-forest-labs/FLUX.1-schnell",
            *_FL,
            {**_FLUX, "guidance_embeds": False},
            _FLUX_VAE,
            *_FLOW_SCHNELL,
            TextShape(256, 4096, 768),
            1024,
        ),
    )
}
"""At full size."""

TOYS: Final[Mapping[str, Architecture]] = {
    each.name: each
    for each in (
        Architecture("sdxl", "toy", *_XL, _TOY_SDXL, _TOY_VAE, *_EULER, _TOY_XL_TEXT, 32),
        Architecture("sd15", "toy", *_SD, _TOY_SD15, _TOY_VAE, *_DDIM, TextShape(7, 32), 32),
        Architecture(
            "flux-dev",
            "toy",
            *_FL,
            {**_TOY_FLUX, "guidance_embeds": True},
            _TOY_FLUX_VAE,
            *_FLOW_DEV,
            _TOY_XL_TEXT,
            32,
        ),
        Architecture(
            "flux-schnell",
            "toy",
            *_FL,
            {**_TOY_FLUX, "guidance_embeds": False},
            _TOY_FLUX_VAE,
            *_FLOW_SCHNELL,
            _TOY_XL_TEXT,
            32,
        ),
    )
}
"""The same classes, a few thousand times smaller."""


def build_pipeline(architecture: Architecture, device: str, dtype: torch.dtype) -> Any:
    """A diffusers pipeline with random weights, made on the device itself, without text encoders."""
    import diffusers
    import torch

    torch.manual_seed(0)
    with torch.device(device), use_default_dtype(dtype):
        denoiser = getattr(diffusers, architecture.denoiser_class)(**architecture.denoiser)
        vae = diffusers.AutoencoderKL(**architecture.vae)
    scheduler = getattr(diffusers, architecture.scheduler_class)(**architecture.scheduler)
    pipeline_class = getattr(diffusers, architecture.pipeline_class)
    part = PIPELINES[architecture.pipeline_class].denoiser
    parts = {part: denoiser.eval().requires_grad_(False), "vae": vae.eval().requires_grad_(False)}
    absent = set(pipeline_class._get_signature_keys(pipeline_class)[0]) - {*parts, "scheduler"}
    pipeline = pipeline_class(**parts, scheduler=scheduler, **dict.fromkeys(absent), **_leave_out(pipeline_class))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _leave_out(pipeline_class: Any) -> dict[str, Any]:
    """The safety checker's switch, where there is one."""
    optional = pipeline_class._get_signature_keys(pipeline_class)[1]
    return {"requires_safety_checker": False} if "requires_safety_checker" in optional else {}


@contextmanager
def use_default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Parameters made inside have this dtype."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def describe_checkpoint(architecture: Architecture) -> LocalCheckpoint:
    """What D-Gate's model says of itself."""
    return LocalCheckpoint(
        spec=CheckpointSpec(architecture.name, f"random weights, {architecture.source}"),
        folder="",
        family=PIPELINES[architecture.pipeline_class].family,
        weights_hash="random",
        native_size=architecture.native_size,
        pipeline_class=architecture.pipeline_class,
    )


def draw_embeddings(
    text: TextShape, prompts: Sequence[str], device: str, dtype: torch.dtype
) -> tuple[PromptEmbedding, ...]:
    """Random embeddings in the place of the text encoders', each from its own prompt.

    Drawn where they are read: a copy of that size from the host's memory would wait for the batch before.
    """
    import torch

    from dgate_core.models.families.contract import PromptEmbedding

    found = []
    for prompt in prompts:
        draw = torch.Generator(device).manual_seed(zlib.crc32(prompt.encode()))
        hidden = torch.randn(text.tokens, text.width, generator=draw, device=device).to(dtype)
        pooled = None if text.pooled is None else torch.randn(text.pooled, generator=draw, device=device).to(dtype)
        found.append(PromptEmbedding(hidden, pooled))
    return tuple(found)
