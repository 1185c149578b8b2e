"""What all latent diffusion models share, whatever denoises: noise per row, decoding, the copy to the host."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from dgate_core.manifest.item import BatchKey
from dgate_core.models.families.contract import (
    BatchRequest,
    DenoiserCall,
    Pictures,
    PromptEmbedding,
    Samples,
    Server,
    Serving,
)
from dgate_core.models.families.placement import HostCopy, count_device_bytes, offload_by_part, set_decoding
from dgate_core.models.families.stages import StageClock
from dgate_core.models.memory_plan import WHOLE, MemoryPlan
from dgate_core.models.savers.contract import StepSaver
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
        self.call_denoiser: DenoiserCall = self.call_module
        self._server: Server | None = None
        accepted = inspect.signature(denoiser.forward).parameters
        self.time_name = "timestep" if "timestep" in accepted else "t"
        self.savers: tuple[StepSaver, ...] = ()
        self.guidance_stop = 1.0
        self.are_pairs = False
        """Whether the second half of the samples in the denoiser repeats the first, told apart by the text alone."""
        self.memory: MemoryPlan = WHOLE
        self._host_copy: HostCopy | None = None

    @abstractmethod
    def encode_together(self, prompts: Sequence[str]) -> list[PromptEmbedding]:
        """One embedding per prompt, all in one pass."""

    @abstractmethod
    def denoise(self, request: BatchRequest) -> torch.Tensor:
        """Latents float32 (N, C, h, w); the scheduler works in float32 whatever the denoiser's dtype is."""

    @property
    def serving(self) -> Serving:
        """See `LoadedModel`."""
        plain = Serving("eager", self.device.type, str(self.dtype).removeprefix("torch."))
        return plain if self._server is None else self._server.serving

    def serve_by(self, server: Server) -> None:
        """Lets a backend compute the denoiser from here on."""
        self._server = self.call_denoiser = server

    def warm_up(self, key: BatchKey, rows: int) -> None:
        """See `LoadedModel`; guidance that stops early leaves half of the samples."""
        if self._server is None:
            return
        is_guided = self.reads_negatives(key.guidance_scale)
        with self.mark_pairs(is_guided):
            self._server.warm_up(key, 2 * rows if is_guided else rows)
        if is_guided and self.guidance_stop < 1:
            self._server.warm_up(key, rows)
        self._server.warm_up_decoder(key, rows)

    @contextmanager
    def mark_pairs(self, are_pairs: bool) -> Iterator[None]:
        """What `are_pairs` is for the calls of the denoiser inside."""
        before, self.are_pairs = self.are_pairs, are_pairs
        try:
            yield
        finally:
            self.are_pairs = before

    def call_module(self, samples: Samples, timestep: torch.Tensor, **conditioning: Any) -> torch.Tensor:
        """The denoiser as diffusers has it; a backend puts its own `DenoiserCall` into `call_denoiser` instead."""
        conditioning[self.time_name] = timestep
        predicted: torch.Tensor = self.denoiser(samples, return_dict=False, **conditioning)[0]
        return predicted

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
        with clock.stage("denoise"), self._save_steps(len(request.seeds)):
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

    @contextmanager
    def _save_steps(self, pictures: int) -> Iterator[None]:
        """Step savers remember nothing from one batch to the next."""
        for saver in self.savers:
            saver.begin_batch(pictures)
        try:
            yield
        finally:
            for saver in self.savers:
                saver.end_batch()

    def reads_negatives(self, guidance_scale: float) -> bool:
        """See `LoadedModel`: classifier-free guidance (Ho and Salimans 2022) begins above 1."""
        return guidance_scale > 1

    def save_memory(self) -> str | None:
        """See `LoadedModel`: keeps only the part at work on the device, then tiles the decoder."""
        before = self.memory
        if self.device.type == "cuda" and before.offload == "none":
            self.memory = replace(before, offload="model")
            offload_by_part(self.pipeline, self.device)
        elif not before.vae_tiling:
            self.memory = replace(before, vae_slicing=True, vae_tiling=True)
            if self._server is not None:
                self._server.release_decoder("it works in tiles, for memory")
            set_decoding(self.vae, self.memory)
        return next((step for step in self.memory.steps if step not in before.steps), None)

    def count_bytes(self) -> int:
        """See `LoadedModel`."""
        return count_device_bytes(self.pipeline, self.device)

    def leave_device(self) -> bool:
        """See `LoadedModel`; a backend's engine and offloading hooks have the weights in their own hands."""
        if self.serving.backend != "eager" or self.memory.offload != "none":
            return False
        self._host_copy = self._host_copy or HostCopy(self.pipeline, self.device)
        self._host_copy.leave()
        return True

    def return_to_device(self) -> None:
        """See `LoadedModel`."""
        if self._host_copy is not None:
            self._host_copy.come_back()

    def draw_noise(self, key: BatchKey, generators: list[torch.Generator]) -> torch.Tensor:
        """Per row, on the CPU, from the row's own generator, so that no batch, lane or device changes it."""
        scale = self.pipeline.vae_scale_factor
        shape = (len(generators), self.latent_channels, key.height // scale, key.width // scale)
        noise: torch.Tensor = randn_tensor(shape, generator=generators, device=self.device, dtype=torch.float32)
        return noise

    def draw_decodable(self, key: BatchKey, pictures: int) -> torch.Tensor:
        """Noise as `decode` takes latents, for trying the decoder."""
        return self.draw_noise(key, [torch.Generator("cpu").manual_seed(number) for number in range(pictures)])

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
            return latents / float(config.get("scaling_factor") or 1.0) + float(config.get("shift_factor") or 0.0)
        mean, std = (
            torch.tensor(config[name], dtype=torch.float32, device=self.device).view(1, -1, *[1] * (latents.ndim - 2))
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
