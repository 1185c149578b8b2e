"""Features → statistics: mean and covariance in one pass in float64, and the .npz files that keep them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from dgate_core.evaluation.feature_set import Features
from dgate_core.evaluation.results import EvaluationError

_TEXTS: Final = ("extractor", "weights_sha256", "resize", "protocol", "reference", "reference_sha256")


@dataclass(frozen=True, slots=True, eq=False)
class FeatureStatistics:
    """What the Fréchet distance needs of a set."""

    mean: np.ndarray
    """float64 (D,)."""
    covariance: np.ndarray
    """float64 (D, D), unbiased (divided by count - 1)."""
    count: int
    """Pictures; 0 when it is not known."""


class StatisticsAccumulator:
    """Mean and covariance of blocks as they come (Chan, Golub, LeVeque 1979), in constant memory.

    Args:
        dimension: Length of a feature.
    """

    def __init__(self, dimension: int) -> None:
        self.count = 0
        self._mean = np.zeros(dimension)
        self._scatter = np.zeros((dimension, dimension))

    def add(self, block: np.ndarray) -> None:
        """Takes features (N, dimension)."""
        if not len(block):
            return
        block = np.asarray(block, np.float64)
        mean, total = block.mean(0), self.count + len(block)
        shift = mean - self._mean
        centred = block - mean
        self._scatter += centred.T @ centred
        self._scatter += np.outer(shift, shift) * (self.count * len(block) / total)
        self._mean += shift * (len(block) / total)
        self.count = total

    def finish(self) -> FeatureStatistics:
        """Raises EvaluationError with fewer than two pictures."""
        if self.count < 2:
            raise EvaluationError(f"{self.count} pictures", "at least 2 for a covariance")
        return FeatureStatistics(self._mean.copy(), self._scatter / (self.count - 1), self.count)


def features_to_statistics(blocks: Iterable[np.ndarray], dimension: int) -> FeatureStatistics:
    """Statistics of features that come in blocks (N, dimension); raises EvaluationError with fewer than two."""
    accumulator = StatisticsAccumulator(dimension)
    for block in blocks:
        accumulator.add(block)
    return accumulator.finish()


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceStatistics:
    """A reference set as corpus metrics see it."""

    mean: np.ndarray
    """float64 (D,)."""
    covariance: np.ndarray
    """float64 (D, D)."""
    count: int = 0
    """Pictures of the reference; 0 when the file does not say."""
    extractor: str = ""
    """Name of the extractor; empty when the file does not say."""
    weights_sha256: str = ""
    """Its weights."""
    resize: str = ""
    """How the pictures came to its size."""
    protocol: str = ""
    """How the pictures were chosen and prepared, in the words of the reference's card."""
    reference: str = ""
    """Name of the reference set."""
    reference_sha256: str = ""
    """`hash_picture_set` of its pictures."""
    features: np.ndarray | None = None
    """float32 (N, D) in the order of the pictures' sha256, for KID, CMMD, precision and recall; None when not kept."""

    @property
    def statistics(self) -> FeatureStatistics:
        """Mean, covariance and count alone."""
        return FeatureStatistics(self.mean, self.covariance, self.count)


def features_to_reference(features: Features, reference: str, protocol: str, keep: bool = True) -> ReferenceStatistics:
    """Reference statistics of a set's features.

    Args:
        features: Of the whole set.
        reference: Name of the set.
        protocol: How its pictures were chosen and prepared.
        keep: Whether to keep the features too.

    Raises:
        EvaluationError: fewer than two pictures.
    """
    found = features_to_statistics(features.blocks(), features.matrix.shape[1])
    return ReferenceStatistics(
        mean=found.mean,
        covariance=found.covariance,
        count=found.count,
        extractor=features.extractor,
        weights_sha256=features.weights_sha256,
        resize=features.resize,
        protocol=protocol,
        reference=reference,
        reference_sha256=features.pictures_sha256,
        features=features.sort() if keep else None,
    )


def write_reference(path: Path, reference: ReferenceStatistics) -> None:
    """Writes a `.npz` that pytorch-fid reads too (`mu`, `sigma`), whole or not at all."""
    arrays: dict[str, Any] = {
        "mu": reference.mean,
        "sigma": reference.covariance,
        "count": np.int64(reference.count),
        **{name: np.str_(getattr(reference, name)) for name in _TEXTS},
    }
    if reference.features is not None:
        arrays["features"] = np.asarray(reference.features, np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft.npz")
    np.savez(draft, allow_pickle=False, **arrays)
    draft.replace(path)


def read_reference(path: Path) -> ReferenceStatistics:
    """Reads a `.npz` of `write_reference` or of pytorch-fid, which leaves out all but `mu` and `sigma`.

    Raises:
        EvaluationError: there is none, or it does not hold a mean and a covariance.
    """
    if not path.is_file():
        raise EvaluationError(f"there is no {path}", "statistics as a .npz", "run: dgate reference build")
    try:
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        mean, covariance = (np.asarray(arrays[name], np.float64) for name in ("mu", "sigma"))
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise EvaluationError(f"{path} cannot be read: {error}", "a .npz with mu and sigma") from error
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise EvaluationError(f"mu {mean.shape} and sigma {covariance.shape} in {path}", "shapes (D,) and (D, D)")
    texts: dict[str, Any] = {name: str(arrays[name]) for name in _TEXTS if name in arrays}
    count = int(arrays.get("count", 0))
    return ReferenceStatistics(mean, covariance, count, features=arrays.get("features"), **texts)
