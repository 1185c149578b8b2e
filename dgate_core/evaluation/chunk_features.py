"""Features of a run's pictures, chunk by chunk: computed once however many metrics ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dgate_core.evaluation.pictures import Chunk, IsKnown, LoadedPicture

if TYPE_CHECKING:
    from dgate_core.evaluation.feature_set import FeatureCollector, Features
    from dgate_core.evaluation.features.extractor import Extractor

PICTURES, PARTNERS = "pictures", "partners"


class ChunkFeatures:
    """Opens extractors by name, and keeps what they gave for corpus metrics.

    Args:
        device: torch's name of the device.
        use_cache: Whether features are taken from, and put into, the cache on this machine.
    """

    def __init__(self, device: str, *, use_cache: bool = True) -> None:
        self._device, self._use_cache = device, use_cache
        self._opened: dict[str, Extractor] = {}
        self._collectors: dict[str, FeatureCollector] = {}

    def open(self, name: str) -> Extractor:
        """The extractor of this name, opened once; raises what `open_extractor` raises."""
        from dgate_core.evaluation.features.extractor import open_extractor

        if name not in self._opened:
            self._opened[name] = open_extractor(name, self._device)
        return self._opened[name]

    def find(self, chunk: Chunk, extractor: Extractor, *, of_partners: bool = False) -> np.ndarray:
        """Features float32 (N, D) of the chunk's pictures, or of their partners; NaN where there is no picture."""
        side = PARTNERS if of_partners else PICTURES
        name = f"{side} {extractor.name}"
        if name not in chunk.shared:
            chunk.shared[name] = self._collect(name, extractor, chunk.partners if of_partners else chunk.pictures)
        return chunk.shared[name]

    def find_known(self, extractors: Sequence[Extractor]) -> IsKnown:
        """Says of a picture whether the caches hold its features by every one of these extractors."""
        caches = [self._open_collector(f"{PICTURES} {each.name}", each).cache for each in extractors]
        return lambda sha256: all(cache is not None and bool(cache.find([sha256])) for cache in caches)

    def finish(self, extractor: Extractor) -> Features:
        """All features of the run's pictures that were found so far, for corpus metrics."""
        return self._open_collector(f"{PICTURES} {extractor.name}", extractor).finish()

    def close(self) -> None:
        """Writes what the caches have not written yet."""
        for collector in self._collectors.values():
            if collector.cache is not None:
                collector.cache.flush()

    def _collect(self, name: str, extractor: Extractor, pictures: Sequence[LoadedPicture | None]) -> np.ndarray:
        there = [(index, each.to_picture()) for index, each in enumerate(pictures) if each and each.is_there]
        features = np.full((len(pictures), extractor.dimension), np.nan, np.float32)
        if there:
            features[[index for index, _ in there]] = self._open_collector(name, extractor).add([p for _, p in there])
        return features

    def _open_collector(self, name: str, extractor: Extractor) -> FeatureCollector:
        from dgate_core.evaluation.feature_cache import open_feature_cache
        from dgate_core.evaluation.feature_set import FeatureCollector

        if name not in self._collectors:
            cache = open_feature_cache(extractor) if self._use_cache else None
            self._collectors[name] = FeatureCollector(extractor, cache)
        return self._collectors[name]
