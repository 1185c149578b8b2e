"""Scenes, their layout and truth, the split, and the words for them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgate_core.errors import DgateError
from dgate_core.postcards import (
    COLOURS,
    GROUNDS,
    HELD_OUT_PAIRS,
    OBJECTS,
    PLACES,
    POSES,
    SIZES,
    SKIES,
    CaptionError,
    Scene,
    SceneError,
    SceneObject,
    hard_negatives,
    is_held_out,
    layout_scene,
    parse_caption,
    replace_attribute,
    sample_scene,
    scene_to_caption,
    scene_to_truth,
    vocabulary,
)
from dgate_core.postcards.caption import TEMPLATES, split_words
from dgate_core.postcards.negatives import ATTRIBUTES
from dgate_core.postcards.split import Split

SPLITS: tuple[Split, ...] = ("train", "held_out", "any")
SCENES = 1500


def sample_many(split: Split, number: int = SCENES, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, split=split) for _ in range(number)]


@pytest.mark.parametrize("split", SPLITS)
def test_captions_come_back_as_their_scene(split: Split) -> None:
    rng = np.random.default_rng(1)
    for scene in sample_many(split):
        for caption in (scene_to_caption(scene), scene_to_caption(scene, rng, split=split)):
            assert parse_caption(caption) == replace(scene, seed=0), caption
            assert len(caption.split()) <= 40, caption


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(SPLITS), st.randoms(use_true_random=False))
def test_parsing_forgives_how_a_caption_is_written(seed: int, split: Split, random: object) -> None:
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, split=split)
    words = scene_to_caption(scene, rng, split=split).replace(",", "").replace("two", "2").split()
    shouted = "  ".join(word.upper() if rng.random() < 0.5 else word.capitalize() for word in words)
    assert parse_caption(f" {shouted}!! ") == replace(scene, seed=0)


def test_held_out_captions_use_only_words_of_training() -> None:
    rng = np.random.default_rng(2)
    seen = {word for scene in sample_many("train", 4000) for word in split_words(scene_to_caption(scene, rng))}
    assert seen == set(vocabulary())
    unseen = [scene_to_caption(scene, rng, split="held_out") for scene in sample_many("held_out", 500)]
    assert {word for caption in unseen for word in split_words(caption)} <= seen


def test_held_out_templates_are_not_those_of_training() -> None:
    assert not set(TEMPLATES["train"]) & set(TEMPLATES["held_out"])


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        (
            "A red boat on the left and two small green trees, on grass at sunset.",
            (SceneObject("boat", "red", place="left"), SceneObject("tree", "green", 2, "small")),
        ),
        ("3 tiny black fishes on grass at sunset", (SceneObject("fish", "black", 3, "small"),)),
        ("a waving person wearing pink in a meadow at dusk", (SceneObject("person", "pink", pose="waving"),)),
        (
            "in the center an orange car on the grass under a sunset sky",
            (SceneObject("car", "orange", place="middle"),),
        ),
    ],
)
def test_captions_written_by_hand(caption: str, expected: tuple[SceneObject, ...]) -> None:
    assert parse_caption(caption) == Scene(expected, "grass", "sunset")


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ("a red dog on grass at night", "'dog' (word 3)"),
        ("a red boat at night", "no ground"),
        ("a red boat on the sea", "no sky"),
        ("", "no ground"),
        ("on grass at night", "0 objects"),
        ("a boat on grass at night", "a boat without a colour"),
        ("a person on grass at night", "a person without a colour"),
        ("a person and a red boat on grass at night", "a person without a colour"),
        ("red boats on grass at night", "boats without a number"),
        ("three red boats and a blue car on grass at night", "4 objects"),
        ("two red boats on the left on grass at night", "place 'left'"),
        ("a red boat on the left and a blue car on the left on grass at night", "places left, left"),
        ("a red boat on the left on the right on grass at night", "the place 'right'"),
        ("a red blue boat on grass at night", "colour 'blue' after colour 'red'"),
        ("a red boat on grass on snow at night", "ground 'snow' after ground 'grass'"),
        ("a red boat in blue on grass at night", "'in blue'"),
        ("a waving red boat on grass at night", "pose 'waving'"),
        ("a red person waving jumping on grass at night", "two poses"),
        ("a red boat and a small green on grass at night", "'1 small green' with no object"),
    ],
)
def test_what_is_no_caption_is_named(caption: str, named: str) -> None:
    with pytest.raises(CaptionError) as caught:
        parse_caption(caption)
    assert named in caught.value.got
    assert caught.value.expected
    assert isinstance(caught.value, DgateError)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: SceneObject("dog", "red"), "'dog'"),
        (lambda: SceneObject("boat", "mauve"), "'mauve'"),
        (lambda: SceneObject("boat", "red", size="giant"), "'giant'"),
        (lambda: SceneObject("boat", "red", count=0), "count 0"),
        (lambda: SceneObject("boat", "red", count=2, place="left"), "'left'"),
        (lambda: SceneObject("boat", "red", pose="waving"), "'waving'"),
        (lambda: Scene((), "grass", "day"), "0 objects"),
        (lambda: Scene((SceneObject("boat", "red"),), "lava", "day"), "'lava'"),
        (lambda: Scene((SceneObject("boat", "red"),), "sea", "fog"), "'fog'"),
        (lambda: Scene((SceneObject("boat", "red"),), "sea", "day", -1), "seed -1"),
        (lambda: Scene((SceneObject("boat", "red", 2), SceneObject("car", "red", 2)), "sea", "day"), "4 objects"),
        (lambda: Scene((SceneObject("boat", "red"), SceneObject("boat", "red")), "sea", "day"), "twice"),
        (lambda: sample_scene(np.random.default_rng(0), objects=4), "4 objects"),
    ],
)
def test_impossible_scenes_are_refused(make: object, named: str) -> None:
    assert callable(make)
    with pytest.raises(SceneError) as caught:
        make()
    assert named in caught.value.got


def test_training_never_shows_a_held_out_pair() -> None:
    assert not any(is_held_out(scene) for scene in sample_many("train", 3000))
    assert all(is_held_out(scene) for scene in sample_many("held_out", 1000))
    for names, position in ((OBJECTS, 0), (COLOURS, 1)):
        held = Counter(pair[position] for pair in HELD_OUT_PAIRS)
        assert all(10 - held[name] >= 8 for name in names)


def test_training_scenes_are_balanced_and_varied() -> None:
    scenes = sample_many("train", 4000)
    things = [thing for scene in scenes for thing in scene.objects]
    for counted, names in (
        (Counter(thing.kind for thing in things), OBJECTS),
        (Counter(thing.colour for thing in things), COLOURS),
        (Counter(scene.ground for scene in scenes), GROUNDS),
        (Counter(scene.sky for scene in scenes), SKIES),
    ):
        share = sum(counted.values()) / len(names)
        assert all(0.85 * share < counted[name] < 1.15 * share for name in names)
    assert {thing.size for thing in things} == {None, *SIZES}
    assert {thing.place for thing in things} == {None, *PLACES}
    assert {thing.pose for thing in things if thing.kind == "person"} == {None, *POSES}
    assert {thing.count for thing in things} == {1, 2, 3}
    assert {scene.total for scene in scenes} == {1, 2, 3}
    assert any(a.kind == b.kind for scene in scenes for a, b in combinations(scene.objects, 2))


@pytest.mark.parametrize("objects", [1, 2, 3])
def test_the_number_of_objects_can_be_asked_for(objects: int) -> None:
    rng = np.random.default_rng(3)
    assert {sample_scene(rng, objects=objects).total for _ in range(100)} == {objects}


def test_layout_keeps_to_slots_places_and_the_frame() -> None:
    for scene in sample_many("any"):
        placed = layout_scene(scene)
        named = [thing for thing in scene.objects for _ in range(thing.count)]
        assert [(p.kind, p.colour, p.size) for p in placed] == [(n.kind, n.colour, n.size) for n in named]
        assert len({p.slot for p in placed}) == len(placed)
        for thing, word in zip(placed, named, strict=True):
            left, top, right, bottom = thing.box
            assert min(left, top) >= 0
            assert max(right, bottom) <= 1
            assert thing.slot / 3 < thing.x < (thing.slot + 1) / 3
            assert word.place is None or PLACES[thing.slot] == word.place
            assert 0 < thing.depth < 1
        for a, b in combinations(placed, 2):
            assert min(a.box[2], b.box[2]) - max(a.box[0], b.box[0]) < 0.03


def test_truth_names_every_slot() -> None:
    scene = Scene((SceneObject("person", "red", place="right"), SceneObject("car", "blue", 2, "small")), "road", "rain")
    truth = scene_to_truth(scene)
    assert (truth.ground, truth.sky, truth.total) == ("road", "rain", 3)
    left, middle, right = truth.slots
    assert right is not None
    assert (right.kind, right.colour, right.size, right.pose) == ("person", "red", None, "standing")
    assert left == middle
    assert left is not None
    assert (left.kind, left.size, left.pose) == ("car", "small", None)


def differing_attributes(first: Scene, second: Scene) -> list[str]:
    found = [name for name in ("ground", "sky", "seed") if getattr(first, name) != getattr(second, name)]
    for a, b in zip(first.objects, second.objects, strict=True):
        found += [name for name in SceneObject.__dataclass_fields__ if getattr(a, name) != getattr(b, name)]
    return found


def test_hard_negatives_differ_in_exactly_one_attribute() -> None:
    rng = np.random.default_rng(4)
    changed: Counter[str] = Counter()
    for scene in sample_many("train", 300):
        negatives = hard_negatives(scene, rng, 6)
        assert len(set(negatives)) == 6
        for negative in negatives:
            (attribute,) = differing_attributes(scene, negative)
            changed[attribute] += 1
            assert scene_to_caption(negative) != scene_to_caption(scene)
    assert set(changed) == set(ATTRIBUTES)


def test_an_attribute_without_another_value_cannot_be_replaced() -> None:
    scene = Scene((SceneObject("boat", "red"),), "sea", "day")
    assert replace_attribute(scene, "pose", np.random.default_rng(0)) is None
    with pytest.raises(SceneError, match="hard negatives"):
        hard_negatives(scene, np.random.default_rng(0), 1000)
