"""Flux's attention in E4M3 between its 8-bit layers: query, key, value and the softmax's weights, static scales.

Query and key are normalised, which bounds them by what their norms' weights are; a value is what its layer was seen to
give; a result is a mean of values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor
from torch import nn

from dgate_core.errors import MissingExtraError
from dgate_core.quant.plan import QuantPlan

_LARGEST: Final = 448.0
_WIDEST: Final = 128
"""Channels of a head that cuDNN's kernel takes on Hopper."""


class Fp8FluxAttention:
    """Takes the place of FluxAttnProcessor.

    Args:
        query: Greatest absolute value of the query.
        key: Of the key.
        value: Of the value, and of the result.
        device: Where it computes.
    """

    def __init__(self, query: float, key: float, value: float, device: torch.device) -> None:
        from dgate_core.kernels.attention import make_scales

        by_query, by_key, by_value = (_LARGEST / each for each in (query, key, value))
        # Tensors, not numbers, so that torch.compile takes one graph for all blocks of a kind.
        self.factors = torch.tensor([by_query, by_key, by_value], device=device)
        self.scales = make_scales(by_query, by_key, by_value, by_value, device)

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """See `FluxAttnProcessor`; the text's tokens come first."""
        assert attention_mask is None, "Flux attends to all tokens"
        sides = [_project(hidden_states, attn.to_q, attn.to_k, attn.to_v, attn.norm_q, attn.norm_k)]
        if encoder_hidden_states is not None:
            added = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj, attn.norm_added_q, attn.norm_added_k)
            sides.insert(0, _project(encoder_hidden_states, *added))
        query, key, value = (torch.cat(parts, dim=1) for parts in zip(*sides, strict=True))
        if image_rotary_emb is not None:
            query, key = (apply_rotary_emb(each, image_rotary_emb, sequence_dim=1) for each in (query, key))
        rounded = [self._round(each, number) for number, each in enumerate((query, key, value))]
        found = torch.ops.dgate.attention(*rounded, self.scales)
        result = (found.float() / self.factors[2]).to(hidden_states.dtype).flatten(2)
        if encoder_hidden_states is None:
            return result
        words = encoder_hidden_states.shape[1]
        return attn.to_out[1](attn.to_out[0](result[:, words:])), attn.to_add_out(result[:, :words])

    def _round(self, values: torch.Tensor, number: int) -> torch.Tensor:
        return (values.float() * self.factors[number]).clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)


def _project(
    tokens: torch.Tensor, to_q: nn.Module, to_k: nn.Module, to_v: nn.Module, norm_q: nn.RMSNorm, norm_k: nn.RMSNorm
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value, (N, tokens, heads, channels) each."""
    channels = norm_q.normalized_shape[0]
    query, key, value = (layer(tokens).unflatten(-1, (-1, channels)) for layer in (to_q, to_k, to_v))
    return norm_q(query), norm_k(key), value


def list_attentions(denoiser: nn.Module, plan: QuantPlan) -> Iterator[tuple[FluxAttention, float]]:
    """Attentions that may be quantised, and how great their values were seen to be."""
    for name, module in denoiser.named_modules():
        if type(module) is not FluxAttention or not _is_plain(module):
            continue
        layers = [f"{name}.to_v"] + ([f"{name}.add_v_proj"] if module.added_kv_proj_dim is not None else [])
        if all(layer in plan.layers for layer in layers):
            ends = [plan.layers[layer] for layer in layers]
            yield module, max(max(abs(each.output_low), abs(each.output_high), 1e-12) for each in ends)


def has_attentions(denoiser: nn.Module, plan: QuantPlan) -> bool:
    """Whether there is one that may be quantised."""
    return next(list_attentions(denoiser, plan), None) is not None


def quantise_attentions(denoiser: nn.Module, plan: QuantPlan, device: torch.device) -> None:
    """Puts `Fp8FluxAttention` where the plan's values allow, in place.

    Raises:
        MissingExtraError: on CUDA without cuDNN's frontend.
    """
    from dgate_core.kernels import ops  # noqa: F401 - defines torch.ops.dgate
    from dgate_core.kernels.attention import is_installed

    if device.type == "cuda" and not is_installed():
        raise MissingExtraError("nvidia-cudnn-frontend", "fp8-attention")
    # The quantised layers are in place already, so the plan alone says which they are.
    for attention, value in list(list_attentions(denoiser, plan)):
        query, key = (_bound(attention, name) for name in ("q", "k"))
        attention.set_processor(Fp8FluxAttention(query, key, value, device))


def _bound(attention: FluxAttention, name: str) -> float:
    """A vector of unit mean square has no part above the root of its length; rotations keep pairs' lengths."""
    norms = [getattr(attention, f"norm_{name}"), getattr(attention, f"norm_added_{name}", None)]
    greatest = [1.0 if norm.weight is None else float(norm.weight.abs().max()) for norm in norms if norm is not None]
    return max(*greatest, 1e-12) * float(attention.head_dim**0.5)


def _is_plain(attention: Any) -> bool:
    norms = (attention.norm_q, attention.norm_k)
    return (
        type(attention.processor) is FluxAttnProcessor
        and not attention.fused_projections
        and attention.head_dim % 16 == 0
        and attention.head_dim <= _WIDEST
        and all(type(norm) is nn.RMSNorm for norm in norms)
    )
