"""Measures the starter models on unseen scenes: `python -m finetune.starter.evaluate --models DIR`.

Generates pictures from captions, lets the judge read them, and writes figures.json and sheet.png into the folder.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from dgate_core.engine.precision import choose_precision
from dgate_core.evaluation.metrics.attributes import AttributeMatch, Reading, load_judge, matches_scene, read_pictures
from dgate_core.postcards import Scene, sample_scene, scene_to_caption
from finetune.starter.judged import compare_judge, measure_autoencoder, measure_clip, render_fresh
from finetune.starter.networks import choose_device
from finetune.starter.parts import await_part
from finetune.starter.sheet import draw_sheet

STEPS: Final = 20
GUIDANCE: Final = 3.0
_SEED: Final = 20_000
_BATCH: Final = 125


@dataclass(frozen=True, slots=True)
class Group:
    """A kind of caption to be judged on its own."""

    share: float
    """Share of all generated pictures."""
    objects: tuple[int, ...]
    """Numbers of drawn things, in turn."""
    split: str = "train"
    """Pairs: train or held_out."""
    phrasing: str = "train"
    """Templates: train or held_out."""


GROUPS: Final = {
    "one_seen": Group(0.3, (1,)),
    "one_held_out": Group(0.2, (1,), split="held_out"),
    "two": Group(0.3, (2,)),
    "three": Group(0.12, (3,)),
    "other_phrasing": Group(0.08, (1, 2), phrasing="held_out"),
}


@dataclass(frozen=True, slots=True)
class Trial:
    """One picture that was asked for, and what came."""

    group: str
    scene: Scene
    caption: str
    picture: np.ndarray
    reading: Reading
    match: AttributeMatch


def plan_captions(number: int) -> list[tuple[str, Scene, str]]:
    """Group, scene and caption of about `number` pictures, the same ones each time."""
    planned = []
    for place, (name, group) in enumerate(GROUPS.items()):
        rng = np.random.default_rng((_SEED, place))
        for turn in range(max(1, round(group.share * number))):
            objects = group.objects[turn % len(group.objects)]
            scene = sample_scene(rng, split=group.split, objects=objects)  # type: ignore[arg-type]
            planned.append((name, scene, scene_to_caption(scene, rng, split=group.phrasing)))  # type: ignore[arg-type]
    return planned


def generate_pictures(folder: Path, captions: Sequence[str], device: torch.device) -> np.ndarray:
    """Pictures uint8 (N, 64, 64, 3) of the captions; picture n has seed n."""
    dtype = getattr(torch, choose_precision(device.type))
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype).to(device)
    pipeline.set_progress_bar_config(disable=True)
    made = []
    for start in range(0, len(captions), _BATCH):
        batch = list(captions[start : start + _BATCH])
        seeds = [torch.Generator("cpu").manual_seed(start + n) for n in range(len(batch))]
        settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "np"}
        made.append(pipeline(batch, generator=seeds, **settings).images)
    return (np.concatenate(made) * 255).round().astype(np.uint8)


def judge_pictures(models: Path, number: int, device: torch.device) -> list[Trial]:
    """Generates about `number` pictures and has them read."""
    planned = plan_captions(number)
    pictures = generate_pictures(models / "starter-unet", [caption for _, _, caption in planned], device)
    readings = read_pictures(load_judge(models / "judge").to(device), pictures)
    return [
        Trial(group, scene, caption, picture, reading, matches_scene(reading, scene))
        for (group, scene, caption), picture, reading in zip(planned, pictures, readings, strict=True)
    ]


def rate_trials(trials: Sequence[Trial]) -> dict[str, Any]:
    """Share that is right, over all and by attribute; stated attributes over the captions that state them."""
    rates: dict[str, Any] = {"pictures": len(trials), "all_right": _share([trial.match.all_right for trial in trials])}
    for attribute in ("objects", "colours", "count", "ground", "sky", "places", "sizes", "poses"):
        rates[attribute] = _share([getattr(trial.match, attribute) for trial in trials])
    return rates


def _share(answers: Sequence[bool | None]) -> float | None:
    asked = [answer for answer in answers if answer is not None]
    return round(sum(asked) / len(asked), 4) if asked else None


def count_confusions(trials: Sequence[Trial]) -> dict[str, dict[str, int]]:
    """Told and seen of one-thing captions, and of every ground and sky, where they differ."""
    wrong: dict[str, Counter[str]] = {name: Counter() for name in ("kind", "colour", "ground", "sky")}
    for trial in trials:
        told_seen = {name: (getattr(trial.scene, name), getattr(trial.reading, name)) for name in ("ground", "sky")}
        seen = [slot for slot in trial.reading.slots if slot is not None]
        if trial.scene.total == len(seen) == 1:
            thing = trial.scene.objects[0]
            told_seen |= {name: (getattr(thing, name), getattr(seen[0], name)) for name in ("kind", "colour")}
        wrong_here = {name: pair for name, pair in told_seen.items() if pair[0] != pair[1]}
        for name, pair in wrong_here.items():
            wrong[name][" -> ".join(pair)] += 1
    return {name: dict(counter.most_common()) for name, counter in wrong.items()}


def evaluate_models(models: Path, fresh: int, generated: int, device: torch.device) -> dict[str, Any]:
    """All figures of a folder of models; writes figures.json and sheet.png."""
    figures: dict[str, Any] = {"steps": STEPS, "guidance_scale": GUIDANCE}
    trials = judge_pictures(models, generated, device)
    figures["generated"] = {name: rate_trials([trial for trial in trials if trial.group == name]) for name in GROUPS}
    figures["confusions"] = count_confusions(trials)
    draw_sheet(models / "sheet.png", [(t.picture, t.caption, t.match.all_right) for t in choose_examples(trials)])
    scenes, pictures = render_fresh(fresh)
    write_figures(models, figures)
    figures["judge"] = compare_judge(models / "judge", scenes, pictures, device)
    figures["vae"] = measure_autoencoder(models, scenes, pictures, device)
    figures["clip"] = measure_clip(models / "starter-clip", scenes, pictures, device)
    write_figures(models, figures)
    return figures


def write_figures(models: Path, figures: dict[str, Any]) -> None:
    """Writes what has been measured so far."""
    (models / "figures.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")


def choose_examples(trials: Sequence[Trial], number: int = 16) -> list[Trial]:
    """The first `number` trials of each group."""
    return [trial for name in GROUPS for trial in [t for t in trials if t.group == name][:number]]


def main() -> None:
    """Evaluates the folder that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--fresh", type=int, default=1000, help="renderings that judge, VAE and CLIP are tried on")
    parser.add_argument("--generated", type=int, default=500, help="pictures to generate")
    parser.add_argument("--device")
    parser.add_argument("--await-part", nargs="*", default=[], help="wait until these parts are finished")
    given = parser.parse_args()
    for name in given.await_part:
        await_part(given.models, name)
    started = time.monotonic()
    figures = evaluate_models(given.models, given.fresh, given.generated, choose_device(given.device))
    print(json.dumps(figures, indent=1), f"evaluated in {time.monotonic() - started:.0f} s", sep="\n", flush=True)


if __name__ == "__main__":
    main()
