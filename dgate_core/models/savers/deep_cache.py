"""DeepCache: between two full steps only the UNet's shallow levels are computed; the deep features are reused.

Ma, Fang and Wang, DeepCache: Accelerating Diffusion Models for Free, 2023.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.unets.unet_2d_blocks import CrossAttnDownBlock2D, CrossAttnUpBlock2D, DownBlock2D, UpBlock2D
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from dgate_core.errors import ModelError

_DOWN, _UP = (DownBlock2D, CrossAttnDownBlock2D), (UpBlock2D, CrossAttnUpBlock2D)


@dataclass(frozen=True, slots=True)
class _Layer:
    """A residual block, with attention to the text and a change of resolution where they follow."""

    resnet: Any
    attention: Any | None
    samplers: tuple[Any, ...] = ()
    """Upsamplers; a downsampler is a layer of its own, because its output is a skip connection too."""


class DeepCache:
    """Takes the place of a UNet's forward and calls the UNet's own layers, compiled and quantised ones included.

    Skip connection 0 is the first convolution's output, 1 the first layer's, and so on; up layer k takes connection k.
    A full step remembers what enters up layer `branch`. A short step computes connections 0 to `branch` anew and goes
    through the up layers `branch` to 0 with what was remembered.

    Args:
        unet: A UNet2DConditionModel of residual and cross-attention blocks.
        interval: Every n-th step is full; 1 is the plain forward.
        branch: Depth of a short step; 0 is the shallowest.

    Raises:
        ModelError: the UNet has blocks of other kinds, or no layer so deep.
    """

    def __init__(self, unet: Any, interval: int, branch: int = 0) -> None:
        check_blocks(unet)
        self.unet, self.interval, self.branch = unet, interval, branch
        self._downs = list(_list_down_layers(unet))
        self._ups = list(_list_up_layers(unet))[::-1]
        if branch >= len(self._ups):
            raise ModelError(
                f"DeepCache's branch {branch} is too deep for a UNet of {len(self._ups)} up layers",
                f"0 to {len(self._ups) - 1}",
                "choose a profile without DeepCache",
            )
        self._kept: torch.Tensor | None = None
        self._step = 0

    @property
    def name(self) -> str:
        """See `StepSaver`."""
        return f"deep-cache-{self.interval}" + (f"-branch-{self.branch}" if self.branch else "")

    def install(self) -> None:
        """From here on the UNet computes by this forward."""
        self.unet.forward = self.forward

    def begin_batch(self, pictures: int) -> None:  # noqa: ARG002 - as of every saver
        """See `StepSaver`."""
        self._kept, self._step = None, 0

    def end_batch(self) -> None:
        """See `StepSaver`."""
        self._kept = None

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor,
        timestep_cond: torch.Tensor | None = None,
        added_cond_kwargs: dict[str, torch.Tensor] | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[torch.Tensor]:
        """As UNet2DConditionModel.forward, without what D-Gate's loop does not pass."""
        unet = self.unet
        embedded = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep), timestep_cond)
        embedding, text = self._embed(embedded, encoder_hidden_states, added_cond_kwargs)
        is_full = self._kept is None or self._step % self.interval == 0
        self._step += 1
        deepest = len(self._ups) - 1 if is_full else self.branch
        skips = self._go_down(sample, embedding, text, deepest)
        hidden = self._cross_middle(skips[-1], embedding, text) if is_full else self._recall(len(sample))
        needs_sizes = any(side % 2**unet.num_upsamplers for side in sample.shape[-2:])
        for depth in range(deepest, -1, -1):
            if is_full and depth == self.branch and self.interval > 1:
                self._kept = hidden
            hidden = _run_layer(self._ups[depth], self.join(hidden, skips[depth]), embedding, text)
            for upsampler in self._ups[depth].samplers:
                hidden = upsampler(hidden, skips[depth - 1].shape[2:] if needs_sizes else None)
        if unet.conv_norm_out:
            hidden = unet.conv_act(unet.conv_norm_out(hidden))
        predicted = unet.conv_out(hidden)
        return UNet2DConditionOutput(sample=predicted) if return_dict else (predicted,)

    def join(self, hidden: torch.Tensor, skipped: torch.Tensor) -> torch.Tensor:
        """The channels of both, by the kernel that a backend brought, or by PyTorch's own."""
        if getattr(self.unet, "joins_by_kernel", False):
            joined: torch.Tensor = torch.ops.dgate.joining(hidden, skipped)
            return joined
        return torch.cat([hidden, skipped], dim=1)

    def _embed(
        self, embedding: torch.Tensor, text: torch.Tensor, added: dict[str, torch.Tensor] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What every layer is told: time (and SDXL's sizes), and the text."""
        unet = self.unet
        more = unet.get_aug_embed(emb=embedding, encoder_hidden_states=text, added_cond_kwargs=added)
        embedding = embedding if more is None else embedding + more
        if unet.time_embed_act is not None:
            embedding = unet.time_embed_act(embedding)
        return embedding, unet.process_encoder_hidden_states(encoder_hidden_states=text, added_cond_kwargs=added)

    def _go_down(
        self, sample: torch.Tensor, embedding: torch.Tensor, text: torch.Tensor, deepest: int
    ) -> list[torch.Tensor]:
        """Skip connections 0 to `deepest`."""
        skips = [self.unet.conv_in(sample)]
        # Until the first layer reads the text, the two halves of guidance are one, where the backend knows it.
        alone = len(sample) // 2 if getattr(self.unet.down_blocks[0], "halves_alike", False) else len(sample)
        for layer in self._downs[:deepest]:
            skips.append(_run_layer(layer, skips[-1][:alone], embedding[:alone], text))
            alone = len(sample)
        return skips

    def _cross_middle(self, hidden: torch.Tensor, embedding: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        middle = self.unet.mid_block
        if middle is None:
            return hidden
        has_attention = getattr(middle, "has_cross_attention", False)
        crossed: torch.Tensor = (
            middle(hidden, embedding, encoder_hidden_states=text) if has_attention else middle(hidden, embedding)
        )
        return crossed

    def _recall(self, rows: int) -> torch.Tensor:
        """Where guidance has stopped, the rows with the prompt are the second half of those that were remembered."""
        assert self._kept is not None
        self._kept = self._kept[-rows:]
        return self._kept


def check_blocks(unet: Any) -> None:
    """Raises ModelError when the UNet is not made of plain residual and cross-attention blocks."""
    strange = [block for block in unet.down_blocks if not isinstance(block, _DOWN)]
    strange += [block for block in unet.up_blocks if not isinstance(block, _UP)]
    if strange or unet.class_embedding is not None or unet.config.center_input_sample:
        what = type(strange[0]).__name__ if strange else "class labels or centred input"
        raise ModelError(
            f"DeepCache does not know a UNet with {what}",
            "down and up blocks of Stable Diffusion 1.x, 2.x or SDXL",
            "choose a profile without DeepCache",
        )


def _list_down_layers(unet: Any) -> Iterator[_Layer | Any]:
    for block in unet.down_blocks:
        yield from _pair_layers(block)
        yield from block.downsamplers or ()


def _list_up_layers(unet: Any) -> Iterator[_Layer]:
    for block in unet.up_blocks:
        *first, last = _pair_layers(block)
        yield from first
        yield _Layer(last.resnet, last.attention, tuple(block.upsamplers or ()))


def _pair_layers(block: Any) -> list[_Layer]:
    attentions = block.attentions if getattr(block, "has_cross_attention", False) else [None] * len(block.resnets)
    return [_Layer(resnet, attention) for resnet, attention in zip(block.resnets, attentions, strict=True)]


def _run_layer(layer: Any, hidden: torch.Tensor, embedding: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    if not isinstance(layer, _Layer):
        downsampled: torch.Tensor = layer(hidden)
        return downsampled
    hidden = layer.resnet(hidden, embedding)
    if layer.attention is not None:
        hidden = layer.attention(hidden, encoder_hidden_states=text, return_dict=False)[0]
    return hidden
