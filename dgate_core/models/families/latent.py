"""What all latent diffusion models share, whatever denoises: noise per row, decoding, the copy to the host."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from dgate_core.manifest.item import BatchKey
from dgate_core.models.families.contract import BatchRequest, Pictures, PromptEmbedding
from dgate_core.models.families.stages import StageClock
from dgate_core.models.spec import LocalCheckpoint

# Above this many pixels the decoder's activations, not the denoiser's, set the peak of memory.
DECODE_PIXELS_AT_ONCE = 8 * 1024 * 1024
ENCODE_AT_ONCE = 32


class LatentModel(ABC):
    """A latent diffusion checkpoint on a device.

    Args:
        checkpoint: Where it came from.
        pipeline: Of diffusers, on the device.
        denoiser: The pipeline's UNet or transformer.
        device: Where it computes.
    """

    def __init__(self, checkpoint: LocalCheckpoint, pipeline: Any, denoiser: Any, device: torch.device) -> None:
        self.checkpoint, self.device = checkpoint, device
        self.pipeline, self.denoiser, self.vae = pipeline, denoiser, pipeline.vae
        self.dtype: torch.dtype = denoiser.dtype
        self._memory_steps = ["vae_tiling", "model_offload"]
        if self.dtype == torch.float16 and bool(self.vae.config.get("force_upcast")):
            self.vae.to(torch.float32)
        if device.type == "cuda":
            self.vae.to(memory_format=torch.channels_last)

    @abstractmethod
    def encode_together(self, prompts: Sequence[str]) -> list[PromptEmbedding]:
        """One embedding per prompt, all in one pass."""

    @abstractmethod
    def denoise(self, request: BatchRequest) -> torch.Tensor:
        """Latents float32 (N, C, h, w); the scheduler works in float32 whatever the denoiser's dtype is."""

    @torch.inference_mode()
    def encode_prompts(self, prompts: Sequence[str], *, one_by_one: bool) -> list[PromptEmbedding]:
        """See `LoadedModel`."""
        at_once = 1 if one_by_one else ENCODE_AT_ONCE
        groups = [prompts[start : start + at_once] for start in range(0, len(prompts), at_once)]
        return [embedding for group in groups for embedding in self.encode_together(group)]

    def encode_negatives(self, prompts: Sequence[str], *, one_by_one: bool) -> list[PromptEmbedding]:
        """See `LoadedModel`."""
        return self.encode_prompts(prompts, one_by_one=one_by_one)

    @torch.inference_mode()
    def generate(self, request: BatchRequest) -> Pictures:
        """See `LoadedModel`."""
        clock = StageClock(self.device)
        with clock.stage("denoise"):
            latents = self.denoise(request)
        with clock.stage("decode"):
            pixels, finite = self.decode(latents)
        with clock.stage("copy"):
            pixels, finite = self._copy_to_host(pixels), self._copy_to_host(finite)
        ready = None
        if self.device.type == "cuda":
            ready = torch.cuda.Event()
            ready.record()
        return Pictures(pixels, finite, ready, clock)

    def reads_negatives(self, guidance_scale: float) -> bool:
        """See `LoadedModel`: classifier-free guidance (Ho and Salimans 2022) begins above 1."""
        return guidance_scale > 1

    def save_memory(self) -> str | None:
        """See `LoadedModel`: tiles the decoder, then keeps only the part at work on the device."""
        if not self._memory_steps:
            return None
        step = self._memory_steps.pop(0)
        if step == "vae_tiling":
            self.vae.enable_tiling()
            self.vae.enable_slicing()
        elif self.device.type == "cuda":
            self.pipeline.enable_model_cpu_offload()
        else:
            return None
        return step

    def draw_noise(self, key: BatchKey, generators: list[torch.Generator]) -> torch.Tensor:
        """Per row, on the CPU, from the row's own generator, so that no batch, lane or device changes it."""
        scale = self.pipeline.vae_scale_factor
        shape = (len(generators), self.latent_channels, key.height // scale, key.width // scale)
        noise: torch.Tensor = randn_tensor(shape, generator=generators, device=self.device, dtype=torch.float32)
        return noise

    @property
    def latent_channels(self) -> int:
        """Channels of the noise: what the decoder takes."""
        config = self.vae.config
        return int(config["z_dim"] if "z_dim" in config else config["latent_channels"])

    def decode(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 (N, H, W, 3) and which rows are finite, both on the device."""
        latents = self.unscale(latents.to(self.vae.dtype))
        scale = self.pipeline.vae_scale_factor
        at_once = max(1, DECODE_PIXELS_AT_ONCE // (latents.shape[-2] * latents.shape[-1] * scale**2))
        decoded = torch.cat([self.run_decoder(part) for part in latents.split(at_once)]).float()
        finite = decoded.isfinite().flatten(1).all(dim=1)
        pixels = (decoded / 2 + 0.5).nan_to_num(0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous(), finite

    def unscale(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as the decoder takes them, from those of unit variance."""
        config = self.vae.config
        if config.get("latents_mean") is None or config.get("latents_std") is None:
            return latents / float(config.scaling_factor) + float(config.get("shift_factor") or 0.0)
        mean, std = (
            torch.tensor(config[name], device=self.device).view(1, -1, *[1] * (latents.ndim - 2))
            for name in ("latents_mean", "latents_std")
        )
        unscaled = latents * std / float(config.get("scaling_factor", 1.0)) + mean
        return unscaled.to(latents.dtype)

    def run_decoder(self, latents: torch.Tensor) -> torch.Tensor:
        """Pixels (N, 3, H, W) in [-1, 1]; of a video decoder, the first frame's."""
        pixels: torch.Tensor = self.vae.decode(latents, return_dict=False)[0]
        return pixels[:, :, 0] if pixels.ndim == 5 else pixels

    def _copy_to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type != "cuda":
            return tensor.cpu()
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)
