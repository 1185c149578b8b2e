"""How the judge's logits become a reading, and how a reading is compared with a caption's scene."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dgate_core.errors import ModelError
from dgate_core.evaluation.metrics.attributes import (
    JudgeNet,
    Reading,
    SlotReading,
    judge_names,
    load_judge,
    matches_scene,
    read_pictures,
    split_logits,
)
from dgate_core.postcards import Scene, SceneObject, scene_to_truth


def see(scene: Scene) -> Reading:
    """The reading of a judge that is right."""
    truth = scene_to_truth(scene)
    slots = [slot and SlotReading(slot.kind, slot.colour, slot.size, slot.pose, 1.0) for slot in truth.slots]
    return Reading(truth.ground, truth.sky, tuple(slots), 1.0)


SCENE = Scene(
    (SceneObject("boat", "red", 2), SceneObject("person", "blue", size="large", place="left", pose="waving")),
    "sea",
    "night",
    3,
)


def test_a_right_picture_matches_in_everything() -> None:
    match = matches_scene(see(SCENE), SCENE)
    assert match.all_right
    assert (match.objects, match.count, match.places, match.sizes, match.poses) == (True, True, True, True, True)


@pytest.mark.parametrize(
    ("shown", "wrong"),
    [
        (Scene(SCENE.objects, "sand", "night", 3), {"ground"}),
        (Scene(SCENE.objects, "sea", "day", 3), {"sky"}),
        (Scene((SceneObject("boat", "green", 2), SCENE.objects[1]), "sea", "night", 3), {"colours"}),
        (Scene((SceneObject("fish", "red", 2), SCENE.objects[1]), "sea", "night", 3), {"objects", "colours"}),
        (Scene((SceneObject("boat", "red", 1), SCENE.objects[1]), "sea", "night", 3), {"objects", "colours", "count"}),
    ],
)
def test_one_wrong_thing_is_told_by_name(shown: Scene, wrong: set[str]) -> None:
    match = matches_scene(see(shown), SCENE)
    assert not match.all_right
    assert {name for name in ("objects", "colours", "count", "ground", "sky") if not getattr(match, name)} == wrong


def test_place_size_and_pose_are_told_apart_and_do_not_decide() -> None:
    other = SceneObject("person", "blue", size="small", place="right", pose="walking")
    match = matches_scene(see(Scene((SCENE.objects[0], other), "sea", "night", 3)), SCENE)
    assert match.all_right
    assert (match.places, match.sizes, match.poses) == (False, False, False)


def test_what_a_caption_leaves_open_is_not_compared() -> None:
    scene = Scene((SceneObject("tree", "green"),), "grass", "day")
    match = matches_scene(see(scene), scene)
    assert (match.places, match.sizes, match.poses) == (None, None, None)


def test_reading_follows_the_logits_and_takes_any_size() -> None:
    judge = JudgeNet(8).eval()
    with torch.no_grad():
        last = judge.head[-1]
        last.weight.zero_()
        last.bias.fill_(-20)
        for question, answer in zip(
            split_logits(last.bias[None]), [3, 2, 0, 0, 0, 0, 10, 4, 2, 1, 3, 9, 0, 3], strict=True
        ):
            question[0, answer] = 20
    for size in (64, 96):
        (reading,) = read_pictures(judge, np.zeros((1, size, size, 3), np.uint8))
        person = SlotReading("person", "blue", "large", "waving", 1.0)
        assert reading == Reading("sea", "night", (None, person, SlotReading("boat", "black", None, None, 1.0)), 1.0)


def test_a_judge_of_other_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no judge"):
        load_judge(tmp_path)
    judge = JudgeNet(8)
    save_file(judge.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"width": 8, "names": judge_names() | {"skies": ["day"]}}))
    with pytest.raises(ModelError, match="other names"):
        load_judge(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"width": 8, "names": judge_names()}))
    assert load_judge(tmp_path).width == 8
