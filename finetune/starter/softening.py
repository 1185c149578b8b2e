"""Makes renderings soft, shifted and noisy, so that what learns from them also reads pictures that are not crisp."""

from __future__ import annotations

import torch
from torch.nn import functional


def soften_pixels(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random small shift and zoom, blur, lost detail, light and noise on pixels (N, 3, 64, 64) in [-1, 1].

    A quarter of the pictures stay as they were drawn.
    """
    soft = _shift(pixels, generator)
    soft = _blur(soft, generator)
    soft = soft * (1 + 0.08 * _draw(soft, generator)) + 0.05 * _draw(soft, generator)
    soft = _add_noise(soft, generator)
    crisp = torch.rand(len(pixels), 1, 1, 1, generator=generator, device=pixels.device) < 0.25
    return torch.where(crisp, pixels, soft).clamp(-1, 1)


def _draw(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return 2 * torch.rand(len(pixels), 1, 1, 1, generator=generator, device=pixels.device) - 1


def _shift(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Moves by up to 1.5 px and zooms by up to 4 %."""
    number = len(pixels)
    zoom = 1 + 0.04 * (2 * torch.rand(number, generator=generator, device=pixels.device) - 1)
    moves = (3 / 64) * (2 * torch.rand(number, 2, generator=generator, device=pixels.device) - 1)
    frames = torch.zeros(number, 2, 3, device=pixels.device)
    frames[:, 0, 0] = frames[:, 1, 1] = zoom
    frames[:, :, 2] = moves
    grid = functional.affine_grid(frames, list(pixels.shape), align_corners=False)
    return functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def _blur(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blends each picture with a blurred and with a coarsely resampled one."""
    blurred = _gaussian(pixels)
    coarse = functional.interpolate(
        functional.interpolate(pixels, scale_factor=0.5, mode="area"), scale_factor=2, mode="bilinear"
    )
    share = torch.rand(len(pixels), 1, 1, 1, generator=generator, device=pixels.device)
    coarse_share = 0.7 * torch.rand(len(pixels), 1, 1, 1, generator=generator, device=pixels.device) ** 2
    return torch.lerp(torch.lerp(pixels, blurred, share), coarse, coarse_share)


def _gaussian(pixels: torch.Tensor) -> torch.Tensor:
    """Gaussian blur of sigma 0.9 px."""
    offsets = torch.arange(-2, 3, device=pixels.device, dtype=pixels.dtype)
    line = torch.exp(-(offsets**2) / (2 * 0.9**2))
    line = (line / line.sum()).expand(3, 1, 1, 5)
    padded = functional.pad(pixels, (2, 2, 2, 2), mode="replicate")
    return functional.conv2d(functional.conv2d(padded, line, groups=3), line.transpose(2, 3), groups=3)


def _add_noise(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """White noise and patchy noise, each of a random strength."""
    white = torch.randn(pixels.shape, generator=generator, device=pixels.device)
    small = torch.randn(len(pixels), 3, 16, 16, generator=generator, device=pixels.device)
    patchy = functional.interpolate(small, size=pixels.shape[-2:], mode="bilinear")
    strength = torch.rand(2, len(pixels), 1, 1, 1, generator=generator, device=pixels.device) ** 2
    return pixels + 0.10 * strength[0] * white + 0.12 * strength[1] * patchy
