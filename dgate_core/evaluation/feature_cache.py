"""Features on disk by (picture's sha256, extractor): a picture goes through a network once, whoever asks.

A segment is two files: `NAME.npy` (float32, rows x dimension), then `NAME.keys` (32 bytes per row), which makes it
valid. Segments are never changed, so any number of processes write at the same time.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np

from dgate_core.errors import ConfigError
from dgate_core.evaluation.features.extractor import Extractor, hash_extractor
from dgate_core.models.hashing import find_cache_folder

logger = logging.getLogger(__name__)

SEGMENT_ROWS: Final = 1024
LIMIT_VARIABLE: Final = "DGATE_FEATURE_CACHE_GB"
DEFAULT_LIMIT_GB: Final = 20.0
_KEY_BYTES: Final = 32


class FeatureCache:
    """Cached features of one extractor.

    Args:
        folder: Its segments.
        dimension: Length of a feature.
    """

    def __init__(self, folder: Path, dimension: int) -> None:
        self.folder, self.dimension = folder, dimension
        self._segments: list[np.ndarray] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        self._pending: dict[bytes, np.ndarray] = {}
        for keys in sorted(folder.glob("*.keys")):
            self._open_segment(keys)

    def __len__(self) -> int:
        return len(self._places) + len(self._pending)

    def find(self, hashes: Sequence[str]) -> dict[str, np.ndarray]:
        """Features float32 (dimension,) of those of the pictures that are cached, by their sha256."""
        found: dict[str, np.ndarray] = {}
        for name in hashes:
            key = bytes.fromhex(name)
            if (place := self._places.get(key)) is not None:
                found[name] = self._segments[place[0]][place[1]]
            elif key in self._pending:
                found[name] = self._pending[key]
        return found

    def keep(self, features: Mapping[str, np.ndarray]) -> None:
        """Takes features by their pictures' sha256; a full segment goes to disk, the rest with `flush`."""
        self._pending.update((bytes.fromhex(name), row) for name, row in features.items())
        if len(self._pending) >= SEGMENT_ROWS:
            self.flush()

    def flush(self) -> None:
        """Writes what is pending. A cache that cannot be written costs time and nothing else, so that is no error."""
        if not self._pending:
            return
        stem = self.folder / uuid.uuid4().hex
        rows = np.stack(list(self._pending.values())).astype(np.float32)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            np.save(stem.with_suffix(".npy"), rows)
            draft = stem.with_suffix(".draft")
            draft.write_bytes(b"".join(self._pending))
            draft.replace(stem.with_suffix(".keys"))
        except OSError as error:
            logger.warning("%s cannot be written (%s): features are not kept", self.folder, error.strerror)
            return
        self._pending.clear()
        self._open_segment(stem.with_suffix(".keys"))

    def _open_segment(self, keys: Path) -> None:
        """A damaged segment is left out, and its pictures are computed again."""
        try:
            data, rows = keys.read_bytes(), np.load(keys.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            logger.warning("%s is damaged and left out: %s", keys, error)
            return
        if rows.shape != (len(data) // _KEY_BYTES, self.dimension) or rows.dtype != np.float32:
            logger.warning("%s is damaged and left out: %s rows for %s bytes", keys, rows.shape, len(data))
            return
        with suppress(OSError):
            os.utime(keys)  # what is used stays longest
        number = len(self._segments)
        self._segments.append(rows)
        for row in range(len(rows)):
            self._places[data[row * _KEY_BYTES : (row + 1) * _KEY_BYTES]] = (number, row)


def open_feature_cache(extractor: Extractor, folder: Path | None = None) -> FeatureCache:
    """The cache of an extractor: in the folder, else in D-Gate's own cache."""
    base = folder or find_cache_folder() / "features"
    prune_features(base, read_limit())
    return FeatureCache(base / hash_extractor(extractor)[:32], extractor.dimension)


def prune_features(base: Path, limit_bytes: float) -> int:
    """Removes the segments that have gone unused longest until the rest fits; whoever has one open keeps it.

    Returns:
        How many were removed.
    """
    segments = []
    for keys in base.glob("*/*.keys"):
        with suppress(FileNotFoundError):
            segments.append((keys.stat().st_mtime, keys.stat().st_size + _measure(keys.with_suffix(".npy")), keys))
    over, removed = sum(size for _, size, _ in segments) - limit_bytes, 0
    for _, size, keys in sorted(segments):
        if over <= 0:
            break
        keys.unlink(missing_ok=True)
        keys.with_suffix(".npy").unlink(missing_ok=True)
        over, removed = over - size, removed + 1
    if removed:
        logger.info("%d old segments of cached features are removed (%s)", removed, LIMIT_VARIABLE)
    return removed


def _measure(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def read_limit() -> float:
    """Bytes that all cached features may take.

    Raises:
        ConfigError: the environment's value is no number above 0.
    """
    text = os.environ.get(LIMIT_VARIABLE, str(DEFAULT_LIMIT_GB))
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not limit > 0:
        raise ConfigError(f"{LIMIT_VARIABLE}={text}", "gigabytes above 0", "give a number such as 20")
    return limit * 1e9
