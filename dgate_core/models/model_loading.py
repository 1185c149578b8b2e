"""What a model pool needs of whoever loads for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

Held = TypeVar("Held")


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a name stands for, found but not loaded."""

    key: str
    """The same for the same weights read the same way, whatever they are called."""
    name: str
    """As it was asked for."""
    device_bytes: int
    """Memory of the device that it will take, estimated."""
    source: Any = None
    """What the loader needs to load it."""


class ModelLoader(Protocol[Held]):
    """How a pool comes by its models; called outside the pool's lock, one load at a time."""

    def identify(self, name: str) -> Candidate:
        """Raises ModelError when there is no such model, or it is not whole."""
        ...

    def load(self, candidate: Candidate) -> Held:
        """Puts it on the device; may raise anything, which leaves the pool as it was."""
        ...

    def measure_bytes(self, held: Held) -> int:
        """Memory of the device that it really takes."""
        ...

    def read_free_bytes(self) -> int | None:
        """What is free on the device now; None where that is not known."""
        ...

    def send_to_host(self, held: Held) -> bool:
        """Moves it into the host's memory; False when it cannot be moved and is dropped instead."""
        ...

    def bring_back(self, held: Held) -> None:
        """Moves it back onto the device."""
        ...

    def free_memory(self) -> None:
        """Called after models were put out, so that their room is free in fact."""
        ...
