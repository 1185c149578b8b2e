"""What every model family offers the engine: load once, encode and generate many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from dgate_core.manifest.item import BatchKey
from dgate_core.models.spec import LocalCheckpoint


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a checkpoint is put on a device; nothing here may change what a picture shows."""

    device: str
    """`cpu`, `cuda` or `mps`."""
    precision: str
    """`float32`, `bfloat16` or `float16`."""


@dataclass(frozen=True, slots=True)
class PromptEmbedding:
    """One encoded prompt.

    Shapes: hidden (tokens, width) and, for models with a pooled embedding, pooled (width,); both in the model's dtype;
    for models that leave padding out, mask (tokens,), 1 where a token counts.
    """

    hidden: torch.Tensor
    pooled: torch.Tensor | None
    warnings: tuple[str, ...] = ()
    mask: torch.Tensor | None = None

    def count_bytes(self) -> int:
        """Memory that it holds on the device."""
        return self.hidden.nbytes + (0 if self.pooled is None else self.pooled.nbytes)


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """Rows of one batch key, ready for the device."""

    key: BatchKey
    seeds: tuple[int, ...]
    prompts: tuple[PromptEmbedding, ...]
    negatives: tuple[PromptEmbedding, ...]


@dataclass(slots=True)
class Pictures:
    """What a batch became; on CUDA the copy may still be under way until `wait` returns.

    Shapes, on the CPU: pixels uint8 (N, H, W, 3); finite bool (N,), False where the decoder gave NaN or infinity.
    """

    pixels: torch.Tensor
    finite: torch.Tensor
    ready: torch.cuda.Event | None
    stages: StageTimes

    def wait(self) -> None:
        """Blocks until the pixels have arrived."""
        if self.ready is not None:
            self.ready.synchronize()


class StageTimes(Protocol):
    """Seconds by stage of one batch, read after the batch is done."""

    def read_seconds(self) -> dict[str, float]: ...


class LoadedModel(Protocol):
    """A checkpoint on a device."""

    checkpoint: LocalCheckpoint

    def encode_prompts(self, prompts: Sequence[str], *, one_by_one: bool) -> list[PromptEmbedding]:
        """Text encoders' outputs; one_by_one keeps the result free of the other prompts' rounding."""
        ...

    def encode_negatives(self, prompts: Sequence[str], *, one_by_one: bool) -> list[PromptEmbedding]:
        """As `encode_prompts`, with what the family does for an empty negative prompt."""
        ...

    def generate(self, request: BatchRequest) -> Pictures:
        """Noise → denoise → decode → uint8."""
        ...

    def reads_negatives(self, guidance_scale: float) -> bool:
        """Whether a negative prompt changes anything at this guidance."""
        ...

    def save_memory(self) -> str | None:
        """Takes the next step towards less memory and names it; None when none is left."""
        ...


class Family(Protocol):
    """A kind of pipeline."""

    def load(self, checkpoint: LocalCheckpoint, options: LoadOptions) -> LoadedModel:
        """Reads the weights and puts them on the device."""
        ...
