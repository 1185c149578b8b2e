"""A request's progress as server-sent events, in the shapes that OpenAI's SDK parses."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Literal

import orjson

from dgate_core.api.errors import ApiError, describe_error, describe_lateness, to_api_error
from dgate_core.api.image_answers import Answering, describe_frame, describe_picture, describe_usage
from dgate_core.api.waiting_room import Made, Step

Kind = Literal["image_generation", "image_edit"]
PROGRESS_SECONDS = 0.1
"""Between two progress events of a picture."""
SILENCE_SECONDS = 10.0
"""After which a comment keeps proxies from closing the line."""


class StepChannel:
    """Carries steps from the device's thread to the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.queue: asyncio.Queue[tuple[int, Step]] = asyncio.Queue()

    def tell(self, number: int, step: Step) -> None:
        """Called from any thread."""
        self._loop.call_soon_threadsafe(self.queue.put_nowait, (number, step))


class EventWriter:
    """Writes a stream's events.

    Args:
        kind: Of the request; the events' types begin with it.
        answering: Format, and where urls lead.
        row: The first picture's.
    """

    def __init__(self, kind: Kind, answering: Answering, row: Mapping[str, Any]) -> None:
        self._kind, self._answering = kind, answering
        asked = answering.asked
        self._shared = {"created_at": int(time.time()), **describe_frame(row, asked), "quality": "auto"}
        self._told: dict[int, float] = {}

    def write_step(self, number: int, step: Step) -> bytes:
        """A preview, or a progress event; empty when the last one is too recent."""
        if step.preview is not None:
            return self._write(
                "partial_image",
                b64_json=base64.b64encode(step.preview).decode(),
                partial_image_index=step.preview_index,
                image_index=number,
            )
        now = time.monotonic()
        if now - self._told.get(number, 0.0) < PROGRESS_SECONDS and step.done < step.total:
            return b""
        self._told[number] = now
        return self._write("progress", image_index=number, step=step.done, steps=step.total)

    def write_picture(self, number: int, made: Made) -> bytes:
        """The completed event of one picture."""
        entry = {"b64_json": None, **describe_picture(made, self._answering)}
        return self._write("completed", image_index=number, **entry, usage=describe_usage([made]))

    def write_error(self, error: Exception) -> bytes:
        """The last event of a stream that failed; OpenAI's SDK raises it."""
        known = error if isinstance(error, ApiError) else to_api_error(error)
        return b"event: error\ndata: " + orjson.dumps(describe_error(known)) + b"\n\n"

    def _write(self, name: str, **fields: Any) -> bytes:
        kind = f"{self._kind}.{name}"
        data = orjson.dumps({"type": kind, **self._shared, **fields})
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


async def stream_events(
    channel: StepChannel,
    futures: Sequence[asyncio.Future[Made]],
    writer: EventWriter,
    deadline: float,
    give_up: Callable[[], None],
) -> AsyncIterator[bytes]:
    """Events until every picture is told, or one fails; the client's hanging up ends it too.

    Args:
        channel: Brings steps.
        futures: Of the pictures.
        writer: Writes events.
        deadline: Of time.monotonic().
        give_up: Called at the end, whatever it was.
    """
    waiting = {future: number for number, future in enumerate(futures)}
    step: asyncio.Future[tuple[int, Step]] = asyncio.ensure_future(channel.queue.get())
    try:
        while waiting:
            left = deadline - time.monotonic()
            if left <= 0:
                raise describe_lateness()
            awaited: set[asyncio.Future[Any]] = {step, *waiting}
            done, _ = await asyncio.wait(
                awaited, timeout=min(left, SILENCE_SECONDS), return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                yield b": still at work\n\n"
            if step in done:
                if event := writer.write_step(*step.result()):
                    yield event
                step = asyncio.ensure_future(channel.queue.get())
            elif finished := [future for future in waiting if future in done]:
                # Steps that came before a picture are told before it.
                if finished[0].cancelled():  # the room drops what is late; its exception would pass for our own end
                    raise describe_lateness()
                yield writer.write_picture(waiting.pop(finished[0]), finished[0].result())
        yield b"data: [DONE]\n\n"
    except Exception as error:
        yield writer.write_error(error)
    finally:
        step.cancel()
        give_up()
