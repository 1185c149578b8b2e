"""The dialects of Stable Diffusion 3, Flux.1, Flux.2, Qwen-Image, PixArt-Sigma and Z-Image, see `dialect`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
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


class Flux2(PackedDialect):
    """Flux.2: three layers of a language model's states; a picture's 2 x 2 patches have a batch norm of their own.

    `dev` (Mistral) has guidance as an input, `klein` (Qwen3) a negative prompt, or nothing when it is distilled.
    """

    text_limit = 512

    def encode_texts(self, prompts: list[str]) -> EncodedTexts:
        """See `Dialect`; padding counts as text, as in the pipeline."""
        hidden, _ = self.pipeline.encode_prompt(prompts, device=self.device, max_sequence_length=self.limit)
        return hidden, None, None

    def warn(self, prompt: str) -> tuple[str, ...]:
        """See `Dialect`; the chat around the prompt counts too."""
        tokenizer = self.pipeline.tokenizer
        return warn_if_cut(getattr(tokenizer, "tokenizer", tokenizer), self.limit, self.write_chat(prompt))

    def write_chat(self, prompt: str) -> str:
        """What the language model reads: with a system's message for Mistral, and the mark of an answer for Qwen3."""
        if hasattr(self.pipeline, "system_message"):
            said = {"system": self.pipeline.system_message, "user": prompt}
            parts = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said.items()]
            return str(self.pipeline.tokenizer.apply_chat_template(parts, tokenize=False))
        asked = [{"role": "user", "content": prompt}]
        how = {"add_generation_prompt": True, "enable_thinking": False}
        return str(self.pipeline.tokenizer.apply_chat_template(asked, tokenize=False, **how))

    def is_guided(self, guidance_scale: float) -> bool:
        """See `Dialect`."""
        takes_negatives = "is_distilled" in self.pipeline.config and not self.pipeline.config["is_distilled"]
        return takes_negatives and guidance_scale > 1

    def condition(self, rows: Sequence[PromptEmbedding], key: BatchKey) -> Conditioning:
        """See `Dialect`; a position is (time, row, column, word)."""
        side = 2 * self.pipeline.vae_scale_factor
        height, width = (torch.arange(pixels // side, device=self.device) for pixels in (key.height, key.width))
        zero, words = height.new_zeros(1), torch.arange(len(rows[0].hidden), device=self.device)
        return {
            "encoder_hidden_states": stack_hidden(rows),
            "guidance": self.embed_guidance(rows, key),
            "txt_ids": torch.cartesian_prod(zero, zero, zero, words),
            "img_ids": torch.cartesian_prod(zero, height, width, zero),
        }

    def set_timesteps(self, scheduler: Any, key: BatchKey) -> None:
        """See `Dialect`; the shift was fitted to the number of steps too."""
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        steps = key.num_inference_steps
        is_plain = scheduler.config.get("use_flow_sigmas")
        sigmas = {"num_inference_steps": steps} if is_plain else {"sigmas": np.linspace(1.0, 1 / steps, steps)}
        shift = compute_empirical_mu(self.count_tokens(key), steps)
        scheduler.set_timesteps(device=self.device, mu=shift, **sigmas)
        scheduler.set_begin_index(0)

    def pack(self, noise: torch.Tensor) -> torch.Tensor:
        """(N, C, h, w) → (N, h/2 * w/2, 4C): the pipeline draws its noise patch by patch, number for number."""
        rows, channels, height, width = noise.shape
        return noise.reshape(rows, 4 * channels, height // 2 * (width // 2)).transpose(1, 2)

    def unpack(self, latents: torch.Tensor, key: BatchKey) -> torch.Tensor:
        """See `Dialect`; scaled by the batch norm's own statistics."""
        side, rows = 2 * self.pipeline.vae_scale_factor, len(latents)
        height, width = key.height // side, key.width // side
        norm, smallest = self.pipeline.vae.bn, self.pipeline.vae.config.batch_norm_eps
        scaled = latents * torch.sqrt(norm.running_var.float() + smallest) + norm.running_mean.float()
        patches = scaled.transpose(1, 2).reshape(rows, -1, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
        return patches.reshape(rows, -1, 2 * height, 2 * width)


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
    "Flux2Pipeline": Flux2,
    "Flux2KleinPipeline": Flux2,
    "PixArtSigmaPipeline": PixArtSigma,
    "QwenImagePipeline": QwenImage,
    "ZImagePipeline": ZImage,
}
"""diffusers pipeline class → how it talks."""
