"""Features of a whole set of pictures: collected in a stream, kept on disk, read in blocks; memory does not grow."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import IO, Final

import numpy as np

from dgate_core.evaluation.feature_cache import FeatureCache
from dgate_core.evaluation.features.extractor import Extractor
from dgate_core.evaluation.pictures import Picture

BLOCK: Final = 2048


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Features of a set of pictures, with all that they depend on."""

    matrix: np.ndarray
    """float32 (N, dimension); a read-only map of a file, or an array."""
    picture_hashes: tuple[str, ...]
    """sha256 of each picture's file, in the order of the rows."""
    row_ids: tuple[str, ...]
    """Each picture's name within its set."""
    extractor: str
    """Name of the extractor."""
    weights_sha256: str
    """Its weights."""
    resize: str
    """How the pictures came to its size."""

    def __len__(self) -> int:
        return len(self.matrix)

    def blocks(self, size: int = BLOCK) -> Iterator[np.ndarray]:
        """The matrix in float64, some rows at a time."""
        for start in range(0, len(self.matrix), size):
            yield np.asarray(self.matrix[start : start + size], np.float64)

    def sort(self) -> np.ndarray:
        """The matrix in the order of the pictures' sha256, which no batch, worker or listing changes."""
        return self.matrix[np.argsort(self.picture_hashes)]

    @property
    def pictures_sha256(self) -> str:
        """Of the set: the same pictures in any order have the same hash."""
        return hash_picture_set(self.picture_hashes)


def hash_picture_set(picture_hashes: Iterable[str]) -> str:
    """sha256 (hex) of a set of pictures: over their sha256, sorted."""
    return hashlib.sha256("\n".join(sorted(picture_hashes)).encode()).hexdigest()


class FeatureCollector:
    """Collects features chunk by chunk, from the cache where it has them.

    Args:
        extractor: The network.
        cache: None computes everything.
    """

    def __init__(self, extractor: Extractor, cache: FeatureCache | None = None) -> None:
        self.extractor, self.cache = extractor, cache
        self._rows: IO[bytes] = tempfile.TemporaryFile(prefix="dgate-features-")  # noqa: SIM115 - lives as its map does
        self._hashes: list[str] = []
        self._row_ids: list[str] = []

    def list_missing(self, pictures: Sequence[Picture]) -> list[Picture]:
        """Those that have to be read: not cached, each once."""
        known = self.cache.find([picture.sha256 for picture in pictures]) if self.cache is not None else {}
        return list({picture.sha256: picture for picture in pictures if picture.sha256 not in known}.values())

    def add(self, pictures: Sequence[Picture]) -> np.ndarray:
        """Features float32 (N, dimension) of the next pictures, in their order; only missing ones are read."""
        hashes = [picture.sha256 for picture in pictures]
        found = self.cache.find(hashes) if self.cache is not None else {}
        if missing := list({picture.sha256: picture for picture in pictures if picture.sha256 not in found}.values()):
            rows = self.extractor.extract([picture.read() for picture in missing])
            computed = dict(zip((picture.sha256 for picture in missing), rows, strict=True))
            found |= computed
            if self.cache is not None:
                self.cache.keep(computed)
        block = np.stack([found[name] for name in hashes]) if hashes else self._empty()
        self._rows.write(block.astype(np.float32).tobytes())
        self._hashes += hashes
        self._row_ids += [picture.row_id for picture in pictures]
        return block

    def finish(self) -> Features:
        """All features so far; what is cached is written."""
        if self.cache is not None:
            self.cache.flush()
        self._rows.flush()
        shape = (len(self._hashes), self.extractor.dimension)
        matrix = np.memmap(self._rows, np.float32, "r", shape=shape) if self._hashes else self._empty()
        return Features(
            matrix,
            tuple(self._hashes),
            tuple(self._row_ids),
            self.extractor.name,
            self.extractor.weights_sha256,
            self.extractor.resize,
        )

    def _empty(self) -> np.ndarray:
        return np.empty((0, self.extractor.dimension), np.float32)


def collect_features(
    pictures: Iterable[Picture],
    extractor: Extractor,
    cache: FeatureCache | None = None,
    workers: int = 2,
    chunk: int = 32,
) -> Features:
    """Features of pictures; threads decode the next chunk while the network works on this one.

    Args:
        pictures: May be endless in memory's eyes: two chunks of it are held.
        extractor: The network.
        cache: None computes everything.
        workers: Threads that read and decode; they change no number.
        chunk: Pictures of one chunk; it changes no number.
    """
    collector = FeatureCollector(extractor, cache)
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        for group in read_ahead(pictures, pool, chunk, collector.list_missing):
            collector.add(group)
    return collector.finish()


def read_ahead(
    pictures: Iterable[Picture],
    pool: ThreadPoolExecutor,
    chunk: int,
    choose: Callable[[Sequence[Picture]], Sequence[Picture]],
) -> Iterator[list[Picture]]:
    """Chunks of pictures, the chosen ones of which are read by the pool; one chunk is always under way."""
    remaining, waiting = iter(pictures), None
    while group := list(islice(remaining, chunk)):
        reads = {picture.sha256: pool.submit(picture.read).result for picture in choose(group)}
        ready = [replace(picture, read=reads.get(picture.sha256, picture.read)) for picture in group]
        if waiting is not None:
            yield waiting
        waiting = ready
    if waiting is not None:
        yield waiting
