"""diffusers' blocks with the same layers and another forward, which computes the same by fewer passes over memory."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, Final

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_blocks import CrossAttnDownBlock2D, CrossAttnUpBlock2D, UpBlock2D
from torch import nn

from dgate_core.backends.fused_steps import (
    Words,
    attend,
    convolve,
    enter,
    feed_forward,
    leave,
    normalise_groups,
    normalise_rows,
    read_words,
)
from dgate_core.errors import ModelError

_PLAIN: Final = AttnProcessor2_0.__name__
_QUERIES_AT_ONCE: Final = 4096
"""Rows of scores that lie in memory at once; 256 MiB at a picture of 1,024 pixels."""


class FusedNorm(nn.GroupNorm):
    """Group normalisation followed by SiLU, for an output layer whose own activation becomes nothing."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) → the same shape."""
        return normalise_groups(self, pictures, silu=True)


class FusedResnet(ResnetBlock2D):
    """SiLU inside the normalisation, which writes what the convolution takes."""

    def forward(self, input_tensor: torch.Tensor, temb: torch.Tensor | None = None, *_: Any, **__: Any) -> torch.Tensor:
        """See `ResnetBlock2D`."""
        shift = None
        if temb is not None:
            if self.time_emb_proj is None:
                return super().forward(input_tensor, temb)
            shift = self.time_emb_proj(temb if self.skip_time_act else self.nonlinearity(temb))
        hidden = normalise_groups(self.norm1, input_tensor, silu=True, into=self.conv1)
        hidden = convolve(self.conv1, hidden, input_tensor.dtype, shift)
        hidden = normalise_groups(self.norm2, hidden, silu=True, into=self.conv2)
        residual = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        return residual + convolve(self.conv2, hidden, input_tensor.dtype)


class FusedBlock(BasicTransformerBlock):
    """Sums with the stream inside the normalisation, which writes what the next product takes."""

    shares_input = False
    """Whether query, key and value take the same numbers of 8 bits."""

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | Words | None = None, **given: Any
    ) -> torch.Tensor:
        """See `BasicTransformerBlock`; the text may come as its keys and values, and for two halves of which the stream
        is one."""
        assert not any(value is not None for value in given.values()), given.keys()
        stream, dtype = hidden_states, hidden_states.dtype
        _, normal = normalise_rows(self.norm1, stream, into=self.attn1.to_q if self.shares_input else None)
        added = attend(self.attn1, normal, None, dtype)
        if self.attn2 is not None:
            words = encoder_hidden_states
            words = words if isinstance(words, tuple) else read_words(self.attn2, words)
            if words is not None and len(words[0]) == 2 * len(stream):
                stream, added = torch.cat([stream, stream]), torch.cat([added, added])
            into = None if words is None else self.attn2.to_q
            stream, normal = normalise_rows(self.norm2, added, stream, into=into)
            added = attend(self.attn2, normal, words, dtype)
        stream, normal = normalise_rows(self.norm3, added, stream, into=self.ff.net[0].proj)
        return feed_forward(self.ff.net, normal, dtype) + stream


class FusedTransformer(Transformer2DModel):
    """Pictures stay channels last, and a text's keys and values are computed once for all steps of a batch."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        return_dict: bool = True,
        **given: Any,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """See `Transformer2DModel`."""
        self._check(given)
        height, width = hidden_states.shape[2:]
        tokens = enter(self.norm, self.proj_in, hidden_states)
        for block, words in zip(self.transformer_blocks, self._read(encoder_hidden_states), strict=True):
            tokens = block(tokens, encoder_hidden_states=words)
        if len(tokens) == 2 * len(hidden_states):
            hidden_states = torch.cat([hidden_states, hidden_states])
        pictures = leave(self.proj_out, tokens.unflatten(1, (height, width)), hidden_states)
        return Transformer2DModelOutput(sample=pictures) if return_dict else (pictures,)

    def _check(self, given: Mapping[str, Any]) -> None:
        """What came after the kernels were put in would be left out of the pictures without a word."""
        strange = [name for name, value in given.items() if value is not None]
        attentions = [each for block in self.transformer_blocks for each in (block.attn1, block.attn2)]
        strange += {type(each.processor).__name__ for each in attentions if each is not None} - {_PLAIN}
        if strange:
            raise _refuse(", ".join(strange))

    def _read(self, text: torch.Tensor | None) -> list[Words | None]:
        if text is None:
            return [None] * len(self.transformer_blocks)
        known = self.__dict__.get("_known_text")
        if known is None or known() is not text:
            here, attentions = weakref.ref(self), [block.attn2 for block in self.transformer_blocks]
            self.__dict__["_words"] = [None if each is None else read_words(each, text) for each in attentions]
            self.__dict__["_known_text"] = weakref.ref(text, lambda _: _forget(here))
        return self.__dict__["_words"]


def _forget(transformer: weakref.ref[FusedTransformer]) -> None:
    """The text is gone, and with it what it was good for; a batch's words are hundreds of megabytes."""
    if (here := transformer()) is not None:
        here.__dict__.pop("_words", None)
        here.__dict__.pop("_known_text", None)


