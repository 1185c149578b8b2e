"""How alike a picture and the baseline's picture of the same row are to a CLIP."""

from __future__ import annotations

import numpy as np

from dgate_core.evaluation.features.clip import ClipExtractor
from dgate_core.evaluation.metrics.clip_score import compare_embeddings, describe_clip_metric, open_clip
from dgate_core.evaluation.picture_metric import Tools
from dgate_core.evaluation.pictures import Chunk


class ClipSimilarity:
    """Cosine of the two pictures' embeddings, -1 to 1."""

    def __init__(self, clip: ClipExtractor, tools: Tools) -> None:
        self._clip, self._features, self.extractors = clip, tools.features, (clip,)
        self.card = describe_clip_metric("clip_similarity", clip, "both pictures", "paired")

    def score(self, chunk: Chunk) -> np.ndarray:
        """See `PictureMetric`."""
        ours = self._features.find(chunk, self._clip)
        return compare_embeddings(ours, self._features.find(chunk, self._clip, of_partners=True))


def open_metric(variant: str, tools: Tools) -> ClipSimilarity:
    """See `MetricFactory`; the variant is a CLIP as `open_clip` takes it."""
    return ClipSimilarity(open_clip(variant, tools), tools)
