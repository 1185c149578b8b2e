"""How much detail a picture has: what too few steps, a coarse decoder or a careless cache take away first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from dgate_core.evaluation.picture_metric import MetricCard, Tools
from dgate_core.evaluation.pictures import Chunk

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""ITU-R BT.601."""


class Detail:
    """Every picture's sharpness as its one feature, so that it is cached like those of a network."""

    name = "detail"
    weights_sha256 = ""
    resize = "none"
    dimension = 1
    seconds: Mapping[str, float] = MappingProxyType({})

    def extract(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """See `Extractor`."""
        rows = [measure_sharpness(each) for each in pictures]
        return np.array(rows, np.float32).reshape(len(pictures), self.dimension)


DETAIL = Detail()


class Sharpness:
    """Mean absolute Laplacian of the luma, 0 to 1020: the energy of Laplacian of Pertuz et al. (2013) in L1."""

    card = MetricCard("sharpness", needs="a picture that can be read, of at least 3 x 3 pixels")
    extractors = (DETAIL,)

    def __init__(self, tools: Tools) -> None:
        self._features = tools.features

    def score(self, chunk: Chunk) -> np.ndarray:
        """See `PictureMetric`."""
        return self._features.find(chunk, DETAIL)[:, 0].astype(np.float64)


def measure_sharpness(pixels: np.ndarray) -> float:
    """Of a picture uint8 (height, width, 3); NaN for one of less than 3 x 3 pixels."""
    if min(pixels.shape[:2]) < 3:
        return float("nan")
    luma = pixels.astype(np.float32) @ _LUMA
    around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    return float(np.abs(4 * luma[1:-1, 1:-1] - around).mean())


def open_metric(variant: str, tools: Tools) -> Sharpness:  # noqa: ARG001 - part of the contract
    """See `MetricFactory`."""
    return Sharpness(tools)
