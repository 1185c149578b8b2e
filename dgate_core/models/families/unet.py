"""Latent diffusion with a UNet: Stable Diffusion 1.x, 2.x, SDXL and the starter checkpoint.

Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022; Podell et al., SDXL, 2023;
guidance after Ho and Salimans, Classifier-Free Diffusion Guidance, 2022.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.utils.torch_utils import randn_tensor
from safetensors import SafetensorError

from dgate_core.errors import ModelError
from dgate_core.manifest.item import BatchKey
from dgate_core.models.families.contract import BatchRequest, LoadOptions, Pictures, PromptEmbedding
from dgate_core.models.families.stages import StageClock
from dgate_core.models.families.text import PromptEncoder
from dgate_core.models.single_file import read_header
from dgate_core.models.spec import DEFAULT_SCHEDULER, SCHEDULERS, LocalCheckpoint

_OLD_PREFIX = "text_model."
"""Stands before a text encoder's tensors in older files and not in newer ones."""
# Above this many pixels the decoder's activations, not the UNet's, set the peak of memory.
DECODE_PIXELS_AT_ONCE = 8 * 1024 * 1024


class UNetFamily:
    """Loads diffusers' StableDiffusionPipeline and StableDiffusionXLPipeline."""

    def load(self, checkpoint: LocalCheckpoint, options: LoadOptions) -> UNetModel:
        """Reads safetensors only.

        Raises:
            ModelError: the weights do not fit the configs, or the UNet wants an embedded guidance scale.
        """
        pipeline = load_pipeline(checkpoint, getattr(torch, options.precision))
        check_weights_are_whole(pipeline, checkpoint)
        if pipeline.unet.config.get("time_cond_proj_dim") is not None:
            raise ModelError(
                f"{checkpoint.spec.name} is a guidance-distilled UNet (time_cond_proj_dim is set)",
                "a UNet with classifier-free guidance",
                "use the checkpoint that it was distilled from",
            )
        pipeline.to(options.device)
        return UNetModel(checkpoint, pipeline, torch.device(options.device))


def load_pipeline(checkpoint: LocalCheckpoint, dtype: torch.dtype) -> Any:
    """A diffusers pipeline on the CPU, without a safety checker (verdicts are data, made elsewhere)."""
    pipeline_class = getattr(diffusers, checkpoint.pipeline_class)
    accepted = inspect.signature(pipeline_class.__init__).parameters
    left_out = {
        "safety_checker": None,
        "requires_safety_checker": False,
        "feature_extractor": None,
        "image_encoder": None,
    }
    arguments = {name: value for name, value in left_out.items() if name in accepted}
    source = Path(checkpoint.folder)
    # Bars of single files would be drawn across the run's own.
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        if source.is_file():
            return pipeline_class.from_single_file(
                str(source), config=checkpoint.config_folder, dtype=dtype, local_files_only=True, **arguments
            )
        return pipeline_class.from_pretrained(
            str(source),
            dtype=dtype,
            use_safetensors=True,
            variant=find_variant(source),
            local_files_only=True,
            **arguments,
        )
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        raise ModelError(
            f"{source} does not load as {checkpoint.pipeline_class}: {' '.join(str(error).split())[:300]}",
            "weights that fit their configs",
            "download or copy it again",
        ) from error


def check_weights_are_whole(pipeline: Any, checkpoint: LocalCheckpoint) -> None:
    """The libraries fill what a file lacks with random numbers and a log line; here that is an error.

    Raises:
        ModelError: names the first tensor that is missing.
    """
    for part, module in pipeline.components.items():
        if not isinstance(module, torch.nn.Module):
            continue
        missing = [name for name, value in module.named_parameters() if value.is_meta]
        stored = {
            name.removeprefix(_OLD_PREFIX)
            for file in (Path(checkpoint.folder) / part).glob("*.safetensors")
            for name in read_header(file)
        }
        if stored and isinstance(module, transformers.PreTrainedModel):
            wanted = (name for name, _ in module.named_parameters())
            missing += [name for name in wanted if name.removeprefix(_OLD_PREFIX) not in stored]
        if missing:
            raise ModelError(
                f"{checkpoint.folder}: the weights of {part} lack {missing[0]} ({len(missing)} tensors in all)",
                "every tensor of the config",
                "download or copy it again",
            )


def find_variant(folder: Path) -> str | None:
    """`fp16` when the UNet's weights are there in that variant only."""
    names = {file.name for file in (folder / "unet").glob("*.safetensors")}
    return "fp16" if names and all(".fp16." in name for name in names) else None


