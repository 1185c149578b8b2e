"""Somebody who sees every picture of a lane while it is still in memory, such as the evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np

from dgate_core.engine.sinks import PictureFile
from dgate_core.registry import Registry

OBSERVERS = Registry("observer", {"features": "dgate_core.evaluation.live:open_live_features"})
"""Higher layers, by name: the engine knows of them no more than that they look."""


@dataclass(frozen=True, slots=True)
class MadePicture:
    """One picture that was made and written."""

    pixels: np.ndarray
    """uint8 (height, width, 3), as the encoder got them."""
    file: PictureFile
    """What was written."""


class PictureObserver(Protocol):
    """Sees pictures; it may never hold up or end the work."""

    def see(self, pictures: Sequence[MadePicture]) -> None:
        """Takes the pictures of a batch and returns at once."""
        ...

    def close(self, *, at_once: bool) -> None:
        """No more pictures come; `at_once` gives up those that it has not looked at yet."""
        ...


def open_observer(metrics: Sequence[str], device: str) -> PictureObserver:
    """The observer that prepares these metrics of the evaluation."""
    return cast(PictureObserver, OBSERVERS.load("features")(metrics, device))
