"""Fills a feature cache with random features, then, in a process of its own, measures FID from the cache alone."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dgate_core.evaluation.corpus import CorpusOptions, measure_corpus
from dgate_core.evaluation.feature_cache import FeatureCache, open_feature_cache
from dgate_core.evaluation.feature_set import collect_features
from dgate_core.evaluation.features.extractor import INCEPTION
from dgate_core.evaluation.pictures import Picture
from dgate_core.evaluation.statistics import ReferenceStatistics

DIMENSION = 2048


class CachedOnly:
    """An extractor whose pictures are all cached."""

    name, weights_sha256, dimension, resize = INCEPTION, "weights", DIMENSION, "some resize"
    seconds: dict[str, float] = {}  # noqa: RUF012

    def extract(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        raise AssertionError(f"{len(pictures)} pictures are not cached")


def name_picture(number: int) -> str:
    return f"{number:064x}"


def fill(cache: FeatureCache, count: int) -> None:
    rng = np.random.default_rng(0)
    for start in range(0, count, 1000):
        rows = rng.random((1000, DIMENSION), np.float32)
        cache.keep({name_picture(start + number): row for number, row in enumerate(rows)})
    cache.flush()


def list_pictures(count: int) -> Iterator[Picture]:
    for number in range(count):
        yield Picture(str(number), name_picture(number), lambda: np.zeros((1, 1, 3), np.uint8))


def measure(folder: Path, count: int) -> dict[str, float]:
    started = time.perf_counter()
    features = collect_features(list_pictures(count), CachedOnly(), open_feature_cache(CachedOnly(), folder))
    reference = ReferenceStatistics(np.full(DIMENSION, 0.5), np.eye(DIMENSION) / 12, 50_000, INCEPTION, "weights")
    found = measure_corpus("fid", features, reference, CorpusOptions(resamples=0))
    assert found.value is not None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    return {
        "pictures": found.n_used,
        "fid": found.value,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time(),
        "peak_gib": peak,
    }


def main() -> None:
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    if len(sys.argv) == 4:
        print(json.dumps(measure(folder, count)))
        return
    fill(open_feature_cache(CachedOnly(), folder), count)
    subprocess.run([sys.executable, "-m", "tests.many_features", str(folder), str(count), "measure"], check=True)


if __name__ == "__main__":
    main()
