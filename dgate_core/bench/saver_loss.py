"""What step savers cost the pictures of the starter models: the same prompts and noise, against every step computed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dgate_core.bench.machine import describe_machine, pick_device
from dgate_core.bench.variants import install_savers, parse_variant
from dgate_core.engine.precision import choose_precision
from dgate_core.evaluation.weights.store import has_weights
from dgate_core.manifest.item import BatchKey
from dgate_core.manifest.overlap import read_prompts
from dgate_core.models.catalog import STARTER_FOLDER, find_checkpoint
from dgate_core.models.spec import DEFAULT_SCHEDULER, FAMILIES

if TYPE_CHECKING:
    from dgate_core.models.families.latent import LatentModel

EXACT: Final = "exact"
SAVERS: Final[Mapping[str, tuple[str, ...]]] = {
    "unet": ("deep-cache-2", "deep-cache-3", "deep-cache-2-branch-1", "deep-cache-2-branch-2", "guidance-0.6"),
    "dit": ("first-block-0.04", "first-block-0.08", "first-block-0.16", "guidance-0.6"),
}
"""Levers by family; those of `turbo` among them."""


@dataclass(frozen=True, slots=True)
class SaverLossOptions:
    """What is compared."""

    savers: tuple[str, ...] = ()
    """Levers, each on top of `exact`; empty is those of the model's family."""
    model: str = "starter-unet"
    """A model of postcards: their judge and CLIP measure it."""
    prompts: int = 128
    """How many of the suite's first."""
    suite: str = "suite:postcards-1k"
    """Where the prompts come from."""
    batch: int = 32
    """Pictures at once."""
    steps: int | None = None
    """None is the model's default."""
    device: str = "auto"
    """`cpu`, `cuda` or `auto`."""


def measure_saver_loss(options: SaverLossOptions, tell: Callable[[str], object]) -> dict[str, Any]:
    """Draws the prompts with every saver and measures the pictures.

    Returns:
        By saver: share of pictures with everything right, CLIP score, LPIPS to exact (None without its weights), mean
        difference of pixels (0 to 255), pictures per second, and the share of steps that a first-block cache computed
        (None without one).
    """
    device = pick_device(options.device)
    options = replace(options, savers=options.savers or SAVERS[find_checkpoint(options.model).family])
    prompts = list(read_prompts([options.suite]))[: options.prompts]
    found: dict[str, Any] = {
        "benchmark": "savers",
        "options": asdict(options),
        **describe_machine(device),
        "savers": {},
    }
    exact: np.ndarray | None = None
    for name in (EXACT, *(f"{EXACT}+{saver}" for saver in options.savers)):
        model = open_model(options.model, name, device)
        started = time.perf_counter()
        pictures = draw_prompts(model, prompts, options)
        seconds = time.perf_counter() - started
        exact = pictures if exact is None else exact
        measured = measure_pictures(pictures, exact, prompts, device)
        speed = {"pictures_per_second": len(prompts) / seconds, "share_computed": read_share(model)}
        found["savers"][name] = {**measured, **speed}
        tell(f"{name}: {found['savers'][name]}")
    return found


def open_model(model: str, variant: str, device: str) -> LatentModel:
    """A fresh model with its savers."""
    from dgate_core.models.families.contract import LoadOptions

    checkpoint = find_checkpoint(model)
    options = LoadOptions(device, choose_precision(device))
    loaded: LatentModel = FAMILIES.load(checkpoint.family)().load(checkpoint, options)
    install_savers(loaded, parse_variant(variant, device))
    return loaded


def read_share(model: LatentModel) -> float | None:
    """Of the steps, those that a first-block cache computed whole; None without one."""
    from dgate_core.models.savers.first_block_cache import FirstBlockCache

    return next((saver.share_computed for saver in model.savers if isinstance(saver, FirstBlockCache)), None)


def draw_prompts(model: LatentModel, prompts: Sequence[str], options: SaverLossOptions) -> np.ndarray:
    """Pictures uint8 (N, H, W, 3), each from the noise of its place."""
    from dgate_core.models.families.contract import BatchRequest

    spec, side = model.checkpoint.spec, model.checkpoint.native_size
    key = BatchKey(
        spec.name, side, side, options.steps or spec.num_inference_steps, DEFAULT_SCHEDULER, spec.guidance_scale
    )
    [negative] = model.encode_negatives([""], one_by_one=False)
    drawn = []
    for first in range(0, len(prompts), options.batch):
        told = tuple(model.encode_prompts(prompts[first : first + options.batch], one_by_one=False))
        seeds = tuple(range(first, first + len(told)))
        pictures = model.generate(BatchRequest(key, seeds, told, (negative,) * len(told)))
        pictures.wait()
        drawn.append(pictures.pixels.numpy())
    return np.concatenate(drawn)


def measure_pictures(
    pictures: np.ndarray, exact: np.ndarray, prompts: Sequence[str], device: str
) -> dict[str, float | None]:
    """Against the prompts, and against the same pictures with every step computed."""
    from dgate_core.evaluation.features.extractor import open_extractor
    from dgate_core.evaluation.metrics.attribute_accuracy import find_scene
    from dgate_core.evaluation.metrics.attributes import load_judge, matches_scene, read_pictures

    scenes = [find_scene(prompt) for prompt in prompts]
    readings = read_pictures(load_judge(STARTER_FOLDER / "judge"), pictures)
    pairs = zip(readings, scenes, strict=True)
    right = [matches_scene(reading, scene).all_right for reading, scene in pairs if scene is not None]
    clip: Any = open_extractor("starter-clip")
    images, texts = clip.extract(list(pictures)), clip.embed_captions(prompts)
    cosines = (images * texts).sum(1) / np.linalg.norm(images, axis=1) / np.linalg.norm(texts, axis=1)
    return {
        "attribute_accuracy": float(np.mean(right)),
        "clip_score": 100 * float(cosines.mean()),
        "lpips_to_exact": measure_lpips(pictures, exact, device) if has_weights("lpips-alex") else None,
        "mean_difference": float(np.abs(pictures.astype(int) - exact.astype(int)).mean()),
    }


def measure_lpips(pictures: np.ndarray, exact: np.ndarray, device: str) -> float:
    """Mean LPIPS (alex) of the pairs."""
    import torch

    from dgate_core.evaluation.features.lpips_network import open_lpips

    network = open_lpips("alex", device)
    first, second = (torch.from_numpy(each).permute(0, 3, 1, 2).float() / 127.5 - 1 for each in (pictures, exact))
    with torch.inference_mode():
        pairs = zip(first.split(32), second.split(32), strict=True)
        return float(torch.cat([network(a.to(device), b.to(device)).flatten() for a, b in pairs]).mean())
