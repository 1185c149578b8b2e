"""What every model family offers the engine: load once, encode and generate many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from dgate_core.manifest.item import BatchKey
from dgate_core.models.memory_plan import WHOLE, MemoryPlan
from dgate_core.models.spec import LocalCheckpoint


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a checkpoint is put on a device; nothing here may change what a picture shows."""

    device: str
    """`cpu`, `cuda` or `mps`."""
    precision: str
    """`float32`, `bfloat16` or `float16`."""
    memory: MemoryPlan = WHOLE
    """What stays on the device; by default all of it."""
    denoiser_waits: bool = False
    """Whether the denoiser stays on the host for now: quantised for memory, it never needs room for 16 bits there."""


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


Samples = torch.Tensor | list[torch.Tensor]
"""What a denoiser predicts from: (N, ...), or one tensor per row where its forward wants a list."""


class DenoiserCall(Protocol):
    """One forward of a denoiser, by whatever backend."""

    def __call__(self, samples: Samples, timestep: torch.Tensor, **conditioning: Any) -> torch.Tensor:
        """Prediction, one per sample and typed as they are; the timestep is a scalar or (N,)."""
        ...


@dataclass(frozen=True, slots=True)
class Serving:
    """What computes a model's denoiser, as the rows and run.json say it."""

    backend: str
    """Name in BACKENDS."""
    device: str
    """`cpu`, `cuda` or `mps`."""
    precision: str
    """Dtype of the model."""
    quantization: str | None = None
    """`int8`, `fp8` or `nf4`."""
    artefact: str | None = None
    """Name of the quantised artefact."""
    savers: tuple[str, ...] = ()
    """Steps that are left out, such as `deep-cache-2`."""
    warnings: tuple[str, ...] = ()
    """Why it is not the backend that was preferred; also in every row."""
    pads_batches: bool = False
    """Whether a batch is padded to the next power of two."""
    decoder: str = "eager"
    """Who computes the decoder: `eager`, or the backend."""

    @property
    def label(self) -> str:
        """The rows' `backend`, such as `compiled-cuda-bfloat16-decoder`; without the last word the decoder is eager."""
        decoder = [] if self.decoder == "eager" else ["decoder"]
        return "-".join([self.backend, self.device, self.quantization or self.precision, *self.savers, *decoder])


class Server(DenoiserCall, Protocol):
    """A backend behind a model's `call_denoiser`."""

    @property
    def serving(self) -> Serving:
        """What it is."""
        ...

    def warm_up(self, key: BatchKey, samples: int) -> None:
        """Prepares for batches of so many samples of this key's size."""
        ...

    def warm_up_decoder(self, key: BatchKey, pictures: int) -> None:
        """Prepares the decoder for so many pictures of this key's size."""
        ...

    def release_decoder(self, why: str) -> None:
        """From here on the decoder is eager, and the rows say why."""
        ...


@dataclass(frozen=True, slots=True)
class StartPicture:
    """Where image to image begins.

    Shape: pixels uint8 (H, W, 3), of the batch key's size, on the CPU.
    """

    pixels: torch.Tensor
    strength: float
    """Above 0, up to 1, which keeps nothing of the picture."""


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """Rows of one batch key, ready for the device."""

    key: BatchKey
    seeds: tuple[int, ...]
    prompts: tuple[PromptEmbedding, ...]
    negatives: tuple[PromptEmbedding, ...]
    starts: tuple[StartPicture, ...] = ()
    """One per row, all of one strength; none where rows start from noise. Only the UNet family reads them."""


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
    memory: MemoryPlan

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

    @property
    def serving(self) -> Serving:
        """What computes the denoiser."""
        ...

    def warm_up(self, key: BatchKey, rows: int) -> None:
        """Prepares for batches of so many rows, so that their time holds no compiling."""
        ...

    def save_memory(self) -> str | None:
        """Takes the next step towards less memory and names it; None when none is left."""
        ...

    def count_bytes(self) -> int:
        """Weights on the device."""
        ...

    def leave_device(self) -> bool:
        """Moves the weights into the host's memory; False, and nothing moved, where others hold them too."""
        ...

    def return_to_device(self) -> None:
        """The inverse of `leave_device`."""
        ...


class Family(Protocol):
    """A kind of pipeline."""

    def load(self, checkpoint: LocalCheckpoint, options: LoadOptions) -> LoadedModel:
        """Reads the weights and puts them on the device."""
        ...
