"""POST /v1/images/generations, and the pictures behind urls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse

from dgate_core.api.batch_output import read_batch_picture
from dgate_core.api.batch_store import BATCH_ID
from dgate_core.api.contract import Admission
from dgate_core.api.errors import ApiError, describe_lateness
from dgate_core.api.image_answers import Answering, write_answer
from dgate_core.api.image_engine import describe_closing
from dgate_core.api.image_request import ImageAnswer, ImageRequest
from dgate_core.api.services import Services, find_admission, find_services
from dgate_core.api.streaming import EventWriter, Kind, StepChannel, stream_events
from dgate_core.api.waiting_room import Made, Ticket, TicketOptions, WorkKey
from dgate_core.runs.store import RunStore
from dgate_core.storage import open_storage

router = APIRouter()
Served = Annotated[Services, Depends(find_services)]
Admitted = Annotated[Admission, Depends(find_admission)]
_MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
STREAM_DOC: dict[str, Any] = {
    "text/event-stream": {"schema": {"type": "string"}, "example": "event: image_generation.completed\ndata: {…}\n\n"}
}


@router.post(
    "/v1/images/generations",
    tags=["images"],
    summary="Pictures from a text",
    responses={200: {"model": ImageAnswer, "content": STREAM_DOC}},
)
async def generate_images(asked: ImageRequest, request: Request, services: Served, admission: Admitted) -> Response:
    """Makes 1 to 10 pictures; the same seed and parameters give the same pixels, here and in bulk runs."""
    rows, key = services.rows.make_rows(request.state.request_id, asked.to_body())
    return await answer_rows(Work(rows, WorkKey(key)), asked, request, services, admission)


@dataclass(frozen=True, slots=True)
class Work:
    """What a request comes to."""

    rows: Sequence[dict[str, Any]]
    key: WorkKey
    kind: Kind = "image_generation"


async def answer_rows(
    work: Work, asked: ImageRequest, request: Request, services: Services, admission: Admission
) -> Response:
    """Queues the rows and answers when they are made, or streams how they come along."""
    request.state.model = asked.model or services.models.default
    if services.readiness.is_draining:
        raise describe_closing()
    services.engine.check_place(len(work.rows))  # nobody pays for what is refused
    await admission.spend(len(work.rows))
    channel = StepChannel() if asked.stream else None
    options = TicketOptions(
        client=f"{admission.client}/{asked.client_name}",
        request_id=request.state.request_id,
        deadline=time.monotonic() + services.settings.timeout_seconds,
        image=asked.to_image_format(),
        on_step=channel.tell if channel else None,
        # A preview leaves before anybody has looked at the picture.
        previews=(asked.partial_images or 0) if services.parts.inspector is None else 0,
    )
    tickets, futures = services.engine.submit(work.rows, work.key, options)
    answering = Answering(asked, find_base_url(request, services), services.pictures, request.state.model)
    if channel is not None:
        writer = EventWriter(work.kind, answering, work.rows[0])
        wrapped = [asyncio.wrap_future(future) for future in futures]
        events = stream_events(channel, wrapped, writer, options.deadline, lambda: services.engine.cancel(tickets))
        return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
    made = await wait_for_pictures(request, services, tickets, futures, options.deadline)
    return Response(await write_answer(made, answering), media_type="application/json")


async def wait_for_pictures(
    request: Request, services: Services, tickets: Sequence[Ticket], futures: Sequence[Future[Made]], deadline: float
) -> list[Made]:
    """The pictures; a client that hangs up, or is out of time, frees its places.

    Raises:
        RowError, ModelError: what kept a picture from being made.
        ApiError: 499 nobody waits any more, 504 out of time.
    """
    pictures = asyncio.gather(*map(asyncio.wrap_future, futures))
    hangup = asyncio.ensure_future(_wait_for_hangup(request))
    try:
        awaited: set[asyncio.Future[Any]] = {pictures, hangup}
        done, _ = await asyncio.wait(awaited, timeout=deadline - time.monotonic(), return_when=asyncio.FIRST_COMPLETED)
        if pictures in done:
            return pictures.result()
        if hangup in done:
            raise ApiError(499, "the client has gone", "client_gone")
        raise describe_lateness()
    except (asyncio.CancelledError, CancelledError) as error:
        raise describe_lateness() from error
    finally:
        hangup.cancel()
        services.engine.cancel(tickets)
        pictures.cancel()
        pictures.add_done_callback(_note_outcome)


def _note_outcome(pictures: asyncio.Future[list[Made]]) -> None:
    """Takes what came of pictures that nobody waits for any more, which asyncio would else report as an error."""
    if not pictures.cancelled():
        pictures.exception()


async def _wait_for_hangup(request: Request) -> None:
    """The body is read, so what comes next is the end of the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


@router.get("/pictures/{name}", tags=["images"], summary="A picture behind a url", response_class=Response)
async def get_picture(name: str, services: Served) -> Response:
    """The file, while it is kept: an hour unless room is needed."""
    picture = services.pictures.find(name.partition(".")[0])
    if picture is None:
        raise ApiError(404, "no such picture, or its time is over", "picture_not_found")
    return Response(picture.data, media_type=picture.media_type, headers={"cache-control": "private, max-age=3600"})


@router.get("/pictures/{batch_id}/{row_id}", tags=["images"], summary="A picture of a batch", response_class=Response)
def get_batch_picture(batch_id: str, row_id: str, services: Served) -> Response:
    """A file of a batch whose lines asked for urls; the batch's id, which nobody guesses, is the key."""
    if not BATCH_ID.fullmatch(batch_id):
        raise ApiError(404, "no such picture", "picture_not_found")
    run = RunStore(open_storage(services.batches.store.locate_run(batch_id)))
    data, suffix = read_batch_picture(run, row_id)
    return Response(data, media_type=_MEDIA_TYPES[suffix], headers={"cache-control": "private, max-age=3600"})


def find_base_url(request: Request, services: Services) -> str:
    """Where the client reaches the server, without a slash at the end."""
    return (services.settings.public_url or str(request.base_url)).rstrip("/")
