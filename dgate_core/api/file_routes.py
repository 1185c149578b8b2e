"""/v1/files: upload, show, list, read, delete."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, Depends, File, Form, Query, UploadFile
from fastapi.responses import StreamingResponse

from dgate_core.api.contract import Admission
from dgate_core.api.errors import ApiError
from dgate_core.api.file_store import cut_page
from dgate_core.api.services import Services, find_admission, find_services

router = APIRouter(prefix="/v1/files", tags=["files"])
Served = Annotated[Services, Depends(find_services)]
Admitted = Annotated[Admission, Depends(find_admission)]
PURPOSES = ("batch",)
CHUNK_BYTES = 1 << 20


@router.post("", summary="Upload a file")
def create_file(
    file: Annotated[UploadFile, File(description="Batch JSONL: one request a line.")],
    purpose: Annotated[str, Form(description="`batch`.")],
    services: Served,
    admission: Admitted,
) -> dict[str, Any]:
    """Keeps a file of requests for a batch."""
    if purpose not in PURPOSES:
        raise ApiError(400, f"purpose: got {purpose[:64]!r}, expected 'batch'", "unsupported_purpose", "purpose")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "upload"
        _copy_upload(file.file, path, services.files.limit_bytes)
        return services.files.add(path, file.filename or "file", purpose, admission.client).to_object()


@router.get("", summary="List files")
def list_files(
    services: Served,
    admission: Admitted,
    purpose: Annotated[str | None, Query(max_length=64)] = None,
    after: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """The newest first, unless order says otherwise."""
    found = [each.to_object() for each in services.files.list_all(admission.client, purpose)]
    return cut_page(found if order == "desc" else found[::-1], after, limit)


@router.get("/{file_id}", summary="Show a file")
def get_file(file_id: str, services: Served, admission: Admitted) -> dict[str, Any]:
    """Its record."""
    return services.files.find(file_id, admission.client).to_object()


@router.delete("/{file_id}", summary="Delete a file")
def delete_file(file_id: str, services: Served, admission: Admitted) -> dict[str, Any]:
    """For good; a batch that still needs it keeps it from being deleted."""
    if any(job.input_file_id == file_id for job in services.batches.list_unfinished()):
        raise ApiError(409, f"{file_id[:64]} belongs to a batch that is not finished", "file_in_use", "file_id")
    services.files.delete(file_id, admission.client)
    return {"id": file_id, "object": "file", "deleted": True}


@router.get("/{file_id}/content", summary="Read a file")
def get_file_content(file_id: str, services: Served, admission: Admitted) -> StreamingResponse:
    """Its bytes."""
    found = services.files.find(file_id, admission.client)
    stream = services.files.open(found.id)
    headers = {"content-length": str(found.bytes), "content-disposition": f'attachment; filename="{found.id}.jsonl"'}
    return StreamingResponse(_read_chunks(stream), media_type="application/octet-stream", headers=headers)


def _copy_upload(source: BinaryIO, path: Path, limit_bytes: int) -> None:
    size = 0
    with path.open("wb") as sink:
        while chunk := source.read(CHUNK_BYTES):
            size += len(chunk)
            if size > limit_bytes:
                raise ApiError(413, f"file: larger than {limit_bytes:,} bytes", "file_too_large", "file")
            sink.write(chunk)


def _read_chunks(stream: BinaryIO) -> Iterator[bytes]:
    with stream:
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk
