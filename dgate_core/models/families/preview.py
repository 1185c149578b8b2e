"""What is to be seen of a picture before it is finished: the clean latents that the last prediction means, decoded."""

from __future__ import annotations

from typing import Any

import torch

from dgate_core.models.families.unet import UNetModel


@torch.inference_mode()
def estimate_pixels(
    model: Any, samples: torch.Tensor, timestep: float, predicted: torch.Tensor, guidance_scale: float
) -> torch.Tensor | None:
    """Pixels uint8 (N, H, W, 3) on the CPU, one row each; None for families whose prediction is read otherwise.

    Args:
        model: Of any family.
        samples: As the UNet took them, (N, C, h, w), or (2N, ...) with guidance: unconditional rows first.
        timestep: Of the training schedule, 0 to its length; fractions are rounded.
        predicted: As the UNet gave it, shaped as the samples.
        guidance_scale: Of the batch.
    """
    if not isinstance(model, UNetModel):
        return None
    sample, prediction = samples.float(), predicted.float()
    if model.reads_negatives(guidance_scale) and len(sample) % 2 == 0:
        without, told = prediction.chunk(2)
        sample, prediction = sample.chunk(2)[0], without + guidance_scale * (told - without)
    clean = predict_clean(model.pipeline.scheduler, sample, timestep, prediction)
    pixels, _ = model.decode(clean)
    return pixels.cpu()


def predict_clean(scheduler: Any, sample: torch.Tensor, timestep: float, prediction: torch.Tensor) -> torch.Tensor:
    """x0 from a variance-preserving sample and what was predicted (Salimans and Ho, Progressive Distillation, 2022)."""
    products = scheduler.alphas_cumprod
    alpha = products[min(max(round(timestep), 0), len(products) - 1)].to(sample.device, sample.dtype)
    signal, noise = alpha.sqrt(), (1 - alpha).sqrt()
    kind = scheduler.config.prediction_type
    if kind == "v_prediction":
        return signal * sample - noise * prediction
    if kind == "sample":
        return prediction
    return (sample - noise * prediction) / signal.clamp_min(1e-4)
