"""Pool3 features of FID's Inception-v3; the network, and torch with it, is loaded for the first picture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

from dgate_core.evaluation.features.computing import StageClock, compute_in_fp32
from dgate_core.evaluation.features.extractor import INCEPTION, INCEPTION_TENSORFLOW
from dgate_core.evaluation.weights.catalog import find_spec
from dgate_core.evaluation.weights.store import check_weights, load_weights

if TYPE_CHECKING:
    from dgate_core.evaluation.features.inception_network import InceptionPool3

DIMENSION: Final = 2048
_RESIZES: Final = {
    INCEPTION: "bilinear, not antialiased, 299x299 (pytorch-fid)",
    INCEPTION_TENSORFLOW: "bilinear, not antialiased, pixels at their corners, 299x299 (TensorFlow 1)",
}


class InceptionExtractor:
    """Features with fetched weights.

    Args:
        name: INCEPTION or INCEPTION_TENSORFLOW, which differ in the resize alone.
        device: torch's name of the device.
    """

    dimension = DIMENSION

    def __init__(self, name: str = INCEPTION, device: str = "cpu") -> None:
        check_weights("inception")
        self.name, self.device = name, device
        self.weights_sha256, self.resize = find_spec("inception").tensors_sha256, _RESIZES[name]
        self.seconds = StageClock()

    @cached_property
    def network(self) -> InceptionPool3:
        """The network on its device."""
        from dgate_core.evaluation.features.inception_network import load_network

        return load_network(load_weights("inception"), self.device)

    def extract(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Features float32 (N, 2048) of pictures uint8 (H, W, 3)."""
        from dgate_core.evaluation.features.inception_network import prepare_pictures

        network, size = self.network, 8 if self.device == "cpu" else 64
        features = np.empty((len(pictures), DIMENSION), np.float32)
        with compute_in_fp32():
            for start in range(0, len(pictures), size):
                batch = pictures[start : start + size]
                with self.seconds.time("resize"):
                    pixels = prepare_pictures(batch, self.device, as_tensorflow=self.name == INCEPTION_TENSORFLOW)
                with self.seconds.time("network"):
                    features[start : start + size] = network(pixels).cpu().numpy()
        return features
