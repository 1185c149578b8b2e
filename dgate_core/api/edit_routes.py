"""POST /v1/images/edits: a picture made from a picture and a text."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from dgate_core.api.contract import Admission
from dgate_core.api.errors import ApiError
from dgate_core.api.fetching import FetchRules, fetch_picture
from dgate_core.api.image_request import EditRequest, ImageAnswer
from dgate_core.api.image_routes import STREAM_DOC, Work, answer_rows
from dgate_core.api.services import Services, find_admission, find_services
from dgate_core.api.settings import ApiSettings
from dgate_core.api.waiting_room import WorkKey
from dgate_core.engine.start_picture import open_start
from dgate_core.errors import UsageError
from dgate_core.models.catalog import find_checkpoint

if TYPE_CHECKING:
    from dgate_core.models.families.contract import StartPicture

router = APIRouter()
Served = Annotated[Services, Depends(find_services)]
Admitted = Annotated[Admission, Depends(find_admission)]

FAMILY = "unet"
"""The one that starts from pictures."""
MOST_BYTES = 32 << 20
MOST_FIELDS = 64
_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image", "prompt"],
                    "properties": {
                        "image": {"type": "string", "format": "binary", "description": "PNG, JPEG or WebP; or a url."},
                        "prompt": {"type": "string"},
                        "strength": {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 0.8},
                    },
                    "additionalProperties": {"description": "As in /v1/images/generations."},
                }
            }
        },
    }
}


@router.post(
    "/v1/images/edits",
    tags=["images"],
    summary="Pictures from a picture and a text",
    openapi_extra=_FORM,
    responses={200: {"model": ImageAnswer, "content": STREAM_DOC}},
)
async def edit_images(request: Request, services: Served, admission: Admitted) -> Response:
    """Image to image (SDEdit): the picture is cut to the size, and kept as far as `strength` leaves it."""
    async with request.form(max_files=4, max_fields=MOST_FIELDS) as form:
        fields = {name: value for name, value in form.multi_items() if isinstance(value, str)}
        files = [(name, value) for name, value in form.multi_items() if isinstance(value, UploadFile)]
        url = "" if files else fields.pop("image", "")
        data = await fetch_upload(url, services.settings) if url else await read_upload(files)
    asked = parse_fields(fields)
    rows, key = services.rows.make_rows(request.state.request_id, asked.to_body())
    if find_checkpoint(key.model).family != FAMILY:
        message = f"{asked.model or services.models.default} does not start from pictures"
        raise ApiError(400, f"{message}; use /v1/images/generations", "edits_not_supported", "model")
    start = await asyncio.to_thread(make_start, data, (key.width, key.height), asked.strength)
    work = Work([{**row, "start": start} for row in rows], WorkKey(key, asked.strength), "image_edit")
    return await answer_rows(work, asked, request, services, admission)


async def fetch_upload(url: str, settings: ApiSettings) -> bytes:
    """The bytes behind a url, where the operator allows it; raises ApiError."""
    return await asyncio.to_thread(fetch_picture, url, FetchRules(settings.fetch_hosts, most_bytes=MOST_BYTES))


async def read_upload(files: list[tuple[str, UploadFile]]) -> bytes:
    """The bytes of the one picture; raises ApiError for anything else."""
    if masks := [name for name, _ in files if name not in {"image", "image[]"}]:
        raise ApiError(400, f"{masks[0][:64]}: is not read; send only an image", "unsupported_parameter", masks[0][:64])
    if len(files) != 1:
        raise ApiError(400, f"image: got {len(files)} files, expected one", "one_image_expected", "image")
    upload = files[0][1]
    data = await upload.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ApiError(413, f"image: larger than {MOST_BYTES:,} bytes", "file_too_large", "image")
    return data


def parse_fields(fields: Mapping[str, str]) -> EditRequest:
    """The form's texts as a request.

    Raises:
        RequestValidationError: as a JSON body would.
    """
    try:
        return EditRequest.model_validate(dict(fields))
    except ValidationError as error:
        raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in error.errors()]) from error


def make_start(data: bytes, size: tuple[int, int], strength: float) -> StartPicture:
    """A StartPicture of that size; raises ApiError 400 as `open_start` raises UsageError."""
    try:
        return open_start(data, size, strength)
    except UsageError as error:
        raise ApiError(400, f"image: {error.got}, expected {error.expected}", "bad_image", "image") from error
