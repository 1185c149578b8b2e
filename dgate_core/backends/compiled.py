"""torch.compile by regions: the blocks that a denoiser repeats, whose kernels are kept on disk.

On CUDA every block is compiled for the sizes it meets and nothing else, the decoder's too, and cuDNN comes first among
the kernels of attention. Each size of batch costs a compilation there: batches are padded to powers of two.
"""

from __future__ import annotations

import os
import shutil
from contextlib import nullcontext
from typing import Any, ClassVar, Final

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from dgate_core.backends.contract import BackendRequest, PreparedDenoiser, ShapeBucket
from dgate_core.backends.decoder import compile_decoder
from dgate_core.backends.eager import EagerDenoiser, quantise_in_place
from dgate_core.backends.fusion import fuse, share_halves, unfuse
from dgate_core.backends.inputs import record_call
from dgate_core.backends.regions import (
    COMPILE_ERRORS,
    compile_blocks,
    compile_regions,
    release_blocks,
    release_regions,
)
from dgate_core.errors import BackendUnfitError
from dgate_core.manifest.item import BatchKey
from dgate_core.models.families.contract import Samples
from dgate_core.models.families.latent import LatentModel
from dgate_core.models.families.placement import prefer_channels_last
from dgate_core.models.hashing import find_cache_folder

CACHE_VARIABLE: Final = "TORCHINDUCTOR_CACHE_DIR"
_ATTENTION_ORDER: Final = (
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)


class CompiledBackend:
    """Fused kernels. Refuses strict runs: they treat the end of a batch apart, so that places in it differ."""

    name: ClassVar[str] = "compiled"

    def prepare(self, model: LatentModel, request: BackendRequest) -> PreparedDenoiser:
        """See `Backend`."""
        if request.is_strict:
            raise BackendUnfitError(
                "compiled kernels round a sample by its place in the batch",
                "determinism=fast",
                "strict runs take eager",
            )
        check_compiler(request.device)
        keep_kernels()
        artefact = quantise_in_place(model, request, self.name)
        if request.device != "cuda":
            compile_regions(model.denoiser)
            return CompiledDenoiser(model, artefact)
        return CompiledOnCuda(model, artefact)


class CompiledDenoiser(EagerDenoiser):
    """The module with compiled regions; kernels come with the first call of a size."""

    def __init__(self, model: LatentModel, artefact: str | None) -> None:
        super().__init__(model, artefact)
        self._warm: set[tuple[int, int, int, bool]] = set()

    @torch.inference_mode()
    def warm_up(self, key: BatchKey, samples: int) -> None:
        """See `PreparedDenoiser`: the first size of a batch is compiled for itself, the second for all that follow."""
        size = (key.height, key.width, samples, self.model.are_pairs)
        if size in self._warm:
            return
        call = record_call(self.model, ShapeBucket(key.height, key.width), samples)
        try:
            self(call.samples, call.timestep, **call.conditioning)
        except COMPILE_ERRORS as error:
            reason = " ".join(str(error).split())[:400]
            raise BackendUnfitError(f"torch.compile fails: {reason}", "a compiler that works") from error
        self._warm.add(size)

    def release(self) -> None:
        """See `PreparedDenoiser`."""
        super().release()
        release_regions(self.model.denoiser)


class CompiledOnCuda(CompiledDenoiser):
    """Blocks with kernels of their own for each size, in the decoder too, and with D-Gate's where they are faster."""

    pads_batches: ClassVar[bool] = True

    def __init__(self, model: LatentModel, artefact: str | None) -> None:
        super().__init__(model, artefact)
        if hasattr(model.denoiser, "down_blocks"):
            prefer_channels_last(model.denoiser)
        prefer_channels_last(model.vae)
        # Offloading by leaves brings weights when a leaf is called, and a fused block reads some without calling it.
        if model.device.type == "cuda" and model.memory.offload in {"none", "model"}:
            fuse(model.denoiser)
        compile_blocks(model.denoiser)
        self.decoder = compile_decoder(model)

    def __call__(self, samples: Samples, timestep: torch.Tensor, **conditioning: Any) -> torch.Tensor:
        """See `DenoiserCall`."""
        share_halves(self.model.denoiser, self.model.are_pairs)
        with prefer_cudnn():
            return super().__call__(samples, timestep, **conditioning)

    def release(self) -> None:
        """See `PreparedDenoiser`."""
        super().release()
        release_blocks(self.model.denoiser)
        unfuse(self.model.denoiser)


def prefer_cudnn() -> Any:
    """A context in which scaled_dot_product_attention takes cuDNN's kernel where it has one."""
    return sdpa_kernel(list(_ATTENTION_ORDER), set_priority=True) if torch.cuda.is_available() else nullcontext()


def keep_kernels() -> None:
    """Inductor's cache in D-Gate's own, where the next process finds it; a place that the user set stays."""
    os.environ.setdefault(CACHE_VARIABLE, str(find_cache_folder() / "inductor"))


def check_compiler(device: str) -> None:
    """Raises BackendUnfitError where torch.compile has no compiler to work with."""
    if device == "cpu":
        compiler = os.environ.get("CXX") or "g++"
        if shutil.which(compiler) is None and shutil.which("clang++") is None:
            raise BackendUnfitError("torch.compile finds no C++ compiler", "g++ or clang++", "install g++")
    elif device == "cuda":
        if not torch.utils._triton.has_triton():
            raise BackendUnfitError("torch.compile finds no Triton for this GPU", "triton", "pip install triton")
    else:
        raise BackendUnfitError(f"torch.compile is not used on {device}", "cpu or cuda", "take the profile exact")
