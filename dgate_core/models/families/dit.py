"""Latent diffusion with a transformer: Stable Diffusion 3, Flux, PixArt-Sigma, Qwen-Image, Z-Image, starter-dit.

Peebles and Xie, Scalable Diffusion Models with Transformers, 2023; Esser et al., Scaling Rectified Flow Transformers,
2024. What differs from one to the next is in `dialects`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from dgate_core.manifest.item import BatchKey
from dgate_core.models.families.contract import BatchRequest, LoadOptions, PromptEmbedding
from dgate_core.models.families.dialects import DIALECTS
from dgate_core.models.families.latent import LatentModel
from dgate_core.models.families.loading import check_weights_are_whole, load_pipeline
from dgate_core.models.families.placement import place_pipeline
from dgate_core.models.savers.guidance import count_guided_steps
from dgate_core.models.spec import LocalCheckpoint


class DiTFamily:
    """Loads the transformer pipelines of DIALECTS."""

    def load(self, checkpoint: LocalCheckpoint, options: LoadOptions) -> DiTModel:
        """Reads safetensors only.

        Raises:
            ModelError: the weights do not fit the configs.
        """
        pipeline = load_pipeline(checkpoint, getattr(torch, options.precision))
        check_weights_are_whole(pipeline, checkpoint)
        device = torch.device(options.device)
        place_pipeline(pipeline, device, options.memory, pipeline.transformer if options.denoiser_waits else None)
        model = DiTModel(checkpoint, pipeline, device)
        model.memory = options.memory
        return model


class DiTModel(LatentModel):
    """A latent diffusion checkpoint with a transformer on a device."""

    def __init__(self, checkpoint: LocalCheckpoint, pipeline: Any, device: torch.device) -> None:
        super().__init__(checkpoint, pipeline, pipeline.transformer, device)
        self.transformer = pipeline.transformer
        self.dialect = DIALECTS[checkpoint.pipeline_class](pipeline, checkpoint.spec.max_sequence_length, device)

    def encode_together(self, prompts: Sequence[str]) -> list[PromptEmbedding]:
        """See `LatentModel`."""
        return self.dialect.encode(prompts)

    def reads_negatives(self, guidance_scale: float) -> bool:
        """See `LoadedModel`."""
        return self.dialect.is_guided(guidance_scale)

    def draw_decodable(self, key: BatchKey, pictures: int) -> torch.Tensor:
        """See `LatentModel`."""
        return self.dialect.unpack(self.dialect.pack(super().draw_decodable(key, pictures)), key)

    def denoise(self, request: BatchRequest) -> torch.Tensor:
        """See `LatentModel`; with guidance both predictions come from one forward pass."""
        key, dialect = request.key, self.dialect
        scheduler = dialect.make_scheduler(key)
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in request.seeds]
        latents = dialect.pack(self.draw_noise(key, generators)) * getattr(scheduler, "init_noise_sigma", 1.0)
        guided = self.reads_negatives(key.guidance_scale)
        rows = [*request.negatives, *request.prompts] if guided else list(request.prompts)
        conditioning = dialect.condition(rows, key)
        extra = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
        guided_steps = count_guided_steps(len(scheduler.timesteps), self.guidance_stop)
        for number, timestep in enumerate(scheduler.timesteps):
            if guided and number == guided_steps:
                guided, conditioning = False, dialect.condition(request.prompts, key)
            samples = torch.cat([latents, latents]) if guided else latents
            if hasattr(scheduler, "scale_model_input"):
                samples = scheduler.scale_model_input(samples, timestep)
            prediction = dialect.predict(self.call_denoiser, samples, timestep, conditioning).float()
            if guided:
                without, told = prediction.chunk(2)
                prediction = dialect.guide(without, told, key.guidance_scale)
            latents = scheduler.step(prediction, timestep, latents, return_dict=False, **extra)[0]
        return dialect.unpack(latents, key)
