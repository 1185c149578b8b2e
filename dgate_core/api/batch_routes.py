"""/v1/batches: create, show, list, cancel."""

from __future__ import annotations

from typing import Annotated, Any

from anyio import from_thread
from fastapi import APIRouter, Depends, Query, Request

from dgate_core.api.batch_input import count_pictures
from dgate_core.api.batch_store import BatchRequest
from dgate_core.api.contract import Admission, spend_freely
from dgate_core.api.file_store import cut_page
from dgate_core.api.image_engine import describe_closing
from dgate_core.api.image_routes import find_base_url
from dgate_core.api.services import Services, find_admission, find_services

router = APIRouter(prefix="/v1/batches", tags=["batches"])
Served = Annotated[Services, Depends(find_services)]
Admitted = Annotated[Admission, Depends(find_admission)]


@router.post("", summary="Start a batch")
def create_batch(asked: BatchRequest, request: Request, services: Served, admission: Admitted) -> dict[str, Any]:
    """Carries out a file of requests as a bulk run; it goes on after a restart of the server, however that ended."""
    if services.readiness.is_draining:
        raise describe_closing()
    if admission.spend is not spend_freely:
        file = services.files.find(asked.input_file_id, admission.client)
        with services.files.open(file.id) as stream:
            from_thread.run(admission.spend, count_pictures(stream))
    job = services.batches.create(asked, admission.client, find_base_url(request, services))
    return services.batches.describe(job)


@router.get("", summary="List batches")
def list_batches(
    services: Served,
    admission: Admitted,
    after: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """The newest first."""
    found = [services.batches.describe(job) for job in services.batches.store.list_all(admission.client)]
    return cut_page(found, after, limit)


@router.get("/{batch_id}", summary="Show a batch")
def get_batch(batch_id: str, services: Served, admission: Admitted) -> dict[str, Any]:
    """Its state, counts and files."""
    return services.batches.describe(services.batches.store.find(batch_id, admission.client))


@router.post("/{batch_id}/cancel", summary="Cancel a batch")
def cancel_batch(batch_id: str, services: Served, admission: Admitted) -> dict[str, Any]:
    """What is made until then is in its output file."""
    return services.batches.describe(services.batches.cancel(batch_id, admission.client))
