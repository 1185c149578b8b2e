"""Image to image: a picture's latents, noised as far as its strength says, are denoised from there.

Meng et al., SDEdit, 2022; the steps that are left out are those of diffusers' StableDiffusionImg2ImgPipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from dgate_core.models.families.contract import StartPicture


def count_steps(num_inference_steps: int, strength: float) -> int:
    """Steps that are done at a strength, at least one."""
    return max(1, min(num_inference_steps, int(num_inference_steps * strength)))


def start_from_pictures(
    vae: Any, scheduler: Any, starts: Sequence[StartPicture], generators: list[torch.Generator]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noised latents float32 (N, C, h, w), and the timesteps that are left.

    Args:
        vae: AutoencoderKL, on its device.
        scheduler: With its timesteps set.
        starts: One per row, of one strength.
        generators: One per row; first the encoder's sample is drawn from them, then the noise.
    """
    steps = scheduler.num_inference_steps
    skipped = (steps - count_steps(steps, starts[0].strength)) * scheduler.order
    clean = torch.cat([encode_picture(vae, *each) for each in zip(starts, generators, strict=True)])
    noise = randn_tensor(clean.shape, generator=generators, device=clean.device, dtype=torch.float32)
    timesteps = scheduler.timesteps[skipped:]
    if hasattr(scheduler, "set_begin_index"):  # DDIM and its kin look each timestep up instead
        scheduler.set_begin_index(skipped)
    return scheduler.add_noise(clean, noise, timesteps[:1].repeat(len(clean))), timesteps


def encode_picture(vae: Any, start: StartPicture, generator: torch.Generator) -> torch.Tensor:
    """Latents float32 (1, C, h, w) of unit variance."""
    pixels = start.pixels.to(vae.device).permute(2, 0, 1).unsqueeze(0).to(vae.dtype) / 127.5 - 1
    drawn = vae.encode(pixels).latent_dist.sample(generator).float()
    shift = float(vae.config.get("shift_factor") or 0.0)
    latents: torch.Tensor = (drawn - shift) * float(vae.config.scaling_factor)
    return latents
