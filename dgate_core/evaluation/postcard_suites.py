"""Draws the rows of postcard suites from their cards' seeds; `python -m` with this module's name writes them anew."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from dgate_core.data_files import find_root
from dgate_core.manifest.overlap import normalise_prompt
from dgate_core.manifest.suites import Portion, SuiteCard, find_suite, list_suites
from dgate_core.postcards import Scene, sample_scene, scene_to_caption

Skill = Callable[[Scene], bool]

SKILLS: Final[Mapping[str, Skill]] = {
    "any": lambda scene: True,  # noqa: ARG005 - every scene will do
    "counts": lambda scene: any(thing.count > 1 for thing in scene.objects),
    "places": lambda scene: len(scene.objects) > 1 and all(thing.place for thing in scene.objects),
    "binding": lambda scene: 1 < len(scene.objects) == len({thing.colour for thing in scene.objects}),
}
"""Which scenes ask a skill of a model; binding: several things, each with a colour of its own."""


@dataclass(frozen=True, slots=True)
class Postcard:
    """One row of a suite, and the scene that it tells of."""

    id: str
    """Such as `postcards-smoke-001`."""
    scene: Scene
    """What is to be seen; with its own seed, so that it can be drawn."""
    prompt: str
    """The scene in words."""
    portion: Portion
    """How it was drawn."""


def draw_postcards(card: SuiteCard) -> list[Postcard]:
    """All rows of a suite in their order, no prompt twice; the same ones each time."""
    rng = np.random.default_rng(card.seed)
    avoided = [postcard for name in card.avoids for postcard in draw_postcards(find_suite(name))]
    taken = {normalise_prompt(postcard.prompt) for postcard in avoided}
    drawn: list[tuple[Scene, str, Portion]] = []
    for portion in card.portions:
        wanted = len(drawn) + portion.count
        while len(drawn) < wanted:
            scene = sample_scene(rng, split=portion.split)
            prompt = scene_to_caption(scene, rng, split=portion.phrasing)
            if SKILLS[portion.skill](scene) and normalise_prompt(prompt) not in taken:
                taken.add(normalise_prompt(prompt))
                drawn.append((scene, prompt, portion))
    # Mixed, so that the first rows of a suite are a fair part of it.
    order = rng.permutation(len(drawn))
    return [Postcard(f"{card.name}-{number:04d}", *drawn[index]) for number, index in enumerate(order, start=1)]


def suite_to_lines(card: SuiteCard) -> bytes:
    """The suite as JSON Lines: id, prompt, and how the row was drawn."""
    return "".join(f"{json.dumps(_postcard_to_row(postcard))}\n" for postcard in draw_postcards(card)).encode()


def _postcard_to_row(postcard: Postcard) -> dict[str, str]:
    portion = postcard.portion
    drawn = {"split": portion.split, "phrasing": portion.phrasing, "skill": portion.skill}
    return {"id": postcard.id, "prompt": postcard.prompt, **drawn}


def write_suites(folder: Path) -> dict[str, str]:
    """Writes the JSONL of every suite; returns the sha256 that each card must carry."""
    found = {}
    for card in list_suites():
        lines = suite_to_lines(card)
        (folder / f"{card.name}.jsonl").write_bytes(lines)
        found[card.name] = hashlib.sha256(lines).hexdigest()
    return found


if __name__ == "__main__":
    for name, sha256 in write_suites(find_root() / "datasets" / "suites").items():
        print(name, sha256)
