"""Renders training scenes from seeds with many processes, into chunk files that appear one after another.

Imports no torch, so that a rendering process starts in a moment: `python -m finetune.starter.scenes --out DIR`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Final

import numpy as np

from dgate_core.postcards import (
    COLOURS,
    FIRST_OBJECT_LABEL,
    GROUNDS,
    OBJECTS,
    POSES,
    SIZES,
    SKIES,
    Scene,
    hard_negatives,
    is_held_out,
    render_scene,
    sample_scene,
    scene_to_caption,
    scene_to_truth,
    segmentation_map,
    vocabulary,
)
from finetune.starter.words import WordVocabulary, learn_vocabulary

SLOT_LABELS: Final = 4
LABELS: Final = 2 + 3 * SLOT_LABELS


@dataclass(frozen=True, slots=True)
class SceneOptions:
    """What is rendered."""

    scenes: int
    """How many."""
    chunk: int = 1000
    """Scenes a file."""
    seed: int = 0
    """Decides every scene and caption."""
    paraphrases: int = 4
    """Captions a scene."""
    negatives: int = 2
    """Captions a scene that are wrong in one thing."""

    def chunk_names(self) -> list[str]:
        """Files in the order in which they are written."""
        return [f"scenes-{number:05d}" for number in range(-(-self.scenes // self.chunk))]


def write_scenes(folder: Path, options: SceneOptions, processes: int) -> None:
    """Writes options.json and every chunk that is not there yet, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "options.json").write_text(json.dumps(asdict(options)), encoding="utf-8")
    missing = [name for name in options.chunk_names() if not (folder / f"{name}.npz").exists()]
    if not missing:
        return
    with multiprocessing.get_context("spawn").Pool(min(processes, len(missing))) as pool:
        for _ in pool.imap_unordered(_write_chunk, [(folder, options, name) for name in missing]):
            pass


def _write_chunk(task: tuple[Path, SceneOptions, str]) -> None:
    folder, options, name = task
    arrays = render_chunk(options, name)
    partial = folder / f"{name}.partial"
    with partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    partial.replace(folder / f"{name}.npz")


def render_chunk(options: SceneOptions, name: str) -> dict[str, np.ndarray]:
    """Arrays of one chunk: pictures (n, 64, 64, 3) uint8, labels (n, 14) int8, tokens (n, paraphrases, 40) int16,
    negatives (n, negatives, 40) int16, held_out (n,) bool, masks (n, 16, 16) uint8 (share of
    objects, of 255), and signatures (n,) int64, equal for scenes that captions
    can confuse."""
    number = int(name.removeprefix("scenes-"))
    rng = np.random.default_rng((options.seed, number))
    size = min(options.chunk, options.scenes - number * options.chunk)
    scenes = [sample_scene(rng, split="any") for _ in range(size)]
    words = starter_vocabulary()
    told = [[scene_to_caption(scene, rng) for _ in range(options.paraphrases)] for scene in scenes]
    wrong = [
        [scene_to_caption(other, rng) for other in hard_negatives(scene, rng, options.negatives)] for scene in scenes
    ]
    return {
        "pictures": np.stack([render_scene(scene, 64) for scene in scenes]),
        "masks": np.stack([mask_objects(scene) for scene in scenes]),
        "labels": np.stack([scene_to_labels(scene) for scene in scenes]),
        "tokens": np.stack([words.captions_to_ids(captions) for captions in told]),
        "negatives": np.stack([words.captions_to_ids(captions) for captions in wrong]),
        "held_out": np.array([is_held_out(scene) for scene in scenes]),
        "signatures": np.array([sign_scene(scene) for scene in scenes], dtype=np.int64),
    }


def mask_objects(scene: Scene) -> np.ndarray:
    """Share of each latent cell (16, 16) that objects cover, uint8 of 255."""
    covered = segmentation_map(scene, 64) >= FIRST_OBJECT_LABEL
    return (255 * covered.reshape(16, 4, 16, 4).mean(axis=(1, 3))).astype(np.uint8)


@lru_cache(maxsize=1)
def starter_vocabulary() -> WordVocabulary:
    """The words of the postcard grammar as CLIP tokens."""
    return learn_vocabulary(vocabulary())


def scene_to_labels(scene: Scene) -> np.ndarray:
    """Class numbers (14,) int8: ground, sky, each third's kind (0: none), colour, size, pose; -1 is unasked."""
    truth = scene_to_truth(scene)
    labels = np.full(LABELS, -1, dtype=np.int8)
    labels[:2] = GROUNDS.index(truth.ground), SKIES.index(truth.sky)
    for number, slot in enumerate(truth.slots):
        start = 2 + number * SLOT_LABELS
        labels[start] = 0
        if slot is not None:
            labels[start] = 1 + OBJECTS.index(slot.kind)
            labels[start + 1] = COLOURS.index(slot.colour)
            labels[start + 2] = (None, *SIZES).index(slot.size)
            labels[start + 3] = POSES.index(slot.pose) if slot.pose else -1
    return labels


def sign_scene(scene: Scene) -> int:
    """A number equal for scenes with the same things, colours, counts, ground and sky."""
    things = sorted((thing.kind, thing.colour, thing.count) for thing in scene.objects)
    digest = blake2b(repr((things, scene.ground, scene.sky)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def count_processes() -> int:
    """Processes that leave two cores to the training, where there are more than three."""
    cores = os.cpu_count() or 1
    return cores - 3 if cores > 4 else cores


def main() -> None:
    """Renders the scenes that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    for name, default in (("scenes", 24_000), ("chunk", 1000), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--processes", type=int, default=count_processes())
    given = parser.parse_args()
    write_scenes(given.out, SceneOptions(given.scenes, given.chunk, given.seed), given.processes)


if __name__ == "__main__":
    main()
