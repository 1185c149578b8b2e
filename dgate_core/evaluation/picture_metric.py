"""What a metric of single pictures is, and how one is opened by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

import numpy as np

from dgate_core.evaluation.pictures import Chunk
from dgate_core.evaluation.results import Better, Scope
from dgate_core.registry import Registry

if TYPE_CHECKING:
    from dgate_core.evaluation.chunk_features import ChunkFeatures
    from dgate_core.evaluation.features.extractor import Extractor

PICTURE_METRICS: Final = Registry(
    "picture metric",
    {
        name: f"dgate_core.evaluation.metrics.{name}:open_metric"
        for name in ("sanity", "sharpness", "clip_score", "caption_choice", "attribute_accuracy")
    },
)
PAIRED_METRICS: Final = Registry(
    "paired metric",
    {
        "lpips": "dgate_core.evaluation.metrics.lpips_distance:open_metric",
        **{name: f"dgate_core.evaluation.metrics.{name}:open_metric" for name in ("psnr", "ssim", "clip_similarity")},
    },
    extras={"lpips": "evaluation"},
)


@dataclass(frozen=True, slots=True)
class MetricCard:
    """What a reader must know of a metric's number."""

    name: str
    """Name in the results; it carries the extractor where that is not the field's own."""
    scope: Scope = "picture"
    """A mean over pictures, or over pairs with a baseline."""
    better: Better = "higher"
    """Which direction is good."""
    extractor: str = ""
    """Feature extractor; empty for arithmetic on pixels."""
    weights_sha256: str = ""
    """Hash of the extractor's weights."""
    resize: str = ""
    """How pictures came to the extractor's size."""
    needs: str = "a picture that can be read"
    """What a row must have to be measured, for the sentence about rows that were not."""
    is_share: bool = False
    """Whether every score is 0 or 1."""


class PictureMetric(Protocol):
    """One number per picture."""

    card: MetricCard
    """Name, direction, extractor."""

    @property
    def extractors(self) -> Sequence[Extractor]:
        """All that it sees of a picture; a metric without any looks at the pixels themselves."""
        ...

    def score(self, chunk: Chunk) -> np.ndarray:
        """float64 (N,) in the order of the chunk; NaN where there is nothing to measure."""
        ...


@runtime_checkable
class AttributeTally(Protocol):
    """A metric that also counts by attribute."""

    def tally_attributes(self) -> dict[str, dict[str, dict[str, float]]]:
        """Attribute → value → {n: times told, right: times shown}, over all chunks so far."""
        ...


@dataclass(frozen=True, slots=True)
class Tools:
    """What metrics share."""

    device: str
    """torch's name of the device."""
    features: ChunkFeatures
    """Features of a chunk, computed once for all metrics and cached."""


MetricFactory = Callable[[str, Tools], PictureMetric]
"""The part of the metric's name after the colon (empty when there is none), and the tools."""


def list_pairs(chunk: Chunk) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Position, pixels and the partner's pixels, where both are there and of one size."""
    for index, (picture, partner) in enumerate(zip(chunk.pictures, chunk.partners, strict=True)):
        if partner is None or not (picture.is_there and partner.is_there):
            continue
        if picture.pixels.shape == partner.pixels.shape:
            yield index, picture.pixels, partner.pixels


def stack_by_size(pictures: Mapping[int, np.ndarray]) -> Iterator[tuple[list[int], np.ndarray]]:
    """Positions and pixels uint8 (n, height, width, 3) of the pictures of each size."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, pixels in pictures.items():
        by_shape.setdefault(pixels.shape, []).append(index)
    for indices in by_shape.values():
        yield indices, np.stack([pictures[index] for index in indices])
