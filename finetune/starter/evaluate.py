"""Measures the starter models on unseen scenes: `python -m finetune.starter.evaluate --models DIR`.

Generates pictures from captions, lets the judge read them, and writes figures.json and sheet.png into the folder. With
`--pipeline starter-dit` only that pipeline's pictures are judged, into starter-dit.json and starter-dit.png.
"""

from __future__ import annotations

import argparse
import inspect
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers import DiffusionPipeline

from dgate_core.engine.precision import choose_precision
from dgate_core.evaluation.metrics.attributes import AttributeMatch, Reading, load_judge, matches_scene, read_pictures
from dgate_core.postcards import Scene, sample_scene, scene_to_caption
from finetune.starter.judged import compare_judge, measure_autoencoder, measure_clip, render_fresh
from finetune.starter.networks import choose_device
from finetune.starter.parts import await_part
from finetune.starter.sheet import draw_sheet

PIPELINE: Final = "starter-unet"
SETTINGS: Final = {PIPELINE: (25, 1.5), "starter-dit": (20, 3.0)}
"""Steps and guidance of each pipeline, as the catalogue has them."""
_SHORT_TEXT: Final = 2
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
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=dtype).to(device)
    pipeline.set_progress_bar_config(disable=True)
    steps, guidance = SETTINGS[folder.name]
    settings = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "np"}
    if "max_sequence_length" in inspect.signature(pipeline.__call__).parameters:
        # starter-dit's third encoder says nothing: the fewest tokens of it are the fastest.
        settings["max_sequence_length"] = _SHORT_TEXT
    made = []
    for start in range(0, len(captions), _BATCH):
        batch = list(captions[start : start + _BATCH])
        seeds = [torch.Generator("cpu").manual_seed(start + n) for n in range(len(batch))]
        made.append(pipeline(batch, generator=seeds, **settings).images)
    return (np.concatenate(made) * 255).round().astype(np.uint8)


def judge_pictures(folder: Path, judge: Path, number: int, device: torch.device) -> list[Trial]:
    """Generates about `number` pictures with the pipeline of `folder` and has them read."""
    planned = plan_captions(number)
    pictures = generate_pictures(folder, [caption for _, _, caption in planned], device)
    readings = read_pictures(load_judge(judge).to(device), pictures)
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
    trials = judge_pictures(models / PIPELINE, models / "judge", generated, device)
    figures = summarise_trials(PIPELINE, trials, models / "sheet.png")
    scenes, pictures = render_fresh(fresh)
    write_figures(models / "figures.json", figures)
    figures["judge"] = compare_judge(models / "judge", scenes, pictures, device)
    figures["vae"] = measure_autoencoder(models, scenes, pictures, device)
    figures["clip"] = measure_clip(models / "starter-clip", scenes, pictures, device)
    write_figures(models / "figures.json", figures)
    return figures


def evaluate_pipeline(folder: Path, judge: Path, generated: int, device: torch.device) -> dict[str, Any]:
    """What the judge reads in one pipeline's pictures; writes NAME.json and NAME.png beside the folder."""
    trials = judge_pictures(folder, judge, generated, device)
    figures = summarise_trials(folder.name, trials, folder.with_name(f"{folder.name}.png"))
    write_figures(folder.with_name(f"{folder.name}.json"), figures)
    return figures


def summarise_trials(pipeline: str, trials: Sequence[Trial], sheet: Path) -> dict[str, Any]:
    """Settings, rates by group and confusions; draws the sheet."""
    draw_sheet(sheet, [(t.picture, t.caption, t.match.all_right) for t in choose_examples(trials)])
    steps, guidance = SETTINGS[pipeline]
    return {
        "steps": steps,
        "guidance_scale": guidance,
        "generated": {name: rate_trials([trial for trial in trials if trial.group == name]) for name in GROUPS},
        "confusions": count_confusions(trials),
    }


def write_figures(file: Path, figures: dict[str, Any]) -> None:
    """Writes what has been measured so far."""
    file.write_text(json.dumps(figures, indent=2), encoding="utf-8")


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
    parser.add_argument("--pipeline", default=PIPELINE, help="pipeline folder in --models to be judged")
    parser.add_argument("--judge", type=Path, help="folder of the judge, when it is not in --models")
    parser.add_argument("--await-part", nargs="*", default=[], help="wait until these parts are finished")
    given = parser.parse_args()
    for name in given.await_part:
        await_part(given.models, name)
    started, device = time.monotonic(), choose_device(given.device)
    if given.pipeline == PIPELINE:
        figures = evaluate_models(given.models, given.fresh, given.generated, device)
    else:
        judge = given.judge or given.models / "judge"
        figures = evaluate_pipeline(given.models / given.pipeline, judge, given.generated, device)
    print(json.dumps(figures, indent=1), f"evaluated in {time.monotonic() - started:.0f} s", sep="\n", flush=True)


if __name__ == "__main__":
    main()
