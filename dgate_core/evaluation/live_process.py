"""Puts features of pictures into the cache: `python -m dgate_core.evaluation.live_process [METRICS, DEVICE]`.

Frames of `live.write_frame` come on stdin; the process ends with them.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dgate_core.evaluation.chunk_features import ChunkFeatures
from dgate_core.evaluation.live import read_frame
from dgate_core.evaluation.metric_request import parse_request
from dgate_core.evaluation.metrics.sanity import EXTENT
from dgate_core.evaluation.picture_metric import Tools
from dgate_core.evaluation.run_corpus import CorpusScorer
from dgate_core.evaluation.scorer import PictureScorer, describe_crash

if TYPE_CHECKING:
    from dgate_core.evaluation.feature_cache import FeatureCache
    from dgate_core.evaluation.features.extractor import Extractor

logger = logging.getLogger(__name__)

POLITENESS = 10
"""Added to the process's niceness: on a CPU the lane comes first."""


def main(arguments: list[str]) -> None:
    """Works until stdin ends or SIGTERM comes; what was computed is kept in both cases."""
    from dgate_core.evaluation.feature_cache import open_feature_cache

    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    metrics, device = json.loads(arguments[0])
    make_room(device)
    caches = [(extractor, open_feature_cache(extractor)) for extractor in list_extractors(metrics, device)]
    try:
        while (pictures := read_frame(sys.stdin.buffer)) is not None:
            for extractor, cache in list(caches):
                try:
                    keep_features(pictures, extractor, cache)
                except Exception as error:
                    # The evaluation meets the same error and names it in its result.
                    logger.warning("%s is left to the evaluation: %s", extractor.name, describe_crash("", error))
                    caches.remove((extractor, cache))
    finally:
        for _, cache in caches:
            cache.flush()


def make_room(device: str) -> None:
    """On a CPU the lane has the cores."""
    os.nice(POLITENESS)
    if device == "cpu":
        import torch

        torch.set_num_threads(1)


def list_extractors(metrics: Sequence[str], device: str) -> list[Extractor]:
    """All that these metrics see of a picture; those that look at the pixels themselves have nothing to prepare."""
    requests, tools = [parse_request(name) for name in metrics], Tools(device, ChunkFeatures(device))
    pictures = PictureScorer([each for each in requests if each.scope == "picture"], tools).extractors
    corpus = CorpusScorer([each for each in requests if each.scope == "corpus"], tools).extractors
    return list({each.name: each for each in (EXTENT, *pictures, *corpus)}.values())


def keep_features(pictures: Mapping[str, np.ndarray], extractor: Extractor, cache: FeatureCache) -> None:
    """Computes what the cache does not have yet."""
    known = cache.find(list(pictures))
    missing = {sha256: pixels for sha256, pixels in pictures.items() if sha256 not in known}
    if missing:
        cache.keep(dict(zip(missing, extractor.extract(list(missing.values())), strict=True)))


if __name__ == "__main__":
    main(sys.argv[1:])
