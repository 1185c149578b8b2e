"""From a scene to words: a plain canonical caption, or one of many paraphrases."""

from __future__ import annotations

import re
from typing import Final

import numpy as np

from dgate_core.postcards.scene import COLOURS, Scene, SceneObject
from dgate_core.postcards.split import Split
from dgate_core.postcards.words import (
    COUNT_WORDS,
    DRESS_PHRASES,
    GROUND_PHRASES,
    JOINERS,
    OPENERS,
    PLACE_PHRASES,
    PLURALS,
    POSE_WORDS,
    SIZE_WORDS,
    SKY_PHRASES,
)

_CANONICAL: Final = "{objects} {ground} {sky}"
# Held-out templates bring parts into an order that training never shows, with no word that training does not know.
TEMPLATES: Final[dict[str, tuple[str, ...]]] = {
    "train": (
        _CANONICAL,
        "{objects} {sky} {ground}",
        "{sky}, {objects} {ground}",
        "{ground} {sky}, {objects}",
        "a postcard of {objects} {ground} {sky}",
        "a picture of {objects} {sky} {ground}",
        "{sky} {there_is} {objects} {ground}",
    ),
    "held_out": (
        "{ground}, {objects} {sky}",
        "{sky} {ground}, {objects}",
        "a postcard of {objects} {sky} {ground}",
        "{there_is} {objects} {ground} {sky}",
        "{ground} {sky} {there_is} {objects}",
    ),
}
# How often training uses the first, plainest phrase where several are possible.
_PLAIN_SHARE: Final = 0.4


def scene_to_caption(scene: Scene, rng: np.random.Generator | None = None, *, split: Split = "train") -> str:
    """Put a scene into words; parse_caption takes every such caption back to the scene.

    Args:
        scene: What is to be said; its seed is not.
        rng: Chooses a paraphrase; None gives the plain canonical caption.
        split: Whether paraphrases come from the templates of training, from those held out, or from any.

    Returns:
        Lower-case English of at most about 40 words.
    """
    if rng is None:
        return _fill(_CANONICAL, scene, None, prefixed=False)
    templates = TEMPLATES["train"] + TEMPLATES["held_out"] if split == "any" else TEMPLATES[split]
    template = templates[int(rng.integers(len(templates)))]
    # "on the left a boat and in the middle a tree": the place comes first only if the first object has one.
    prefixed = scene.objects[0].place is not None and rng.random() < 0.2
    return _fill(template, scene, rng, prefixed=prefixed)


def vocabulary() -> list[str]:
    """Every word (and punctuation mark) that captions can contain, sorted."""
    phrases = [*OPENERS, *JOINERS, ",", "an", *COLOURS, *PLURALS, *PLURALS.values()]
    tables = (
        GROUND_PHRASES,
        SKY_PHRASES,
        PLACE_PHRASES,
        SIZE_WORDS,
        COUNT_WORDS,
        POSE_WORDS,
        DRESS_PHRASES,
    )
    phrases += [phrase for table in tables for choices in table.values() for phrase in choices]
    return sorted({word for phrase in phrases for word in split_words(phrase)})


def split_words(text: str) -> list[str]:
    """Lower-case words and commas of a text; other punctuation falls away."""
    return re.findall(r"[a-z0-9]+|,", text.lower().replace("'", ""))


def _fill(template: str, scene: Scene, rng: np.random.Generator | None, *, prefixed: bool) -> str:
    named = [_describe(thing, rng, prefixed=prefixed) for thing in scene.objects]
    joiner = "and" if rng is None or len(named) > 2 or prefixed or rng.random() < 0.7 else "with"
    listed = f" {joiner} ".join([", ".join(named[:-1]), named[-1]]) if len(named) > 1 else named[0]
    text = template.format(
        objects=listed,
        ground=_choose(GROUND_PHRASES[scene.ground], rng),
        sky=_choose(SKY_PHRASES[scene.sky], rng),
        there_is="there are" if scene.objects[0].count > 1 else "there is",
    )
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def _describe(thing: SceneObject, rng: np.random.Generator | None, *, prefixed: bool) -> str:
    noun = thing.kind if thing.count == 1 else PLURALS[thing.kind]
    size = _choose(SIZE_WORDS[thing.size], rng) if thing.size else ""
    place = _choose(PLACE_PHRASES[thing.place], rng) if thing.place else ""
    pose_first, dressed = (rng.random(2) < (0.5, 0.4)).tolist() if rng is not None else (False, False)
    dressed = dressed and thing.kind == "person"
    pose = thing.pose or ""
    parts = [
        place if prefixed else "",
        _choose(COUNT_WORDS[thing.count], rng),
        size,
        pose if pose_first else "",
        "" if dressed else thing.colour,
        noun,
        _choose(DRESS_PHRASES[thing.colour], rng) if dressed else "",
        "" if pose_first else pose,
        "" if prefixed else place,
    ]
    return " ".join(part for part in parts if part)


def _choose(choices: tuple[str, ...], rng: np.random.Generator | None) -> str:
    if rng is None or rng.random() < _PLAIN_SHARE:
        return choices[0]
    return choices[int(rng.integers(len(choices)))]
