"""Latent diffusion with a UNet: Stable Diffusion 1.x, 2.x, SDXL and the starter checkpoint.

Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022; Podell et al., SDXL, 2023;
guidance after Ho and Salimans, Classifier-Free Diffusion Guidance, 2022, or as an input of distilled UNets.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import diffusers
import torch

from dgate_core.models.families.contract import BatchRequest, LoadOptions, PromptEmbedding
from dgate_core.models.families.image_start import start_from_pictures
from dgate_core.models.families.latent import LatentModel
from dgate_core.models.families.loading import check_weights_are_whole, load_pipeline
from dgate_core.models.families.placement import place_pipeline
from dgate_core.models.families.text import PromptEncoder
from dgate_core.models.savers.guidance import count_guided_steps
from dgate_core.models.spec import DEFAULT_SCHEDULER, SCHEDULERS, LocalCheckpoint


class UNetFamily:
    """Loads diffusers' StableDiffusionPipeline and StableDiffusionXLPipeline."""

    def load(self, checkpoint: LocalCheckpoint, options: LoadOptions) -> UNetModel:
        """Reads safetensors only.

        Raises:
            ModelError: the weights do not fit the configs.
        """
        pipeline = load_pipeline(checkpoint, getattr(torch, options.precision))
        check_weights_are_whole(pipeline, checkpoint)
        device = torch.device(options.device)
        place_pipeline(pipeline, device, options.memory, pipeline.unet if options.denoiser_waits else None)
        model = UNetModel(checkpoint, pipeline, device)
        model.memory = options.memory
        return model


class UNetModel(LatentModel):
    """A latent diffusion checkpoint with a UNet on a device."""

    def __init__(self, checkpoint: LocalCheckpoint, pipeline: Any, device: torch.device) -> None:
        super().__init__(checkpoint, pipeline, pipeline.unet, device)
        self.unet = pipeline.unet
        self._encoder = PromptEncoder(pipeline, device)

    def encode_together(self, prompts: Sequence[str]) -> list[PromptEmbedding]:
        """See `LatentModel`."""
        return self._encoder.encode(prompts)

    @torch.inference_mode()
    def encode_negatives(self, prompts: Sequence[str], *, one_by_one: bool) -> list[PromptEmbedding]:
        """See `LoadedModel`; SDXL takes zeros for an empty negative prompt, as its pipeline does."""
        embeddings = self.encode_prompts(prompts, one_by_one=one_by_one)
        if not self.pipeline.config.get("force_zeros_for_empty_prompt"):
            return embeddings
        return [each if prompt else _zero_embedding(each) for prompt, each in zip(prompts, embeddings, strict=True)]

    def reads_negatives(self, guidance_scale: float) -> bool:
        """See `LoadedModel`; a UNet that was distilled from a guided one takes guidance as an input instead."""
        return super().reads_negatives(guidance_scale) and self.unet.config.get("time_cond_proj_dim") is None

    def denoise(self, request: BatchRequest) -> torch.Tensor:
        """See `LatentModel`."""
        key = request.key
        scheduler = self.make_scheduler(key.scheduler)
        scheduler.set_timesteps(key.num_inference_steps, device=self.device)
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in request.seeds]
        latents, timesteps = self._start(request, scheduler, generators)
        guided = self.reads_negatives(key.guidance_scale)
        conditioning = self._prepare_conditioning(request, guided)
        extra = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
        guided_steps = count_guided_steps(len(timesteps), self.guidance_stop)
        for number, timestep in enumerate(timesteps):
            if guided and number == guided_steps:
                guided, conditioning = False, self._prepare_conditioning(request, False)
            samples = torch.cat([latents, latents]) if guided else latents
            samples = scheduler.scale_model_input(samples, timestep).to(self.dtype)
            with self.mark_pairs(guided):
                prediction = self.call_denoiser(samples, timestep, **conditioning).float()
            if guided:
                without, with_prompt = prediction.chunk(2)
                prediction = without + key.guidance_scale * (with_prompt - without)
            latents = scheduler.step(prediction, timestep, latents, return_dict=False, **extra)[0]
        return latents

    def _start(
        self, request: BatchRequest, scheduler: Any, generators: list[torch.Generator]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents to begin with, and the timesteps to go through."""
        if request.starts:
            return start_from_pictures(self.vae, scheduler, request.starts, generators)
        return self.draw_noise(request.key, generators) * scheduler.init_noise_sigma, scheduler.timesteps

    def make_scheduler(self, name: str) -> Any:
        """A fresh scheduler with the checkpoint's own betas, prediction type and spacing."""
        if name == DEFAULT_SCHEDULER:
            return type(self.pipeline.scheduler).from_config(self.pipeline.scheduler.config)
        spec = SCHEDULERS[name]
        return getattr(diffusers, spec.class_name).from_config(self.pipeline.scheduler.config, **spec.config)

    def _prepare_conditioning(self, request: BatchRequest, guided: bool) -> dict[str, Any]:
        rows = [*request.negatives, *request.prompts] if guided else list(request.prompts)
        conditioning: dict[str, Any] = {"encoder_hidden_states": torch.stack([row.hidden for row in rows])}
        width = self.unet.config.get("time_cond_proj_dim")
        if width is not None:
            # Latent consistency models (Luo et al. 2023): the scale counts from 1, the number without guidance.
            scales = torch.full([len(rows)], request.key.guidance_scale - 1)
            embedded = self.pipeline.get_guidance_scale_embedding(scales, embedding_dim=width)
            conditioning["timestep_cond"] = embedded.to(self.device, self.dtype)
        pooled = [row.pooled for row in rows if row.pooled is not None]
        if self.unet.config.get("addition_embed_type") == "text_time":
            # SDXL's micro-conditioning: original size, crop corner, target size.
            size = [request.key.height, request.key.width]
            times = torch.tensor([[*size, 0, 0, *size]] * len(rows), dtype=self.dtype, device=self.device)
            conditioning["added_cond_kwargs"] = {"text_embeds": torch.stack(pooled), "time_ids": times}
        return conditioning


def _zero_embedding(embedding: PromptEmbedding) -> PromptEmbedding:
    pooled = None if embedding.pooled is None else torch.zeros_like(embedding.pooled)
    return PromptEmbedding(torch.zeros_like(embedding.hidden), pooled)
