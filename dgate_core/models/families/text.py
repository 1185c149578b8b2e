"""Prompts to embeddings, for one CLIP text encoder (SD) or two (SDXL)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dgate_core.models.families.contract import PromptEmbedding


class PromptEncoder:
    """The text side of a diffusers pipeline.

    Args:
        pipeline: Has tokenizer and text_encoder, and for SDXL tokenizer_2 and text_encoder_2.
        device: Where the encoders are.
    """

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        self.device = device
        pairs = [("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")]
        self._towers = [
            (getattr(pipeline, tokenizer), getattr(pipeline, encoder))
            for tokenizer, encoder in pairs
            if getattr(pipeline, tokenizer, None) is not None
        ]
        self._is_double = len(self._towers) == 2

    def encode(self, prompts: Sequence[str]) -> list[PromptEmbedding]:
        """One embedding per prompt; a prompt over the encoder's limit is cut, with a warning that says so."""
        hidden, pooled = [], None
        for tokenizer, encoder in self._towers:
            ids = tokenizer(
                list(prompts),
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
            mask = ids.attention_mask.to(self.device) if getattr(encoder.config, "use_attention_mask", False) else None
            output = encoder(ids.input_ids.to(self.device), attention_mask=mask, output_hidden_states=self._is_double)
            # SDXL reads the last layer but one, and the second encoder's pooled projection.
            hidden.append(output.hidden_states[-2] if self._is_double else output[0])
            pooled = output[0] if self._is_double else None
        states = torch.cat(hidden, dim=-1)
        tokenizer = self._towers[0][0]
        warnings = [warn_if_cut(tokenizer, tokenizer.model_max_length, prompt) for prompt in prompts]
        return [
            PromptEmbedding(states[row], None if pooled is None else pooled[row], warnings[row])
            for row in range(len(prompts))
        ]


def warn_if_cut(tokenizer: Any, limit: int, prompt: str) -> tuple[str, ...]:
    """One warning when the text encoder does not read the whole prompt."""
    if len(prompt) + 2 <= limit:
        return ()  # every token is at least one character
    count = len(tokenizer(prompt, truncation=False).input_ids)
    return (f"prompt_truncated: {count} tokens, the text encoder reads {limit}",) if count > limit else ()