class FusedCrossDown(CrossAttnDownBlock2D):
    """The first level. Until a text is read, both halves of guidance are the same, and computed once."""

    halves_alike = False
    """Whether the second half of the samples repeats the first; the texts differ."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        temb: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        additional_residuals: torch.Tensor | None = None,
        **given: Any,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """See `CrossAttnDownBlock2D`."""
        skips: list[torch.Tensor] = []
        alone = len(hidden_states) // 2 if self.halves_alike else len(hidden_states)
        hidden = hidden_states[:alone]
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            hidden = resnet(hidden, temb if temb is None else temb[: len(hidden)])
            hidden = attention(hidden, encoder_hidden_states, return_dict=False, **given)[0]
            skips.append(hidden)
        if additional_residuals is not None:
            hidden = skips[-1] = hidden + additional_residuals
        for downsampler in self.downsamplers or ():
            hidden = downsampler(hidden)
            skips.append(hidden)
        return hidden, tuple(skips)


class FusedUp(UpBlock2D):
    """Joins the stream and what was skipped by one pass."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        res_hidden_states_tuple: tuple[torch.Tensor, ...],
        temb: torch.Tensor | None = None,
        upsample_size: int | None = None,
    ) -> torch.Tensor:
        """See `UpBlock2D`."""
        _check_freed(self)
        for resnet, skipped in zip(self.resnets, reversed(res_hidden_states_tuple), strict=True):
            hidden_states = resnet(torch.ops.dgate.joining(hidden_states, skipped), temb)
        for upsampler in self.upsamplers or ():
            hidden_states = upsampler(hidden_states, upsample_size)
        return hidden_states


class FusedCrossUp(CrossAttnUpBlock2D):
    """The same with attention to the text."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        res_hidden_states_tuple: tuple[torch.Tensor, ...],
        temb: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        upsample_size: int | None = None,
        **given: Any,
    ) -> torch.Tensor:
        """See `CrossAttnUpBlock2D`."""
        _check_freed(self)
        skips = reversed(res_hidden_states_tuple)
        for resnet, attention, skipped in zip(self.resnets, self.attentions, skips, strict=True):
            hidden_states = resnet(torch.ops.dgate.joining(hidden_states, skipped), temb)
            hidden_states = attention(hidden_states, encoder_hidden_states, return_dict=False, **given)[0]
        for upsampler in self.upsamplers or ():
            hidden_states = upsampler(hidden_states, upsample_size)
        return hidden_states


class WideAttention:
    """A decoder's attention with one wide head, for which PyTorch has no kernel of Hopper's.

    Two products and a softmax, by parts of the queries, with scores in float32 as PyTorch's own are.
    """

    def __init__(self, plain: Any) -> None:
        self.plain = plain

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `AttnProcessor2_0`."""
        given = (encoder_hidden_states, attention_mask, temb)
        tokens = hidden_states.shape[2] * hidden_states.shape[3]
        if any(each is not None for each in given) or not self.fits(hidden_states.dtype, tokens):
            found: torch.Tensor = self.plain(attn, hidden_states, *given)
            return found
        normal = normalise_groups(attn.group_norm, hidden_states, silu=False).permute(0, 2, 3, 1).flatten(1, 2)
        query, key, value = attn.to_q(normal), attn.to_k(normal), attn.to_v(normal)
        rows = torch.empty_like(query)
        for number in range(len(rows)):
            for start in range(0, tokens, _QUERIES_AT_ONCE):
                part = slice(start, start + _QUERIES_AT_ONCE)
                scores = torch.mm(query[number, part], key[number].t(), out_dtype=torch.float32)
                weights = torch.ops.dgate.softmax(scores, query.shape[-1] ** -0.5, rows.dtype)
                torch.mm(weights, value[number], out=rows[number, part])
        pictures = attn.to_out[0](rows).unflatten(1, hidden_states.shape[2:]).permute(0, 3, 1, 2)
        return pictures + hidden_states

    @staticmethod
    def fits(dtype: torch.dtype, tokens: int) -> bool:
        """Whether the products are in 16 bit and a row of scores has a program's size."""
        from dgate_core.kernels.softmax import MOST_KEYS

        return dtype in (torch.bfloat16, torch.float16) and tokens <= MOST_KEYS


def is_freed(block: nn.Module) -> bool:
    """Whether FreeU is on, which weighs what is joined."""
    return any(getattr(block, name, None) for name in ("s1", "s2", "b1", "b2"))


def _check_freed(block: nn.Module) -> None:
    if is_freed(block):
        raise _refuse("FreeU")


def _refuse(what: str) -> ModelError:
    return ModelError(
        f"{what} in a UNet whose blocks D-Gate's kernels compute",
        "what is known when the backend is prepared",
        "load adapters before the model is served, or take the profile exact",
    )
