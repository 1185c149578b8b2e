"""The text side of starter-dit: StableDiffusion3Pipeline's three encoders at postcard size.

All three stay as they are while the transformer learns, which makes a step a third cheaper. The first is starter-unet's
encoder, which has learned to parse captions; the second gives a code for each word; the third answers zeros for every
text, as the pipeline does where its T5 is left out, because a pipeline folder without one does not open. The number of
those zeros (`max_sequence_length`) varies in training, so that any will do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from finetune.starter.networks import text_settings
from finetune.starter.profiles import Widths
from finetune.starter.words import WordVocabulary

_WORD_SPREAD = 0.3
_WORD_SEED = 3


class CaptionTowers(nn.Module):
    """Both CLIP encoders, read as `StableDiffusion3Pipeline.encode_prompt` reads them."""

    def __init__(self, widths: Widths, vocabulary: WordVocabulary) -> None:
        super().__init__()
        # The pipeline reads the last layer but one, so each has one more, which passes on what it gets.
        self.parse = build_tower(widths.text, widths.text_layers + 1, vocabulary)
        self.words = build_tower(widths.dit_words, 1, vocabulary)
        codes = torch.Generator().manual_seed(_WORD_SEED)
        for embedding in (part for part in self.words.modules() if isinstance(part, nn.Embedding)):
            nn.init.normal_(embedding.weight, std=_WORD_SPREAD, generator=codes)
        # As the exported files hold them, so that a training goes on from those exactly as it began.
        self.half().float().requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (N, CONTEXT_LENGTH, joint width) and pooled (N, joint width) of token ids (N, CONTEXT_LENGTH)."""
        told = [tower(input_ids=tokens, output_hidden_states=True) for tower in (self.parse, self.words)]
        hidden = torch.cat([each.hidden_states[-2] for each in told], dim=-1)
        return hidden, torch.cat([each.text_embeds for each in told], dim=-1)

    def load_parser(self, file: Path) -> None:
        """Takes the layers of starter-unet's text encoder for those that the pipeline reads.

        Raises RuntimeError when the file has a tensor that does not fit.
        """
        own = {key.removeprefix("text_model."): key for key in self.parse.state_dict()}
        weights = {own.get(key.removeprefix("text_model."), key): value for key, value in load_file(file).items()}
        # What the file has not is the layer that passes on.
        unexpected = self.parse.load_state_dict(weights, strict=False).unexpected_keys
        if unexpected:
            raise RuntimeError(f"{file} has {unexpected[0]}, which the text encoder of this profile has not")


def joint_width(widths: Widths) -> int:
    """Width of a caption's features: both encoders side by side."""
    return widths.text + widths.dit_words


def build_tower(width: int, layers: int, vocabulary: WordVocabulary) -> CLIPTextModelWithProjection:
    """A CLIP text encoder whose last layer and whose projection pass on what they get."""
    settings = text_settings(width, layers, vocabulary)
    tower = CLIPTextModelWithProjection(CLIPTextConfig(**settings, projection_dim=width))
    last: Any = next(part for part in tower.modules() if isinstance(part, nn.ModuleList))[-1]
    with torch.no_grad():
        for layer in (last.self_attn.out_proj, last.mlp.fc2):
            layer.weight.zero_()
            layer.bias.zero_()
        nn.init.eye_(tower.text_projection.weight)
    return tower


def build_silent_tower(widths: Widths, vocabulary: WordVocabulary) -> T5EncoderModel:
    """A T5 encoder that answers zeros: the scale of its last norm is zero."""
    config = T5Config(
        vocab_size=len(vocabulary.tokens),
        d_model=joint_width(widths),
        d_kv=1,
        d_ff=1,
        num_layers=1,
        num_heads=1,
        pad_token_id=vocabulary.end_id,
        eos_token_id=vocabulary.end_id,
    )
    tower = T5EncoderModel(config)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.zero_()
    return tower
