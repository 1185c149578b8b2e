"""Teaches the UNet's text encoder to parse captions, before the UNet: `python -m finetune.starter.train_text`.

The encoder looks only back, so at the last word that names a thing (its kind, or its place when that is said later) it
must know the thing's kind, colour, count, size and place. This takes minutes, where learning it through the denoiser's
loss takes most of a training.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dgate_core.postcards import (
    COLOURS,
    OBJECTS,
    PLACES,
    SIZES,
    SceneObject,
    parse_caption,
    sample_scene,
    scene_to_caption,
)
from dgate_core.postcards.words import PLURALS
from finetune.starter.loop import train_recipe
from finetune.starter.networks import build_text_encoder, save_half
from finetune.starter.parts import PartOptions, mark_part, parse_part
from finetune.starter.scenes import starter_vocabulary
from finetune.starter.words import CONTEXT_LENGTH, WordVocabulary, split_words

QUESTIONS = {"kind": len(OBJECTS), "colour": len(COLOURS), "count": 3, "size": 1 + len(SIZES), "place": 1 + len(PLACES)}
_UNASKED = -1
_CAPTIONS = 40_000


class TextRecipe:
    """Cross entropy of what a thing's last naming word belongs to; words that name two things are not asked."""

    def __init__(self, options: PartOptions) -> None:
        self.options, self.rates = options, options.profile.text
        widths = options.profile.widths
        vocabulary = starter_vocabulary()
        self.text = build_text_encoder(widths, vocabulary)
        if options.device.type == "cpu":
            self.text.set_attn_implementation("eager")
        self.heads = nn.Linear(widths.text, sum(QUESTIONS.values()))
        self.network = nn.ModuleDict({"text": self.text, "heads": self.heads}).to(options.device)
        tokens, labels = tag_captions(np.random.default_rng((options.seed, 77)), vocabulary, _CAPTIONS)
        self.tokens = torch.from_numpy(tokens).to(options.device)
        self.labels = torch.from_numpy(labels).to(options.device)

    def compute_loss(self, generator: torch.Generator) -> torch.Tensor:
        """Loss of one batch."""
        rows = torch.randint(len(self.tokens), (self.rates.batch,), generator=generator, device=self.tokens.device)
        with torch.autocast(self.tokens.device.type, torch.bfloat16):
            hidden = self.text(input_ids=self.tokens[rows].long()).last_hidden_state
            answers = self.heads(hidden).float()
        labels = self.labels[rows].long()
        parts = answers.split(list(QUESTIONS.values()), dim=-1)
        losses = [
            functional.cross_entropy(part.flatten(0, 1), labels[..., number].flatten(), ignore_index=_UNASKED)
            for number, part in enumerate(parts)
        ]
        return torch.stack(losses).sum()

    def refresh(self) -> None:
        """All captions are there from the start."""

    def export(self) -> None:
        """Writes text/model.safetensors, from which train_unet begins."""
        save_half(self.text, self.options.out / "text", prefix="text_model.")


def tag_captions(rng: np.random.Generator, vocabulary: WordVocabulary, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (number, CONTEXT_LENGTH) int16 and labels (number, CONTEXT_LENGTH, questions) int8, -1 is unasked."""
    captions = [scene_to_caption(sample_scene(rng), rng) for _ in range(number)]
    labels = np.full((number, CONTEXT_LENGTH, len(QUESTIONS)), _UNASKED, dtype=np.int8)
    for row, caption in enumerate(captions):
        owners = find_owners(parse_caption(caption).objects)
        last = {owners[word]: place for place, word in enumerate(split_words(caption), start=1) if owners.get(word)}
        for owner, place in last.items():
            labels[row, place] = describe_object(owner)
    return vocabulary.captions_to_ids(captions), labels


def find_owners(objects: tuple[SceneObject, ...]) -> dict[str, SceneObject]:
    """The thing that each kind or place belongs to; a word that two things share is left out."""
    named = [(word, thing) for thing in objects for word in list_names(thing)]
    shared = Counter(word for word, _ in named)
    return {word: thing for word, thing in named if shared[word] == 1}


def list_names(thing: SceneObject) -> set[str]:
    """Words that stand for a thing: its kind in both numbers, and its place."""
    places = {"middle": {"middle", "centre"}}
    return {thing.kind, PLURALS[thing.kind], *(places.get(thing.place, {thing.place}) if thing.place else [])}


def describe_object(thing: SceneObject) -> tuple[int, ...]:
    """Class numbers in the order of QUESTIONS."""
    return (
        OBJECTS.index(thing.kind),
        COLOURS.index(thing.colour),
        thing.count - 1,
        (None, *SIZES).index(thing.size),
        (None, *PLACES).index(thing.place),
    )


def main() -> None:
    """Trains as the command line says."""
    options = parse_part(__doc__ or "")
    train_recipe(TextRecipe(options), options.loop_options("text", options.profile.text))
    mark_part(options.out, "text")


if __name__ == "__main__":
    main()
