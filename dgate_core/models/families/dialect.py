"""How a transformer pipeline of diffusers talks to its transformer: text, latents, schedule, guidance.

A dialect holds what `__call__` of the pipeline does around the transformer, so that one loop serves them all; prompts
go through the pipeline's own `encode_prompt`. The dialects themselves are in `dialects`.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import diffusers
import numpy as np
import torch

from dgate_core.manifest.item import BatchKey
from dgate_core.models.families.contract import DenoiserCall, PromptEmbedding
from dgate_core.models.families.text import warn_if_cut
from dgate_core.models.spec import DEFAULT_SCHEDULER, SCHEDULERS

Conditioning = dict[str, Any]
"""Arguments of the transformer that stay the same from step to step."""
EncodedTexts = tuple[Sequence[torch.Tensor] | torch.Tensor, torch.Tensor | None, torch.Tensor | None]
"""Hidden states, pooled embeddings and masks, each row by row; None where the pipeline has none."""


class Dialect(ABC):
    """Classifier-free guidance over a transformer that takes latents as they are; the others change parts of it.

    Args:
        pipeline: On its device.
        max_sequence_length: Tokens of the longest text encoder; None is the pipeline's own number.
        device: Where it computes.
    """

    text_limit = 256
    longest_tokenizer = "tokenizer"

    def __init__(self, pipeline: Any, max_sequence_length: int | None, device: torch.device) -> None:
        self.pipeline, self.transformer, self.device = pipeline, pipeline.transformer, device
        self.limit = max_sequence_length or self.text_limit
        self.dtype: torch.dtype = pipeline.transformer.dtype

    def encode(self, prompts: Sequence[str]) -> list[PromptEmbedding]:
        """One embedding per prompt; a prompt over every encoder's limit is cut, with a warning that says so."""
        with silence_pipeline(self.pipeline):
            hidden, pooled, mask = self.encode_texts(list(prompts))
        return [
            PromptEmbedding(
                hidden[row],
                None if pooled is None else pooled[row],
                self.warn(prompt),
                None if mask is None else mask[row],
            )
            for row, prompt in enumerate(prompts)
        ]

    @abstractmethod
    def encode_texts(self, prompts: list[str]) -> EncodedTexts:
        """All in one pass."""

    @abstractmethod
    def condition(self, rows: Sequence[PromptEmbedding], key: BatchKey) -> Conditioning:
        """What the transformer is told about each row."""

    def warn(self, prompt: str) -> tuple[str, ...]:
        """A warning when not even the longest encoder reads the whole prompt."""
        return warn_if_cut(getattr(self.pipeline, self.longest_tokenizer), self.limit, prompt)

    def is_guided(self, guidance_scale: float) -> bool:
        """Whether the negative prompt is computed too."""
        return guidance_scale > 1

    def guide(self, without: torch.Tensor, told: torch.Tensor, scale: float) -> torch.Tensor:
        """Prediction with guidance, from those of the negative prompt and of the prompt."""
        return without + scale * (told - without)

    def make_scheduler(self, key: BatchKey) -> Any:
        """The checkpoint's own scheduler, or the named one with its config, with its timesteps set."""
        own = self.pipeline.scheduler
        if key.scheduler == DEFAULT_SCHEDULER:
            scheduler = type(own).from_config(own.config)
        else:
            spec = SCHEDULERS[key.scheduler]
            scheduler = getattr(diffusers, spec.class_name).from_config(own.config, **spec.config)
        self.set_timesteps(scheduler, key)
        return scheduler

    def set_timesteps(self, scheduler: Any, key: BatchKey) -> None:
        """Steps as the pipeline spaces them."""
        scheduler.set_timesteps(key.num_inference_steps, device=self.device)

    def pack(self, noise: torch.Tensor) -> torch.Tensor:
        """Latents (N, C, h, w) as the transformer takes them."""
        return noise

    def unpack(self, latents: torch.Tensor, key: BatchKey) -> torch.Tensor:  # noqa: ARG002 - others need it
        """Latents as the decoder takes them."""
        return latents

    def predict(
        self, call: DenoiserCall, latents: torch.Tensor, timestep: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """What the scheduler's step takes, in the transformer's dtype."""
        return call(latents.to(self.dtype), timestep.expand(len(latents)), **conditioning)

    def count_tokens(self, key: BatchKey) -> int:
        """Patches of the picture."""
        side = 2 * int(self.pipeline.vae_scale_factor)
        return (key.height // side) * (key.width // side)

    def interpolate_shift(self, key: BatchKey, max_shift: float = 1.15) -> float:
        """Logarithm of the resolution's shift of the noise levels (Esser et al. 2024), as the pipelines compute it."""
        config = self.pipeline.scheduler.config
        tokens = (config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096))
        shifts = (config.get("base_shift", 0.5), config.get("max_shift", max_shift))
        slope = (shifts[1] - shifts[0]) / (tokens[1] - tokens[0])
        return float(self.count_tokens(key) * slope + shifts[0] - slope * tokens[0])


class PackedDialect(Dialect):
    """Patches of two by two latents as a sequence; noise levels from 1 to 1/steps, shifted by resolution."""

    def set_timesteps(self, scheduler: Any, key: BatchKey) -> None:
        """See `Dialect`."""
        steps = key.num_inference_steps
        sigmas = np.linspace(1.0, 1 / steps, steps)
        scheduler.set_timesteps(sigmas=sigmas, device=self.device, mu=self.interpolate_shift(key))
        # Without it the scheduler looks the first step up on the host, and the device waits.
        scheduler.set_begin_index(0)

    def pack(self, noise: torch.Tensor) -> torch.Tensor:
        """(N, C, h, w) → (N, h/2 * w/2, 4C)."""
        rows, channels, height, width = noise.shape
        patches = noise.reshape(rows, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
        return patches.reshape(rows, -1, 4 * channels)

    def unpack(self, latents: torch.Tensor, key: BatchKey) -> torch.Tensor:
        """The inverse of `pack`."""
        height, width = (2 * (side // (2 * self.pipeline.vae_scale_factor)) for side in (key.height, key.width))
        rows, channels = len(latents), latents.shape[-1] // 4
        patches = latents.reshape(rows, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return patches.reshape(rows, channels, height, width)

    def predict(
        self, call: DenoiserCall, latents: torch.Tensor, timestep: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """See `Dialect`; the timestep goes in as a share of 1000, rounded to the dtype as the pipeline rounds it."""
        return super().predict(call, latents, timestep.to(self.dtype) / 1000, conditioning)

    def embed_guidance(self, rows: Sequence[PromptEmbedding], key: BatchKey) -> torch.Tensor | None:
        """Guidance as an input (N,), for transformers that were distilled from guided ones."""
        if not self.transformer.config.guidance_embeds:
            return None
        return torch.full([len(rows)], key.guidance_scale, device=self.device)


def stack_hidden(rows: Sequence[PromptEmbedding]) -> torch.Tensor:
    """(N, tokens, width)."""
    return torch.stack([row.hidden for row in rows])


def stack_pooled(rows: Sequence[PromptEmbedding]) -> torch.Tensor:
    """(N, width)."""
    return torch.stack([row.pooled for row in rows if row.pooled is not None])


def stack_masks(rows: Sequence[PromptEmbedding]) -> torch.Tensor:
    """(N, tokens)."""
    return torch.stack([row.mask for row in rows if row.mask is not None])


@contextmanager
def silence_pipeline(pipeline: Any) -> Iterator[None]:
    """Keeps back the pipeline's word on cut prompts: each row gets its own warning instead."""
    logger = logging.getLogger(type(pipeline).__module__)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
