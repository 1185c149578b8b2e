"""Reads what a postcard shows (ground, sky, and kind, colour, size and pose in each third) with a small judge network.

The judge has seen renderings only, never a generated picture, so its reading of generated pictures is a fair verdict.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from dgate_core.errors import ModelError
from dgate_core.postcards.scene import COLOURS, GROUNDS, OBJECTS, PLACES, POSES, SIZES, SKIES, Scene

JUDGE_SIZE: Final = 64
SLOTS: Final = len(PLACES)
GROUND_SKY: Final = (len(GROUNDS), len(SKIES))
SLOT_CLASSES: Final = (1 + len(OBJECTS), len(COLOURS), 1 + len(SIZES), len(POSES))
QUESTIONS: Final = len(GROUND_SKY) + SLOTS * len(SLOT_CLASSES)
"""What the judge answers of a picture: ground, sky, then kind, colour, size and pose of each third."""
_BATCH: Final = 256


@dataclass(frozen=True, slots=True)
class SlotReading:
    """What the judge sees in one third of a picture."""

    kind: str
    """One of OBJECTS."""
    colour: str
    """One of COLOURS."""
    size: str | None
    """One of SIZES, None for ordinary."""
    pose: str | None
    """One of POSES for a person, None for everything else."""
    confidence: float
    """Product of the probabilities of kind and colour, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the judge sees in a picture."""

    ground: str
    """One of GROUNDS."""
    sky: str
    """One of SKIES."""
    slots: tuple[SlotReading | None, ...]
    """Left, middle and right third; None where nothing stands."""
    confidence: float
    """Product of the probabilities of ground, sky, and of every third's kind and colour, 0 to 1."""

    @property
    def total(self) -> int:
        """How many objects are seen."""
        return sum(slot is not None for slot in self.slots)


@dataclass(frozen=True, slots=True)
class AttributeMatch:
    """Which parts of a caption's scene the picture shows."""

    objects: bool
    """The kinds with their counts."""
    colours: bool
    """The kinds in their colours, with counts."""
    count: bool
    """How many objects there are in all."""
    ground: bool
    """The ground."""
    sky: bool
    """The sky."""
    places: bool | None
    """Whether every stated place is right; None when none is stated."""
    sizes: bool | None
    """Whether every stated size is right; None when none is stated."""
    poses: bool | None
    """Whether every stated pose is right; None when none is stated."""

    @property
    def all_right(self) -> bool:
        """Objects with colours and counts, ground and sky are right."""
        return self.colours and self.ground and self.sky


class JudgeNet(nn.Module):
    """Residual CNN of 64 px pictures; logits for ground, sky, then kind, colour, size and pose of each third."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.width = width
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 5, stride=2, padding=2),
            _ResidualBlock(width),
            _ResidualBlock(width),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            _ResidualBlock(2 * width),
            _ResidualBlock(2 * width),
            nn.Conv2d(2 * width, 3 * width, 3, stride=2, padding=1),
            _ResidualBlock(3 * width),
            _ResidualBlock(3 * width),
            nn.Conv2d(3 * width, width, 1),
        )
        cells = (JUDGE_SIZE // 8) ** 2
        outputs = sum(GROUND_SKY) + SLOTS * sum(SLOT_CLASSES)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(width * cells, 6 * width), nn.GELU(), nn.Linear(6 * width, outputs)
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (N, sum of all classes) of pixels (N, 3, 64, 64) in [-1, 1]."""
        logits: torch.Tensor = self.head(self.body(pixels))
        return logits


class _ResidualBlock(nn.Module):
    """Two normalised convolutions around a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.GroupNorm(8, channels),
            nn.GELU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(8, channels),
            nn.GELU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.path(features)


def split_logits(logits: torch.Tensor) -> list[torch.Tensor]:
    """The judge's logits as one (N, classes) tensor for each question, in the order of `JudgeNet`."""
    return list(logits.split([*GROUND_SKY, *SLOT_CLASSES * SLOTS], dim=1))


def load_judge(folder: str | Path) -> JudgeNet:
    """Opens a judge folder (config.json, model.safetensors), in fp32 on the CPU.

    Raises ModelError when the folder is no judge or was trained on other names.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
        raise ModelError(f"no judge in {folder}", "config.json and model.safetensors", "give the judge's folder")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("names") != judge_names():
        raise ModelError(f"the judge in {folder} reads other names", f"{judge_names()}", "train it again")
    judge = JudgeNet(config["width"])
    judge.load_state_dict({key: value.float() for key, value in load_file(folder / "model.safetensors").items()})
    return judge.eval()


def judge_names() -> dict[str, list[str]]:
    """The names behind the judge's classes, as its config.json keeps them."""
    kinds = {"objects": OBJECTS, "colours": COLOURS, "grounds": GROUNDS, "skies": SKIES, "sizes": SIZES, "poses": POSES}
    return {kind: list(names) for kind, names in kinds.items()}


