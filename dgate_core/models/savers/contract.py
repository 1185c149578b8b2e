"""What the denoising loop asks of a step saver."""

from __future__ import annotations

from typing import Protocol


class StepSaver(Protocol):
    """Lives as long as its model; what it remembers lives as long as one batch."""

    @property
    def name(self) -> str:
        """As the rows' `backend` and run.json carry it, such as `deep-cache-2`."""
        ...

    def install(self) -> None:
        """Takes its place in the denoiser; once."""
        ...

    def begin_batch(self, pictures: int) -> None:
        """Forgets everything; `pictures` are made at once, each in one sample or, with guidance, in two."""
        ...

    def end_batch(self) -> None:
        """Gives the memory back."""
        ...
