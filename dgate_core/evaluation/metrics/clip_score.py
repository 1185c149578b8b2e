"""CLIP score (Hessel et al., 2021): how close a picture is to its prompt, as torchmetrics computes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dgate_core.evaluation.features.clip import ClipExtractor
from dgate_core.evaluation.features.extractor import STARTER_CLIP
from dgate_core.evaluation.metrics.attribute_accuracy import find_scene
from dgate_core.evaluation.picture_metric import MetricCard, Tools
from dgate_core.evaluation.pictures import Chunk
from dgate_core.evaluation.results import EvaluationError, Scope


class ClipScore:
    """100 cos(picture, prompt), at least 0.

    `starter-clip` knows the words of the postcard world only, so it scores no other prompts.
    """

    def __init__(self, clip: ClipExtractor, tools: Tools) -> None:
        self._clip, self._features, self.extractors = clip, tools.features, (clip,)
        is_starter = clip.name == STARTER_CLIP
        self._knows: Callable[[str], bool] = _is_caption if is_starter else bool
        self.card = describe_clip_metric("clip_score", clip, "a picture and a prompt that the CLIP can read")

    def score(self, chunk: Chunk) -> np.ndarray:
        """See `PictureMetric`."""
        pictures = self._features.find(chunk, self._clip)
        prompts = [picture.expected.prompt or "" for picture in chunk.pictures]
        known = [index for index, prompt in enumerate(prompts) if self._knows(prompt)]
        scores = np.full(len(chunk), np.nan)
        if known:
            captions = embed_distinct(self._clip, [prompts[index] for index in known])
            scores[known] = np.maximum(100 * compare_embeddings(pictures[known], captions), 0)
        return scores


def open_metric(variant: str, tools: Tools) -> ClipScore:
    """See `MetricFactory`; the variant is a CLIP as `open_clip` takes it."""
    return ClipScore(open_clip(variant, tools), tools)


def open_clip(variant: str, tools: Tools) -> ClipExtractor:
    """The CLIP of a metric.

    Args:
        variant: `starter-clip` (also when empty), a folder of transformers or open_clip, or `hf://OWNER/NAME[@REVISION]`.
        tools: Every CLIP is opened once.

    Raises:
        ModelError: no such CLIP.
        EvaluationError: the name is that of another extractor.
    """
    clip = tools.features.open(variant or STARTER_CLIP)
    if not isinstance(clip, ClipExtractor):
        raise EvaluationError(f"{variant} is no CLIP", f"{STARTER_CLIP}, or a CLIP's folder", "give another extractor")
    return clip


def describe_clip_metric(name: str, clip: ClipExtractor, needs: str, scope: Scope = "picture") -> MetricCard:
    """A card that carries the CLIP in its name."""
    return MetricCard(
        f"{name}:{clip.name}",
        scope,
        extractor=clip.name,
        weights_sha256=clip.weights_sha256,
        resize=clip.resize,
        needs=needs,
    )


def embed_distinct(clip: ClipExtractor, captions: Sequence[str]) -> np.ndarray:
    """Embeddings float32 (N, D) of captions, each distinct one computed once."""
    distinct = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    return clip.embed_captions(list(distinct))[[distinct[caption] for caption in captions]]


def compare_embeddings(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Cosines float64 of embeddings (…, D); NaN where one is NaN."""
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    lengths = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    cosines: np.ndarray = (ours * theirs).sum(-1) / lengths
    return cosines


def _is_caption(prompt: str) -> bool:
    return find_scene(prompt) is not None
