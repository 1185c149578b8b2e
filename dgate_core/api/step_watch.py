"""Watches a batch while it is denoised: steps done, and previews for those who asked."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from PIL import Image

from dgate_core.api.waiting_room import Step, Ticket, WorkKey

logger = logging.getLogger(__name__)


@contextmanager
def watch_steps(model: Any, key: WorkKey, tickets: Sequence[Ticket]) -> Iterator[None]:
    """Tells the tickets' listeners of every step of the model while the block runs."""
    call = getattr(model, "call_denoiser", None)
    if call is None or not any(ticket.options.on_step for ticket in tickets):
        yield
        return
    model.call_denoiser = _StepWatch(model, key, tickets)
    try:
        yield
    finally:
        model.call_denoiser = call


class _StepWatch:
    """In the place of a model's `DenoiserCall`: passes every call on, and looks at what came of it."""

    def __init__(self, model: Any, key: WorkKey, tickets: Sequence[Ticket]) -> None:
        self._model, self._call, self._key = model, model.call_denoiser, key.batch
        self._total = count_steps(key)
        self._tickets = tickets
        self._last_timestep: float | None = None
        self._done = 0
        self._shown = [0] * len(tickets)

    def __call__(self, samples: Any, timestep: Any, **conditioning: Any) -> Any:
        """See `DenoiserCall`; schedulers that look twice at a timestep make one step of it."""
        predicted = self._call(samples, timestep, **conditioning)
        now = float(timestep.flatten()[0]) if timestep.ndim else float(timestep)
        if now != self._last_timestep and self._done < self._total:
            self._last_timestep = now
            self._done += 1
            self._tell(samples, now, predicted)
        return predicted

    def _tell(self, samples: Any, timestep: float, predicted: Any) -> None:
        total = self._total
        due = [self._is_preview_due(index, total) for index in range(len(self._tickets))]
        pixels = self._estimate(samples, timestep, predicted) if any(due) else None
        for index, ticket in enumerate(self._tickets):
            if ticket.options.on_step is None:
                continue
            step = Step(self._done, total)
            if due[index] and pixels is not None:
                step = Step(self._done, total, encode_preview(pixels[index], ticket), self._shown[index])
                self._shown[index] += 1
            ticket.options.on_step(ticket.number, step)

    def _is_preview_due(self, index: int, total: int) -> bool:
        """Previews lie at equal distances; the last step needs none."""
        wanted = self._tickets[index].options.previews
        if self._shown[index] >= wanted or self._done == total:
            return False
        return self._done * (wanted + 1) >= total * (self._shown[index] + 1)

    def _estimate(self, samples: Any, timestep: float, predicted: Any) -> Any:
        from dgate_core.models.families.preview import estimate_pixels

        try:
            pixels = estimate_pixels(self._model, samples, timestep, predicted, self._key.guidance_scale)
        except (RuntimeError, MemoryError) as error:
            # The pictures themselves may still come out; their clients see fewer previews.
            logger.warning("no preview: %s", str(error).partition("\n")[0])
            return None
        # A batch that was cut in two shows no previews: which half this is cannot be told.
        return pixels.numpy() if pixels is not None and len(pixels) >= len(self._tickets) else None


def count_steps(key: WorkKey) -> int:
    """Denoising steps of a batch; with a strength only its last ones are done."""
    if key.strength is None:
        return key.batch.num_inference_steps
    from dgate_core.models.families.image_start import count_steps as count_left

    return count_left(key.batch.num_inference_steps, key.strength)


def encode_preview(pixels: Any, ticket: Ticket) -> bytes:
    """A picture file without provenance, for it is not the picture."""
    sink = io.BytesIO()
    image = ticket.options.image
    options = {"compress_level": 1} if image.format == "png" else {"quality": 80}
    Image.fromarray(pixels).save(sink, image.format, **options)
    return sink.getvalue()
