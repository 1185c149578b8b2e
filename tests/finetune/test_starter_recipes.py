"""The starter recipes at toy size: words as tokens, exact resume, and what the contrast leaves out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from dgate_core.postcards import sample_scene, scene_to_caption, scene_to_truth, vocabulary
from finetune.starter.pack import pack_models, unpack_models
from finetune.starter.scenes import scene_to_labels, starter_vocabulary
from finetune.starter.train_clip import contrast
from finetune.starter.train_judge import main as train_judge


def test_every_word_is_one_token_and_fast_ids_equal_the_tokenizer(tmp_path: Path) -> None:
    starter_vocabulary().save(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    assert all(len(tokenizer(word).input_ids) == 3 for word in vocabulary())
    rng = np.random.default_rng(0)
    captions = [scene_to_caption(sample_scene(rng, split="any"), rng, split="any") for _ in range(100)] + [""]
    length = tokenizer.model_max_length
    ids = tokenizer(captions, padding="max_length", truncation=True, max_length=length, return_tensors="np").input_ids
    np.testing.assert_array_equal(ids, starter_vocabulary().captions_to_ids(captions))


def test_labels_say_what_the_truth_says() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        scene = sample_scene(rng, split="any")
        kinds = scene_to_labels(scene)[2::4]
        assert [kind > 0 for kind in kinds] == [slot is not None for slot in scene_to_truth(scene).slots]


def test_equal_scenes_are_no_negatives_of_each_other() -> None:
    logits = torch.tensor([[9.0, 9.0, 0.0], [9.0, 9.0, 0.0]])
    assert contrast(logits, torch.tensor([1, 1])) < 0.01
    assert contrast(logits, torch.tensor([1, 2])) > 0.6


def test_a_resumed_training_ends_with_the_weights_of_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    render_scenes(tmp_path / "data")
    for run in ("whole", "broken"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "data").symlink_to(tmp_path / "data")

    def train(run: str, *arguments: str) -> None:
        common = ["--profile", "smoke", "--out", str(tmp_path / run), "--steps", "6", "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["train_judge", *common, *arguments])
        train_judge()

    train("whole")
    train("broken", "--stop-after", "3")
    assert not (tmp_path / "broken" / "judge").exists()
    train("broken", "--resume")
    whole, broken = (load_file(tmp_path / run / "work" / "judge" / "state.safetensors") for run in ("whole", "broken"))
    assert whole.keys() == broken.keys()
    assert all(torch.equal(whole[key], broken[key]) for key in whole)


def test_packed_models_come_back_as_they_were(tmp_path: Path) -> None:
    weights = tmp_path / "models" / "judge" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(bytes(range(256)) * 70_000)
    pieces = pack_models(tmp_path / "models", tmp_path / "packed")
    assert [piece.name for piece in pieces] == ["models.tar.00", "models.tar.01"]
    unpack_models(tmp_path / "packed", tmp_path / "again")
    assert (tmp_path / "again" / "judge" / "model.safetensors").read_bytes() == weights.read_bytes()


def render_scenes(folder: Path) -> None:
    """256 scenes, as the smoke profile has them."""
    sizes = ["--scenes", "256", "--chunk", "64", "--processes", "1"]
    subprocess.run([sys.executable, "-m", "finetune.starter.scenes", "--out", str(folder), *sizes], check=True)
