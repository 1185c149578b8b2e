"""Figures of judge, autoencoder and CLIP on renderings that no training has seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch.nn import functional
from transformers import CLIPModel, CLIPProcessor

from dgate_core.evaluation.metrics.attributes import Reading, load_judge, read_pictures
from dgate_core.postcards import Scene, hard_negatives, render_scene, sample_scene, scene_to_caption, scene_to_truth
from finetune.starter.store import pictures_to_pixels

_SEED = 10_000
_BATCH = 250
_GALLERY = 250
_NEGATIVES = 4


def render_fresh(number: int) -> tuple[list[Scene], np.ndarray]:
    """Unseen scenes over all pairs, and their pictures uint8 (N, 64, 64, 3)."""
    rng = np.random.default_rng(_SEED)
    scenes = [sample_scene(rng, split="any") for _ in range(number)]
    return scenes, np.stack([render_scene(scene, 64) for scene in scenes])


def compare_judge(
    folder: Path, scenes: Sequence[Scene], pictures: np.ndarray, device: torch.device
) -> dict[str, float]:
    """Shares of renderings read as they are; exact leaves size and pose aside, everything does not."""
    readings = read_pictures(load_judge(folder).to(device), pictures)
    answers = [_compare_reading(reading, scene) for reading, scene in zip(readings, scenes, strict=True)]
    return {"pictures": len(answers)} | {name: _mean([answer[name] for answer in answers]) for name in answers[0]}


def _compare_reading(reading: Reading, scene: Scene) -> dict[str, bool]:
    truth = scene_to_truth(scene)
    pairs = list(zip(reading.slots, truth.slots, strict=True))
    both = [(seen, told) for seen, told in pairs if seen is not None and told is not None]
    answers = {
        "ground": reading.ground == truth.ground,
        "sky": reading.sky == truth.sky,
        "count": reading.total == truth.total,
        "kinds": all((seen and seen.kind) == (told and told.kind) for seen, told in pairs),
        "colours": all(seen.colour == told.colour for seen, told in both),
        "sizes": all(seen.size == told.size for seen, told in both),
        "poses": all(seen.pose == told.pose for seen, told in both),
    }
    exact = all(answers[name] for name in ("ground", "sky", "count", "kinds", "colours"))
    return {"exact": exact, "everything": all(answers.values()), **answers}


def measure_autoencoder(
    models: Path, scenes: Sequence[Scene], pictures: np.ndarray, device: torch.device
) -> dict[str, float]:
    """PSNR in dB of decoded against drawn pictures (mean squared error over all), and what the judge reads in them."""
    vae = AutoencoderKL.from_pretrained(models / "starter-unet" / "vae").to(device)
    decoded = []
    for batch in torch.from_numpy(pictures).to(device).split(_BATCH):
        with torch.inference_mode():
            pixels = vae.decode(vae.encode(pictures_to_pixels(batch)).latent_dist.mode()).sample
        decoded.append(((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    again = np.concatenate(decoded)
    error = np.mean((again.astype(np.float64) - pictures.astype(np.float64)) ** 2)
    read = compare_judge(models / "judge", scenes, again, device)
    return {"psnr_db": round(10 * float(np.log10(255**2 / error)), 2), "judge_exact": read["exact"]}


def measure_clip(folder: Path, scenes: Sequence[Scene], pictures: np.ndarray, device: torch.device) -> dict[str, float]:
    """Shares of pictures whose own caption wins, among a gallery's and against captions wrong in one thing."""
    rng = np.random.default_rng(_SEED + 1)
    scenes, pictures = scenes[:_GALLERY], pictures[:_GALLERY]
    own = [scene_to_caption(scene, rng) for scene in scenes]
    wrong = [[scene_to_caption(other, rng) for other in hard_negatives(scene, rng, _NEGATIVES)] for scene in scenes]
    model = CLIPModel.from_pretrained(folder).to(device).eval()
    processor = CLIPProcessor.from_pretrained(folder)
    seen = embed_pictures(model, processor, pictures)
    told = embed_captions(model, processor, own)
    false = embed_captions(model, processor, [caption for row in wrong for caption in row])
    likeness = seen @ told.T
    best = likeness.argmax(1).cpu() == torch.arange(len(own))
    rivals = (seen[:, None] * false.view(len(own), -1, seen.shape[1])).sum(-1)
    chosen = likeness.diagonal()[:, None] > rivals
    return {
        "gallery": len(own),
        "retrieval_top1": _mean(best.tolist()),
        "beats_each_hard_negative": _mean(chosen.flatten().tolist()),
        "beats_all_hard_negatives": _mean(chosen.all(1).tolist()),
        "own_similarity": round(float(likeness.diagonal().mean()), 4),
        "hard_negative_similarity": round(float(rivals.mean()), 4),
    }


def embed_pictures(model: CLIPModel, processor: CLIPProcessor, pictures: np.ndarray) -> torch.Tensor:
    """Unit image embeddings (N, D) of pictures uint8 (N, H, W, 3)."""
    pixels = processor(images=[Image.fromarray(p) for p in pictures], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        pooled = model.vision_model(pixel_values=pixels.to(model.device)).pooler_output
        return functional.normalize(model.visual_projection(pooled).float(), dim=-1)


def embed_captions(model: CLIPModel, processor: CLIPProcessor, captions: Sequence[str]) -> torch.Tensor:
    """Unit text embeddings (N, D)."""
    tokens = processor(text=list(captions), padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        pooled = model.text_model(**{key: value.to(model.device) for key, value in tokens.items()}).pooler_output
        return functional.normalize(model.text_projection(pooled).float(), dim=-1)


def _mean(answers: Sequence[bool]) -> float:
    return round(sum(map(bool, answers)) / len(answers), 4)
