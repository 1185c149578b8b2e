"""Pictures that are none: missing, unreadable, not a number, of the wrong size, black, or of one colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from dgate_core.evaluation.chunk_features import ChunkFeatures
from dgate_core.evaluation.expected import ExpectedPicture
from dgate_core.evaluation.picture_metric import MetricCard, Tools
from dgate_core.evaluation.pictures import Chunk

NOISE_LEVELS = 4
"""Of 255: what lossy files add to a picture of one colour."""


class Extent:
    """Height, width, then the least and the greatest value of each channel: all that `find_defect` asks."""

    name = "extent"
    weights_sha256 = ""
    resize = "none"
    dimension = 8
    seconds: Mapping[str, float] = MappingProxyType({})

    def extract(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """See `Extractor`."""
        rows = [[*each.shape[:2], *each.min((0, 1)), *each.max((0, 1))] for each in pictures]
        return np.array(rows, np.float32).reshape(len(pictures), self.dimension)


EXTENT = Extent()


class Sanity:
    """1 for a picture without a defect, 0 for one with; its mean is the share of sane pictures."""

    card = MetricCard("sanity", needs="nothing", is_share=True)
    extractors = (EXTENT,)

    def score(self, chunk: Chunk) -> np.ndarray:
        """See `PictureMetric`; never NaN."""
        return np.array([float(picture.defect is None) for picture in chunk.pictures])


def open_metric(variant: str, tools: Tools) -> Sanity:  # noqa: ARG001 - part of the contract
    """See `MetricFactory`."""
    return Sanity()


def note_defects(chunk: Chunk, features: ChunkFeatures) -> None:
    """Completes the defect of every picture of the chunk."""
    for picture, extent in zip(chunk.pictures, features.find(chunk, EXTENT), strict=True):
        if picture.is_there:
            picture.defect = find_defect(extent, picture.expected)


def find_defect(extent: np.ndarray, expected: ExpectedPicture) -> str | None:
    """`wrong_size`, `black`, `constant`, or None for a picture that shows something; extent float32 (8,)."""
    size, low, high = extent[:2], extent[2:5], extent[5:]
    if tuple(size) != (expected.height or size[0], expected.width or size[1]):
        return "wrong_size"
    if high.max() <= NOISE_LEVELS:
        return "black"
    return "constant" if (high - low).max() <= NOISE_LEVELS else None
