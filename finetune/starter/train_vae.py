"""Trains the autoencoder of the postcard world: `python -m finetune.starter.train_vae --profile gpu --out DIR`."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from finetune.starter.loop import train_recipe
from finetune.starter.networks import build_vae, load_weights, save_half_diffusers
from finetune.starter.parts import PartOptions, compile_networks, mark_part, parse_part, replace_folder
from finetune.starter.store import pictures_to_pixels

_KL_WEIGHT = 2e-4
_GRADIENT_WEIGHT = 0.5
_OBJECT_WEIGHT = 3.0


class VaeRecipe:
    """L1 of pixels and of both image gradients, with objects counting more than backdrops, and a small KL."""

    def __init__(self, options: PartOptions) -> None:
        self.options = options
        self.rates = options.profile.vae
        self.store = options.open_store("pictures", "masks")
        self.vae = self.network = build_vae(options.profile.widths).to(options.device)
        if options.init is not None:
            load_weights(self.vae, options.init / "starter-unet" / "vae" / "diffusion_pytorch_model.safetensors")
        self.layout = choose_layout(options.device)
        self.vae.to(memory_format=self.layout)

    def compile(self) -> None:
        """Compiles both halves on a batch of its own random numbers."""
        generator = torch.Generator(self.options.device).manual_seed(0)
        compile_networks("vae", (self.vae.encoder, self.vae.decoder), lambda: self.compute_loss(generator))

    def compute_loss(self, generator: torch.Generator) -> torch.Tensor:
        """Loss of one batch."""
        rows = self.store.draw(generator, self.rates.batch)
        pixels = pictures_to_pixels(self.store.tensors["pictures"][rows]).contiguous(memory_format=self.layout)
        with torch.autocast(pixels.device.type, torch.bfloat16):
            moments = self.vae.quant_conv(self.vae.encoder(pixels)).float()
            mean, log_variance = moments.chunk(2, 1)
            log_variance = log_variance.clamp(-20, 10)
            noise = torch.randn(mean.shape, generator=generator, device=mean.device)
            latents = mean + noise * torch.exp(0.5 * log_variance)
            decoded = self.vae.decoder(self.vae.post_quant_conv(latents)).float()
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        covered = self.store.tensors["masks"][rows].unsqueeze(1).float() / 255
        weights = 1 + _OBJECT_WEIGHT * functional.interpolate(covered, size=pixels.shape[-2:])
        return compare_pixels(decoded, pixels, weights) + _KL_WEIGHT * divergence

    def refresh(self) -> None:
        """Takes in newly rendered scenes."""
        self.store.refresh()

    def export(self) -> None:
        """Writes starter-unet/vae with the scaling factor that gives its latents unit variance."""
        self.vae.register_to_config(scaling_factor=self._measure_scale())
        folder = self.options.out / "starter-unet" / "vae"
        partial = folder.with_name("vae.partial")
        save_half_diffusers(self.vae, partial)
        replace_folder(partial, folder)

    def _measure_scale(self) -> float:
        pixels = pictures_to_pixels(self.store.tensors["pictures"][: 4 * self.rates.batch])
        latents = [encode_pixels(self.vae, batch) for batch in pixels.split(self.rates.batch)]
        return round(1 / float(torch.cat(latents).std()), 5)


def choose_layout(device: torch.device) -> torch.memory_format:
    """Channels last on a GPU; on a CPU the backward of GroupNorm takes six times as long in that layout."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def encode_pixels(vae: AutoencoderKL, pixels: torch.Tensor) -> torch.Tensor:
    """Mean latents (N, 4, 16, 16) float32 of pixels (N, 3, 64, 64), not scaled."""
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast(pixels.device.type, torch.bfloat16):
        # `forward` itself: a compiled encoder would be compiled again for this size and mode.
        moments = vae.quant_conv(vae.encoder.forward(pixels))
    mean: torch.Tensor = moments.float().chunk(2, 1)[0]
    return mean


def compare_pixels(decoded: torch.Tensor, pixels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """L1 of the pixels plus that of their horizontal and vertical differences, which keeps edges sharp.

    Args:
        decoded: (N, 3, H, W) in [-1, 1].
        pixels: What it should be.
        weights: (N, 1, H, W), how much each pixel counts.
    """
    errors = decoded - pixels
    loss = (errors.abs() * weights).mean()
    for axis in (2, 3):
        edges = weights.narrow(axis, 1, weights.shape[axis] - 1)
        loss = loss + _GRADIENT_WEIGHT * (errors.diff(dim=axis).abs() * edges).mean()
    return loss


def main() -> None:
    """Trains as the command line says."""
    options = parse_part(__doc__ or "")
    recipe = VaeRecipe(options)
    if options.compiles(recipe.rates):
        recipe.compile()
    train_recipe(recipe, options.loop_options("vae", options.profile.vae))
    mark_part(options.out, "vae")


if __name__ == "__main__":
    main()
