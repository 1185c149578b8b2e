"""The dialects of Stable Diffusion 3, Flux.1, Qwen-Image, PixArt-Sigma and Z-Image, see `dialect`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from dgate_core.manifest.item import BatchKey
from dgate_core.models.families.contract import DenoiserCall, PromptEmbedding
from dgate_core.models.families.dialect import (
    Conditioning,
    Dialect,
    EncodedTexts,
    PackedDialect,
    stack_hidden,
    stack_masks,
    stack_pooled,
)
from dgate_core.models.families.text import warn_if_cut


class StableDiffusion3(Dialect):
    """Stable Diffusion 3 and 3.5: two CLIP encoders and T5, guidance by a negative prompt."""

    longest_tokenizer = "tokenizer_3"

    def encode_texts(self, prompts: list[str]) -> EncodedTexts:
        """See `Dialect`."""
        hidden, _, pooled, _ = self.pipeline.encode_prompt(
            prompts, None, None, self.device, do_classifier_free_guidance=False, max_sequence_length=self.limit
        )
        return hidden, pooled, None

    def warn(self, prompt: str) -> tuple[str, ...]:
        """See `Dialect`; without a third encoder, or with a shorter one, CLIP reads the most."""
        if self.pipeline.tokenizer_3 is not None and self.limit > self.pipeline.tokenizer_max_length:
            return super().warn(prompt)
        return warn_if_cut(self.pipeline.tokenizer, self.pipeline.tokenizer_max_length, prompt)

    def condition(self, rows: Sequence[PromptEmbedding], key: BatchKey) -> Conditioning:  # noqa: ARG002
        """See `Dialect`."""
        return {"encoder_hidden_states": stack_hidden(rows), "pooled_projections": stack_pooled(rows)}

    def set_timesteps(self, scheduler: Any, key: BatchKey) -> None:
        """See `Dialect`."""
        shift = self.interpolate_shift(key, 1.16) if scheduler.config.get("use_dynamic_shifting") else None
        scheduler.set_timesteps(key.num_inference_steps, device=self.device, mu=shift)
        scheduler.set_begin_index(0)


class Flux(PackedDialect):
    """Flux.1: a CLIP summary and T5; guidance is an input (dev) or nothing (schnell), never a negative prompt."""

    text_limit = 512
    longest_tokenizer = "tokenizer_2"

    def encode_texts(self, prompts: list[str]) -> EncodedTexts:
        """See `Dialect`."""
        hidden, pooled, _ = self.pipeline.encode_prompt(
            prompts, None, device=self.device, max_sequence_length=self.limit
        )
        return hidden, pooled, None

    def is_guided(self, guidance_scale: float) -> bool:  # noqa: ARG002 - as of every dialect
        """See `Dialect`."""
        return False

    def condition(self, rows: Sequence[PromptEmbedding], key: BatchKey) -> Conditioning:
        """See `Dialect`; a patch's position is (0, row, column), a word has none."""
        side = 2 * self.pipeline.vae_scale_factor
        height, width = (torch.arange(pixels // side, device=self.device) for pixels in (key.height, key.width))
        return {
            "encoder_hidden_states": stack_hidden(rows),
            "pooled_projections": stack_pooled(rows),
            "guidance": self.embed_guidance(rows, key),
            "txt_ids": torch.zeros(len(rows[0].hidden), 3, device=self.device, dtype=self.dtype),
            "img_ids": torch.cartesian_prod(height.new_zeros(1), height, width).to(self.dtype),
        }


class QwenImage(PackedDialect):
    """Qwen-Image: a language model's states, as many as the prompt has tokens; guidance keeps the prediction's length.

    Every prompt is padded to the same number of tokens, so that a picture does not depend on its batch's longest.
    """

    text_limit = 512

    def encode_texts(self, prompts: list[str]) -> EncodedTexts:
        """See `Dialect`."""
        hidden, mask = self.pipeline.encode_prompt(prompts, self.device, max_sequence_length=self.limit)
        mask = torch.ones(hidden.shape[:2], dtype=torch.long, device=self.device) if mask is None else mask
        missing = self.limit - hidden.shape[1]
        return functional.pad(hidden, (0, 0, 0, missing)), None, functional.pad(mask, (0, missing))

    def condition(self, rows: Sequence[PromptEmbedding], key: BatchKey) -> Conditioning:
        """See `Dialect`."""
        side = 2 * self.pipeline.vae_scale_factor
        return {
            "encoder_hidden_states": stack_hidden(rows),
            "encoder_hidden_states_mask": stack_masks(rows),
            "guidance": self.embed_guidance(rows, key),
            "img_shapes": [[(1, key.height // side, key.width // side)]] * len(rows),
        }

    def guide(self, without: torch.Tensor, told: torch.Tensor, scale: float) -> torch.Tensor:
        """See `Dialect`."""
        guided = super().guide(without, told, scale)
        kept: torch.Tensor = guided * (told.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
        return kept

    def unpack(self, latents: torch.Tensor, key: BatchKey) -> torch.Tensor:
        """See `Dialect`; the decoder is a video's, with one frame."""
        return super().unpack(latents, key).unsqueeze(2)


class PixArtSigma(Dialect):
    """PixArt-Sigma: T5 by cross-attention, predicts noise (and its variance, which is left out), any scheduler."""

    text_limit = 300

    def encode_texts(self, prompts: list[str]) -> EncodedTexts:
        """See `Dialect`."""
        hidden, mask, _, _ = self.pipeline.encode_prompt(
            prompts, do_classifier_free_guidance=False, device=self.device, max_sequence_length=self.limit
        )
        return hidden, None, mask

    def condition(self, rows: Sequence[PromptEmbedding], key: BatchKey) -> Conditioning:  # noqa: ARG002
        """See `Dialect`."""
        return {
            "encoder_hidden_states": stack_hidden(rows),
            "encoder_attention_mask": stack_masks(rows),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        }

    def predict(
        self, call: DenoiserCall, latents: torch.Tensor, timestep: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """See `Dialect`."""
        return super().predict(call, latents, timestep, conditioning)[:, : latents.shape[1]]


class ZImage(PackedDialect):
    """Z-Image: one stream of a language model's states and latents; time runs backwards; guidance adds to the prompt's
    prediction, so that a guidance scale of 0 is none."""

    text_limit = 512

    def encode_texts(self, prompts: list[str]) -> EncodedTexts:
        """See `Dialect`."""
        hidden, _ = self.pipeline.encode_prompt(
            prompts, self.device, do_classifier_free_guidance=False, max_sequence_length=self.limit
        )
        return hidden, None, None

    def condition(self, rows: Sequence[PromptEmbedding], key: BatchKey) -> Conditioning:  # noqa: ARG002
        """See `Dialect`."""
        return {"cap_feats": [row.hidden for row in rows]}

    def is_guided(self, guidance_scale: float) -> bool:
        """See `Dialect`."""
        return guidance_scale > 0

    def guide(self, without: torch.Tensor, told: torch.Tensor, scale: float) -> torch.Tensor:
        """See `Dialect`."""
        return told + scale * (told - without)

    def pack(self, noise: torch.Tensor) -> torch.Tensor:
        """See `Dialect`: the transformer makes its patches itself."""
        return noise

    def unpack(self, latents: torch.Tensor, key: BatchKey) -> torch.Tensor:  # noqa: ARG002
        """See `Dialect`."""
        return latents

    def predict(
        self, call: DenoiserCall, latents: torch.Tensor, timestep: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """See `Dialect`; each picture goes in and comes out as a video of one frame."""
        frames = list(latents.to(self.dtype).unsqueeze(2).unbind())
        share = ((1000 - timestep) / 1000).expand(len(latents))
        predicted = call(frames, share, **conditioning)
        return -torch.stack([each.float() for each in predicted]).squeeze(2)


DIALECTS: Mapping[str, type[Dialect]] = {
    "StableDiffusion3Pipeline": StableDiffusion3,
    "FluxPipeline": Flux,
    "PixArtSigmaPipeline": PixArtSigma,
    "QwenImagePipeline": QwenImage,
    "ZImagePipeline": ZImage,
}
"""diffusers pipeline class → how it talks."""
