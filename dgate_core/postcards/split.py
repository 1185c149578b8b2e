"""Which scenes are for training and which are held out, and how scenes are drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, TypeVar

import numpy as np

from dgate_core.postcards.scene import (
    COLOURS,
    GROUNDS,
    OBJECTS,
    PLACES,
    POSES,
    SIZES,
    SKIES,
    Scene,
    SceneError,
    SceneObject,
)

Split = Literal["train", "held_out", "any"]
Pair = tuple[str, str]
T = TypeVar("T")

# One per kind and one per colour: every kind and every colour still has nine training pairs, so nothing is rarer.
HELD_OUT_PAIRS: Final[frozenset[Pair]] = frozenset(
    {
        ("house", "purple"),
        ("tree", "blue"),
        ("boat", "yellow"),
        ("car", "green"),
        ("balloon", "brown"),
        ("flower", "black"),
        ("fish", "white"),
        ("windmill", "pink"),
        ("bird", "orange"),
        ("person", "red"),
    }
)
ALL_PAIRS: Final[tuple[Pair, ...]] = tuple((kind, colour) for kind in OBJECTS for colour in COLOURS)
TRAIN_PAIRS: Final[tuple[Pair, ...]] = tuple(pair for pair in ALL_PAIRS if pair not in HELD_OUT_PAIRS)

_PARTITIONS: Final[dict[int, tuple[tuple[int, ...], ...]]] = {
    1: ((1,),),
    2: ((1, 1), (1, 1), (2,)),
    3: ((1, 1, 1), (1, 1, 1), (2, 1), (1, 2), (3,)),
}
_TOTAL_SHARES: Final = (0.4, 0.38, 0.22)


def is_held_out(scene: Scene) -> bool:
    """Whether the scene shows a (kind, colour) pair that training never sees."""
    return any((thing.kind, thing.colour) in HELD_OUT_PAIRS for thing in scene.objects)


def sample_scene(rng: np.random.Generator, *, split: Split = "train", objects: int | None = None) -> Scene:
    """Draw a scene, balanced over kinds, colours, grounds and skies.

    Args:
        rng: Decides everything, the scene's own seed too.
        split: train has no held-out pair, held_out has at least one, any is drawn from all pairs.
        objects: How many things are drawn in all, 1 to 3; None mixes 1, 2 and 3.
    """
    total = objects if objects is not None else int(rng.choice(3, p=_TOTAL_SHARES)) + 1
    if total not in _PARTITIONS:
        raise SceneError(f"{total} objects in a scene", "1, 2 or 3")
    counts = pick_one(rng, _PARTITIONS[total])
    pairs = _sample_pairs(rng, len(counts), split)
    places = [PLACES[i] for i in rng.permutation(3)]
    things = [_sample_object(rng, pair, n, place) for pair, n, place in zip(pairs, counts, places, strict=False)]
    return Scene(tuple(things), pick_one(rng, GROUNDS), pick_one(rng, SKIES), int(rng.integers(2**31)))


def _sample_pairs(rng: np.random.Generator, number: int, split: Split) -> list[Pair]:
    """Distinct pairs; now and then two of a kind in different colours."""
    pool = TRAIN_PAIRS if split == "train" else ALL_PAIRS
    first = pick_one(rng, sorted(HELD_OUT_PAIRS)) if split == "held_out" else pick_one(rng, pool)
    pairs = [first]
    while len(pairs) < number:
        kind_first = rng.random() < 0.15
        pair = pick_one(rng, [p for p in pool if p not in pairs and (not kind_first or p[0] == first[0])])
        pairs.append(pair)
    return [pairs[i] for i in rng.permutation(number)]


def _sample_object(rng: np.random.Generator, pair: Pair, count: int, place: str) -> SceneObject:
    kind, colour = pair
    size = pick_one(rng, SIZES) if rng.random() < 0.5 else None
    stated = place if count == 1 and rng.random() < 0.55 else None
    pose = pick_one(rng, POSES) if kind == "person" and rng.random() < 0.75 else None
    return SceneObject(kind, colour, count, size, stated, pose)


def pick_one(rng: np.random.Generator, items: Sequence[T]) -> T:
    """One of the items, all equally likely."""
    return items[int(rng.integers(len(items)))]
