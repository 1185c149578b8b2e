"""The share of postcards that show exactly what their prompt says, as the judge reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from dgate_core.evaluation.features.computing import StageClock
from dgate_core.evaluation.metrics.attributes import (
    JUDGE_SIZE,
    QUESTIONS,
    Reading,
    answer_questions,
    answers_to_reading,
    load_judge,
    matches_scene,
)
from dgate_core.evaluation.picture_metric import MetricCard, Tools, stack_by_size
from dgate_core.evaluation.pictures import Chunk
from dgate_core.models.catalog import STARTER_FOLDER
from dgate_core.models.hashing import hash_weights
from dgate_core.postcards import CaptionError, Scene, SceneError, parse_caption

JUDGE_FOLDER = STARTER_FOLDER / "judge"


class Judge:
    """The judge's answers as an extractor, so that they are cached as features are."""

    name = "judge"
    resize = f"bilinear, antialiased, {JUDGE_SIZE}"
    dimension = 2 * QUESTIONS

    def __init__(self, device: str) -> None:
        self.weights_sha256 = hash_weights(JUDGE_FOLDER)
        self._network = load_judge(JUDGE_FOLDER).to(device)
        self.seconds = StageClock()

    def extract(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """See `Extractor`: rows of `answer_questions`."""
        answers = np.empty((len(pictures), self.dimension), np.float32)
        for indices, alike in stack_by_size(dict(enumerate(pictures))):
            with self.seconds.time("network"):
                answers[indices] = answer_questions(self._network, alike)
        return answers


class AttributeAccuracy:
    """1 where kinds, colours, counts, ground and sky are all as the caption says, 0 where they are not.

    A picture that failed, is missing or has a defect is wrong. Prompts that are no postcard captions are not measured.
    """

    def __init__(self, tools: Tools) -> None:
        self._judge, self._features = Judge(tools.device), tools.features
        self._tally: dict[str, dict[str, list[int]]] = {}
        self.extractors = (self._judge,)
        self.card = MetricCard(
            "attribute_accuracy",
            extractor=self._judge.name,
            weights_sha256=self._judge.weights_sha256,
            resize=self._judge.resize,
            needs="a prompt that is a postcard caption",
            is_share=True,
        )

    def score(self, chunk: Chunk) -> np.ndarray:
        """See `PictureMetric`."""
        scores = np.full(len(chunk), np.nan)
        answers = self._features.find(chunk, self._judge)
        for index, picture in enumerate(chunk.pictures):
            scene = find_scene(picture.expected.prompt)
            if scene is not None:
                reading = answers_to_reading(answers[index]) if picture.defect is None else None
                scores[index] = float(reading is not None and matches_scene(reading, scene).all_right)
                self._count(reading, scene)
        return scores

    def tally_attributes(self) -> dict[str, dict[str, dict[str, float]]]:
        """See `AttributeTally`; values in alphabetical order."""
        return {
            attribute: {value: {"n": told, "right": right} for value, (told, right) in sorted(values.items())}
            for attribute, values in self._tally.items()
        }

    def _count(self, reading: Reading | None, scene: Scene) -> None:
        for attribute, value, right in list_answers(reading, scene):
            counts = self._tally.setdefault(attribute, {}).setdefault(value, [0, 0])
            counts[0] += 1
            counts[1] += right


def list_answers(reading: Reading | None, scene: Scene) -> Iterator[tuple[str, str, bool]]:
    """Attribute, value that was told, and whether the picture shows it; without a reading nothing is right."""
    seen = [slot for slot in reading.slots if slot is not None] if reading else []
    yield "ground", scene.ground, reading is not None and reading.ground == scene.ground
    yield "sky", scene.sky, reading is not None and reading.sky == scene.sky
    yield "count", str(scene.total), reading is not None and len(seen) == scene.total
    kinds, pairs = Counter(slot.kind for slot in seen), Counter((slot.kind, slot.colour) for slot in seen)
    told: Counter[str] = Counter()
    for thing in scene.objects:
        told[thing.kind] += thing.count
    for kind, number in told.items():
        yield "object", kind, kinds[kind] == number
    for thing in scene.objects:
        yield "colour", thing.colour, pairs[thing.kind, thing.colour] == thing.count
        stated = {"size": thing.size, "place": thing.place, "pose": thing.pose}
        for attribute, value in stated.items():
            if value is not None:
                alone = Scene((thing,), scene.ground, scene.sky)
                right = reading is not None and getattr(matches_scene(reading, alone), f"{attribute}s")
                yield attribute, value, bool(right)


@lru_cache(maxsize=4096)
def find_scene(prompt: str | None) -> Scene | None:
    """The scene that a postcard caption tells; None for any other prompt."""
    try:
        return parse_caption(prompt) if prompt else None
    except (CaptionError, SceneError):
        return None


def open_metric(variant: str, tools: Tools) -> AttributeAccuracy:  # noqa: ARG001 - part of the contract
    """See `MetricFactory`."""
    return AttributeAccuracy(tools)
