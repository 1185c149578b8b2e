"""Caption choice: does the picture's own caption beat captions that are wrong in one attribute?"""

from __future__ import annotations

import zlib
from dataclasses import replace
from functools import lru_cache

import numpy as np

from dgate_core.evaluation.features.clip import ClipExtractor
from dgate_core.evaluation.metrics.attribute_accuracy import find_scene
from dgate_core.evaluation.metrics.clip_score import (
    compare_embeddings,
    describe_clip_metric,
    embed_distinct,
    open_clip,
)
from dgate_core.evaluation.picture_metric import Tools
from dgate_core.evaluation.pictures import Chunk
from dgate_core.postcards import Scene, hard_negatives, scene_to_caption

NEGATIVES = 4
"""Wrong captions for each picture; chance is 1 in 5."""


class CaptionChoice:
    """1 where the caption is closer to the picture than every hard negative, 0 where it is not.

    All captions are in the plain phrasing, so that they differ in the attribute alone. A picture that failed, is
    missing or has a defect is wrong. Prompts that are no postcard captions are not measured.
    """

    def __init__(self, clip: ClipExtractor, tools: Tools) -> None:
        self._clip, self._features, self.extractors = clip, tools.features, (clip,)
        card = describe_clip_metric("caption_choice", clip, "a prompt that is a postcard caption")
        self.card = replace(card, is_share=True)

    def score(self, chunk: Chunk) -> np.ndarray:
        """See `PictureMetric`."""
        scenes = [find_scene(picture.expected.prompt) for picture in chunk.pictures]
        told = {index: list_captions(scene) for index, scene in enumerate(scenes) if scene is not None}
        scores = np.full(len(chunk), np.nan)
        scores[list(told)] = 0.0
        sane = [index for index in told if chunk.pictures[index].defect is None]
        if sane:
            captions = embed_distinct(self._clip, [caption for index in sane for caption in told[index]])
            pictures = self._features.find(chunk, self._clip)[sane]
            cosines = compare_embeddings(pictures[:, None], captions.reshape(len(sane), 1 + NEGATIVES, -1))
            scores[sane] = cosines[:, 0] > cosines[:, 1:].max(1)
        return scores


@lru_cache(maxsize=4096)
def list_captions(scene: Scene) -> tuple[str, ...]:
    """The scene's caption, then NEGATIVES wrong ones: always the same for the same scene."""
    caption = scene_to_caption(scene)
    rng = np.random.default_rng(zlib.crc32(caption.encode()))
    return caption, *(scene_to_caption(wrong) for wrong in hard_negatives(scene, rng, NEGATIVES))


def open_metric(variant: str, tools: Tools) -> CaptionChoice:
    """See `MetricFactory`; the variant is a CLIP as `open_clip` takes it."""
    return CaptionChoice(open_clip(variant, tools), tools)
