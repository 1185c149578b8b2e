"""Scenes as latents of the finished autoencoder, computed once and kept beside the training states."""

from __future__ import annotations

import os

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from finetune.starter.networks import LATENT_CHANNELS, LATENT_SIZE
from finetune.starter.parts import PartOptions, await_part
from finetune.starter.store import pictures_to_pixels
from finetune.starter.train_vae import encode_pixels

_ENCODE_BATCH = 500


class EncodedScenes:
    """Latents float32 (N, 8, 16, 16), scaled, of the first scenes of a store, growing with it.

    Args:
        options: Names the output folder, whose starter-unet/vae is waited for.
        fields: Arrays of the store that are needed besides the pictures.
    """

    def __init__(self, options: PartOptions, *fields: str) -> None:
        self.store = options.open_store("pictures", *fields)
        await_part(options.out, "vae")
        folder = options.out / "starter-unet" / "vae"
        self.vae = AutoencoderKL.from_pretrained(folder).to(options.device, memory_format=torch.channels_last)
        self.cache = options.out / "work" / "latents.safetensors"
        self.latents = torch.empty(0, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE, device=options.device)
        weights = folder / "diffusion_pytorch_model.safetensors"
        if self.cache.exists() and self.cache.stat().st_mtime > weights.stat().st_mtime:
            self.latents = load_file(self.cache)["latents"].to(options.device)
        self.refresh()

    def refresh(self) -> None:
        """Encodes newly rendered scenes."""
        self.store.refresh()
        done = len(self.latents)
        if self.store.count > done:
            batches = self.store.tensors["pictures"][done:].split(_ENCODE_BATCH)
            fresh = [encode_pixels(self.vae, pictures_to_pixels(batch)) for batch in batches]
            self.latents = torch.cat([self.latents, *(batch * self.vae.config.scaling_factor for batch in fresh)])
            if not self.store.waiting:
                self._keep_latents()

    def _keep_latents(self) -> None:
        """Written whole or not at all: several trainings may encode the same scenes at once."""
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        partial = self.cache.with_suffix(f".{os.getpid()}.partial")
        save_file({"latents": self.latents.cpu()}, partial)
        partial.replace(self.cache)