def read_pictures(judge: JudgeNet, pictures: np.ndarray) -> list[Reading]:
    """Readings of pictures uint8 (N, H, W, 3); pictures of another size than 64 px are resized."""
    return [answers_to_reading(answers) for answers in answer_questions(judge, pictures)]


def answer_questions(judge: JudgeNet, pictures: np.ndarray) -> np.ndarray:
    """float32 (N, 2 * QUESTIONS) of pictures uint8 (N, H, W, 3): the class of each answer, then its probability."""
    device = next(judge.parameters()).device
    answers = np.empty((len(pictures), 2 * QUESTIONS), np.float32)
    for start in range(0, len(pictures), _BATCH):
        pixels = pictures_to_pixels(pictures[start : start + _BATCH]).to(device)
        with torch.inference_mode():
            best = [question.softmax(1).max(1) for question in split_logits(judge(pixels).float())]
        rows = torch.stack([*(each.indices for each in best), *(each.values for each in best)], 1)
        answers[start : start + _BATCH] = rows.cpu().numpy()
    return answers


def answers_to_reading(answers: np.ndarray) -> Reading:
    """One row of `answer_questions` in words."""
    return _classes_to_reading([int(each) for each in answers[:QUESTIONS]], answers[QUESTIONS:].tolist())


def pictures_to_pixels(pictures: np.ndarray) -> torch.Tensor:
    """Pictures uint8 (N, H, W, 3) as float pixels (N, 3, 64, 64) in [-1, 1]."""
    pixels = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    if pixels.shape[-2:] == (JUDGE_SIZE, JUDGE_SIZE):
        return pixels
    return functional.interpolate(pixels, (JUDGE_SIZE, JUDGE_SIZE), mode="bilinear", antialias=True)


def _classes_to_reading(classes: list[int], chances: list[float]) -> Reading:
    slots: list[SlotReading | None] = []
    confidence = chances[0] * chances[1]
    for start in range(2, len(classes), len(SLOT_CLASSES)):
        kind, colour, size, pose = classes[start : start + len(SLOT_CLASSES)]
        seen = chances[start] * (chances[start + 1] if kind else 1.0)
        slots.append(_slot_to_reading(kind, colour, size, pose, seen) if kind else None)
        confidence *= seen
    return Reading(GROUNDS[classes[0]], SKIES[classes[1]], tuple(slots), confidence)


def _slot_to_reading(kind: int, colour: int, size: int, pose: int, confidence: float) -> SlotReading:
    name = OBJECTS[kind - 1]
    return SlotReading(
        name, COLOURS[colour], (None, *SIZES)[size], POSES[pose] if name == "person" else None, confidence
    )


def matches_scene(reading: Reading, scene: Scene) -> AttributeMatch:
    """Compares a reading with the scene that a caption tells; what the caption leaves open is not compared."""
    seen = [slot for slot in reading.slots if slot is not None]
    kinds = Counter(slot.kind for slot in seen)
    pairs = Counter((slot.kind, slot.colour) for slot in seen)
    told_kinds: Counter[str] = Counter()
    told_pairs: Counter[tuple[str, str]] = Counter()
    for thing in scene.objects:
        told_kinds[thing.kind] += thing.count
        told_pairs[thing.kind, thing.colour] += thing.count
    return AttributeMatch(
        objects=kinds == told_kinds,
        colours=pairs == told_pairs,
        count=len(seen) == scene.total,
        ground=reading.ground == scene.ground,
        sky=reading.sky == scene.sky,
        places=_match_places(reading, scene),
        sizes=_match_stated(reading, scene, "size"),
        poses=_match_stated(reading, scene, "pose"),
    )


def _match_places(reading: Reading, scene: Scene) -> bool | None:
    placed = [thing for thing in scene.objects if thing.place is not None]
    if not placed:
        return None
    slots = dict(zip(PLACES, reading.slots, strict=True))
    found = [(slots[thing.place], thing) for thing in placed if thing.place is not None]
    return all(slot is not None and (slot.kind, slot.colour) == (thing.kind, thing.colour) for slot, thing in found)


def _match_stated(reading: Reading, scene: Scene, attribute: str) -> bool | None:
    """Whether each thing whose `attribute` is stated is seen so, as often as it is told."""
    told: Counter[tuple[str, str, str]] = Counter()
    for thing in scene.objects:
        if (value := getattr(thing, attribute)) is not None:
            told[thing.kind, thing.colour, value] += thing.count
    if not told:
        return None
    seen = Counter((slot.kind, slot.colour, getattr(slot, attribute)) for slot in reading.slots if slot is not None)
    return all(seen[key] >= number for key, number in told.items())