class UNetModel:
    """A latent diffusion checkpoint on a device."""

    def __init__(self, checkpoint: LocalCheckpoint, pipeline: Any, device: torch.device) -> None:
        self.checkpoint, self.device = checkpoint, device
        self.pipeline, self.unet, self.vae = pipeline, pipeline.unet, pipeline.vae
        self.dtype: torch.dtype = pipeline.unet.dtype
        self._encoder = PromptEncoder(pipeline, device)
        self._memory_steps = ["vae_tiling", "model_offload"]
        if self._must_upcast_decoder():
            self.vae.to(torch.float32)
        if device.type == "cuda":
            self.unet.to(memory_format=torch.channels_last)
            self.vae.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def encode_prompts(self, prompts: Sequence[str], *, one_by_one: bool) -> list[PromptEmbedding]:
        """See `LoadedModel`."""
        return self._encoder.encode(prompts, 1 if one_by_one else 32)

    @torch.inference_mode()
    def encode_negatives(self, prompts: Sequence[str], *, one_by_one: bool) -> list[PromptEmbedding]:
        """See `LoadedModel`; SDXL takes zeros for an empty negative prompt, as its pipeline does."""
        embeddings = self.encode_prompts(prompts, one_by_one=one_by_one)
        if not self.pipeline.config.get("force_zeros_for_empty_prompt"):
            return embeddings
        return [each if prompt else _zero_embedding(each) for prompt, each in zip(prompts, embeddings, strict=True)]

    @torch.inference_mode()
    def generate(self, request: BatchRequest) -> Pictures:
        """See `LoadedModel`."""
        clock = StageClock(self.device)
        with clock.stage("denoise"):
            latents = self._denoise(request)
        with clock.stage("decode"):
            pixels, finite = self._decode(latents)
        with clock.stage("copy"):
            pixels, finite = self._copy_to_host(pixels), self._copy_to_host(finite)
        ready = None
        if self.device.type == "cuda":
            ready = torch.cuda.Event()
            ready.record()
        return Pictures(pixels, finite, ready, clock)

    def save_memory(self) -> str | None:
        """See `LoadedModel`: tiles the decoder, then keeps only the part at work on the device."""
        if not self._memory_steps:
            return None
        step = self._memory_steps.pop(0)
        if step == "vae_tiling":
            self.vae.enable_tiling()
            self.vae.enable_slicing()
        elif self.device.type == "cuda":
            self.pipeline.enable_model_cpu_offload()
        else:
            return None
        return step

    def _denoise(self, request: BatchRequest) -> torch.Tensor:
        """Latents float32 (N, C, h, w); the scheduler works in float32 whatever the UNet's dtype is."""
        key = request.key
        scheduler = self.make_scheduler(key.scheduler)
        scheduler.set_timesteps(key.num_inference_steps, device=self.device)
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in request.seeds]
        latents = self.draw_noise(key, generators) * scheduler.init_noise_sigma
        guided = key.guidance_scale > 1.0
        conditioning = self._prepare_conditioning(request, guided)
        extra = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
        for timestep in scheduler.timesteps:
            samples = torch.cat([latents, latents]) if guided else latents
            samples = scheduler.scale_model_input(samples, timestep).to(self.dtype)
            prediction = self.unet(samples, timestep, return_dict=False, **conditioning)[0].float()
            if guided:
                without, with_prompt = prediction.chunk(2)
                prediction = without + key.guidance_scale * (with_prompt - without)
            latents = scheduler.step(prediction, timestep, latents, return_dict=False, **extra)[0]
        return latents

    def draw_noise(self, key: BatchKey, generators: list[torch.Generator]) -> torch.Tensor:
        """Per row, on the CPU, from the row's own generator, so that no batch, lane or device changes it."""
        scale = 2 ** (len(self.vae.config.block_out_channels) - 1)
        shape = (len(generators), self.unet.config.in_channels, key.height // scale, key.width // scale)
        return randn_tensor(shape, generator=generators, device=self.device, dtype=torch.float32)

    def make_scheduler(self, name: str) -> Any:
        """A fresh scheduler with the checkpoint's own betas, prediction type and spacing."""
        if name == DEFAULT_SCHEDULER:
            return type(self.pipeline.scheduler).from_config(self.pipeline.scheduler.config)
        spec = SCHEDULERS[name]
        return getattr(diffusers, spec.class_name).from_config(self.pipeline.scheduler.config, **spec.config)

    def _prepare_conditioning(self, request: BatchRequest, guided: bool) -> dict[str, Any]:
        rows = [*request.negatives, *request.prompts] if guided else list(request.prompts)
        conditioning: dict[str, Any] = {"encoder_hidden_states": torch.stack([row.hidden for row in rows])}
        pooled = [row.pooled for row in rows if row.pooled is not None]
        if self.unet.config.get("addition_embed_type") == "text_time":
            # SDXL's micro-conditioning: original size, crop corner, target size.
            size = [request.key.height, request.key.width]
            times = torch.tensor([[*size, 0, 0, *size]] * len(rows), dtype=self.dtype, device=self.device)
            conditioning["added_cond_kwargs"] = {"text_embeds": torch.stack(pooled), "time_ids": times}
        return conditioning

    def _decode(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 (N, H, W, 3) and which rows are finite, both on the device."""
        config = self.vae.config
        latents = latents.to(self.vae.dtype)
        if config.get("latents_mean") is not None and config.get("latents_std") is not None:
            mean, std = (
                torch.tensor(config[name], device=self.device).view(1, -1, 1, 1)
                for name in ("latents_mean", "latents_std")
            )
            latents = (latents * std / config.scaling_factor + mean).to(self.vae.dtype)
        else:
            latents = latents / config.scaling_factor + (config.get("shift_factor") or 0.0)
        scale = 2 ** (len(config.block_out_channels) - 1)
        at_once = max(1, DECODE_PIXELS_AT_ONCE // (latents.shape[2] * latents.shape[3] * scale**2))
        decoded = torch.cat([self.vae.decode(part, return_dict=False)[0] for part in latents.split(at_once)]).float()
        finite = decoded.isfinite().flatten(1).all(dim=1)
        pixels = (decoded / 2 + 0.5).nan_to_num(0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous(), finite

    def _copy_to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type != "cuda":
            return tensor.cpu()
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def _must_upcast_decoder(self) -> bool:
        return self.dtype == torch.float16 and bool(self.vae.config.get("force_upcast"))


def _zero_embedding(embedding: PromptEmbedding) -> PromptEmbedding:
    pooled = None if embedding.pooled is None else torch.zeros_like(embedding.pooled)
    return PromptEmbedding(torch.zeros_like(embedding.hidden), pooled)
