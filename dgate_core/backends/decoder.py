"""The decoder's blocks by torch.compile: eager it takes an eighth of SDXL's time on an H200, and is bound by memory."""

from __future__ import annotations

import torch

from dgate_core.backends.fusion import fuse, unfuse
from dgate_core.backends.regions import COMPILE_ERRORS, compile_blocks, list_blocks, release_blocks
from dgate_core.errors import BackendUnfitError
from dgate_core.manifest.item import BatchKey
from dgate_core.models.families.latent import LatentModel


class CompiledDecoder:
    """Blocks of a decoder with kernels of their own for each size; nothing is compiled before its first call.

    Args:
        model: Whose decoder it is; its blocks are compiled in place, in the memory format that they have.
    """

    def __init__(self, model: LatentModel) -> None:
        self.model, self._warm = model, set[tuple[int, int, int]]()
        if model.device.type == "cuda":
            fuse(model.vae.decoder)
        compile_blocks(model.vae.decoder)

    @torch.inference_mode()
    def warm_up(self, key: BatchKey, pictures: int) -> None:
        """Decodes noise, so that no row's time holds the compiling.

        Raises:
            BackendUnfitError: it cannot be compiled; it is eager again.
        """
        size = (key.height, key.width, pictures)
        if size in self._warm:
            return
        try:
            self.model.decode(self.model.draw_decodable(key, pictures))
        except COMPILE_ERRORS as error:
            self.release()
            reason = " ".join(str(error).split())[:400]
            raise BackendUnfitError(f"torch.compile fails: {reason}", "a compiler that works") from error
        self._warm.add(size)

    def release(self) -> None:
        """The decoder is eager again."""
        release_blocks(self.model.vae.decoder)
        unfuse(self.model.vae.decoder)


def compile_decoder(model: LatentModel) -> CompiledDecoder | None:
    """None where it would not pay: tiles have many sizes, offloaded blocks move, and some decoders repeat no block."""
    memory = model.memory
    if memory.vae_tiling or memory.vae_slicing or memory.offload != "none":
        return None
    return CompiledDecoder(model) if list_blocks(model.vae.decoder) else None
