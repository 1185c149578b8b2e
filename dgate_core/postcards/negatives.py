"""Scenes that differ from a given one in exactly one attribute: what a judge or a contrastive model must tell apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, Literal, get_args

import numpy as np

from dgate_core.postcards.scene import (
    COLOURS,
    GROUNDS,
    MAX_OBJECTS,
    OBJECTS,
    PLACES,
    POSES,
    SIZES,
    SKIES,
    Scene,
    SceneError,
    SceneObject,
)
from dgate_core.postcards.split import pick_one

Attribute = Literal["kind", "colour", "count", "size", "place", "pose", "ground", "sky"]
ATTRIBUTES: Final[tuple[Attribute, ...]] = get_args(Attribute)
_VALUES: Final[dict[str, tuple[str, ...]]] = {
    "kind": OBJECTS,
    "colour": COLOURS,
    "size": SIZES,
    "place": PLACES,
    "pose": POSES,
    "ground": GROUNDS,
    "sky": SKIES,
}


def replace_attribute(scene: Scene, attribute: Attribute, rng: np.random.Generator) -> Scene | None:
    """The scene with one attribute changed, of the whole or of one object; None where the scene allows no change.

    An attribute that words leave unsaid (an ordinary size, no place, no pose) stays unsaid, so that both captions
    name what differs.
    """
    if attribute in ("ground", "sky"):
        others = [value for value in _VALUES[attribute] if value != getattr(scene, attribute)]
        setting: dict[str, Any] = {attribute: pick_one(rng, others)}
        return replace(scene, **setting)
    variants = [
        variant
        for index, thing in enumerate(scene.objects)
        for changed in _change_object(thing, attribute)
        if (variant := _with_object(scene, index, changed)) is not None
    ]
    return pick_one(rng, variants) if variants else None


def hard_negatives(scene: Scene, rng: np.random.Generator, k: int) -> list[Scene]:
    """k different scenes that each differ from this one in exactly one attribute, all attributes taking turns.

    Raises SceneError when the scene has fewer.
    """
    found: dict[Scene, None] = {}
    for turn in range(40 * k):
        if len(found) == k:
            break
        if turn % len(ATTRIBUTES) == 0:
            order = rng.permutation(len(ATTRIBUTES))
        negative = replace_attribute(scene, ATTRIBUTES[int(order[turn % len(ATTRIBUTES)])], rng)
        if negative is not None:
            found[negative] = None
    if len(found) < k:
        raise SceneError(f"{k} hard negatives", f"at most about {len(found)} for this scene")
    return list(found)


def _change_object(thing: SceneObject, attribute: Attribute) -> list[SceneObject]:
    if attribute == "count":
        allowed = [] if thing.place else [n for n in range(1, MAX_OBJECTS + 1) if n != thing.count]
        return [replace(thing, count=count) for count in allowed]
    now = getattr(thing, attribute)
    if now is None or (attribute == "kind" and thing.pose):
        return []
    changes: list[dict[str, Any]] = [{attribute: value} for value in _VALUES[attribute] if value != now]
    return [replace(thing, **change) for change in changes]


def _with_object(scene: Scene, index: int, thing: SceneObject) -> Scene | None:
    objects = (*scene.objects[:index], thing, *scene.objects[index + 1 :])
    taken = [other.place for other in objects if other.place]
    total = sum(other.count for other in objects)
    if total > MAX_OBJECTS or len(set(taken)) < len(taken) or len(set(objects)) < len(objects):
        return None
    return replace(scene, objects=objects)
