"""The transformer of starter-dit: SD3's MMDiT (Esser et al. 2024) at postcard size, and how it is trained on a CPU."""

from __future__ import annotations

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from diffusers.models.attention_processor import Attention
from torch import nn

from finetune.starter.captions import joint_width
from finetune.starter.networks import LATENT_CHANNELS, LATENT_SIZE
from finetune.starter.profiles import Widths

_PATCH_SIZE = 2
_LARGEST_GRID = 16
_PARSER_SPREAD = 5.0


def build_transformer(widths: Widths) -> SD3Transformer2DModel:
    """Velocity of latents (8, 16, 16) in 64 patches; every block begins as the identity (adaLN-zero, Peebles 2023)."""
    heads = max(1, widths.dit // widths.dit_head)
    transformer = SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=_PATCH_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=widths.dit_layers,
        attention_head_dim=widths.dit // heads,
        num_attention_heads=heads,
        joint_attention_dim=joint_width(widths),
        caption_projection_dim=widths.dit,
        pooled_projection_dim=joint_width(widths),
        pos_embed_max_size=_LARGEST_GRID,
    )
    prepare_weights(transformer, widths)
    return transformer


@torch.no_grad()
def prepare_weights(transformer: SD3Transformer2DModel, widths: Widths) -> None:
    """Xavier's initialisation, zero modulation and output."""
    for name, part in transformer.named_modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
        if name.endswith((".norm1.linear", ".norm1_context.linear", "norm_out.linear")) or name == "proj_out":
            nn.init.zeros_(part.weight)
    # Features of the parser come before its last norm and are that much larger than the words'.
    transformer.context_embedder.weight[:, : widths.text] /= _PARSER_SPREAD


def build_flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Straight paths from noise to latents (Lipman et al. 2023), more steps where the layout is decided."""
    return FlowMatchEulerDiscreteScheduler(shift=2.0)


class CountedAttention:
    """SD3's joint attention whose last text token stands for several equal ones.

    Equal tokens stay equal through every block, so one with the logarithm of their number added to its score gives what
    all of them give. Written with plain products: the backward pass of PyTorch's fused attention is slow on a CPU.
    """

    def __init__(self) -> None:
        self.log_counts: torch.Tensor | None = None

    def set_counts(self, counts: torch.Tensor) -> None:
        """How many tokens the last one stands for, float (N,)."""
        self.log_counts = counts.log().view(-1, 1, 1)

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        **_: None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attended image tokens (N, 64, width) and text tokens (N, T, width)."""
        heads, images, told = attn.heads, hidden_states, encoder_hidden_states
        query = _split_heads(attn.to_q(images), heads)
        if not attn.context_pre_only:
            query = torch.cat([query, _split_heads(attn.add_q_proj(told), heads)], dim=2)
        key = torch.cat([_split_heads(attn.to_k(images), heads), _split_heads(attn.add_k_proj(told), heads)], dim=2)
        value = torch.cat([_split_heads(attn.to_v(images), heads), _split_heads(attn.add_v_proj(told), heads)], dim=2)
        scores = query.flatten(0, 1) @ (key * key.shape[-1] ** -0.5).flatten(0, 1).transpose(1, 2)
        if self.log_counts is not None:
            # In place, in the one column: the product's own result is not needed for its gradient.
            scores[..., -1:] += self.log_counts.repeat_interleave(heads, dim=0)
        mixed = (
            (scores.softmax(dim=-1).to(value.dtype) @ value.flatten(0, 1))
            .unflatten(0, (-1, heads))
            .transpose(1, 2)
            .flatten(2)
        )
        seen, read = mixed[:, : images.shape[1]], mixed[:, images.shape[1] :]
        # The last block's text is read by nobody.
        return attn.to_out[0](seen), told if attn.context_pre_only else attn.to_add_out(read)


def _split_heads(features: torch.Tensor, heads: int) -> torch.Tensor:
    return features.unflatten(-1, (heads, -1)).transpose(1, 2)
