"""Improved precision and recall (Kynkäänniemi et al. 2019): which pictures lie in the other set's neighbourhoods."""

from __future__ import annotations

from typing import Final

import numpy as np

NEIGHBOURS: Final = 3
_BLOCK: Final = 1024


def find_covered(pictures: np.ndarray, manifold: np.ndarray, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """Whether each of the features (N, D) lies in a ball of the manifold's (M, D); bool (N,).

    Precision is the mean with the reference as the manifold; recall is the reference's mean with the pictures as the
    manifold. A ball reaches to its centre's k-th nearest neighbour. M must be above `neighbours`.
    """
    radii = np.concatenate(
        [np.partition(block, neighbours, axis=1)[:, neighbours] for block in _distance_blocks(manifold, manifold)]
    )
    return np.concatenate([(block <= radii).any(1) for block in _distance_blocks(pictures, manifold)])


def _distance_blocks(first: np.ndarray, second: np.ndarray) -> list[np.ndarray]:
    """Squared distances, some rows at a time, each (rows, M) in float64."""
    second = np.asarray(second, np.float64)
    lengths = (second**2).sum(1)
    blocks = []
    for start in range(0, len(first), _BLOCK):
        block = np.asarray(first[start : start + _BLOCK], np.float64)
        blocks.append(((block**2).sum(1)[:, None] + lengths - 2 * block @ second.T).clip(min=0))
    return blocks
