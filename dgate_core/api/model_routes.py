"""GET /v1/models, /healthz and /readyz."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response

from dgate_core.api.services import Services, find_services

router = APIRouter()
Served = Annotated[Services, Depends(find_services)]


@router.get("/v1/models", tags=["models"], summary="The models that are served")
async def list_models(services: Served) -> dict[str, Any]:
    """The first is what a request without a model gets."""
    return {"object": "list", "data": services.models.list_all()}


@router.get("/v1/models/{model:path}", tags=["models"], summary="One model")
async def get_model(model: str, services: Served) -> dict[str, Any]:
    """Its sizes, steps and schedulers."""
    return services.models.describe(model)


@router.get("/healthz", tags=["health"], summary="Is the process well?")
async def check_health(services: Served) -> Response:
    """503 when its device is lost, so that it must be started again."""
    is_well = services.engine.is_alive
    return JSONResponse({"status": "ok" if is_well else "device lost"}, 200 if is_well else 503)


@router.get("/readyz", tags=["health"], summary="Shall requests come here?")
async def check_readiness(services: Served) -> Response:
    """503 while models are loaded, while the server ends, and when its device is lost."""
    readiness = services.readiness
    state = "draining" if readiness.is_draining else "ready" if readiness.is_warm else "loading"
    state = state if services.engine.is_alive else "device lost"
    body = {"status": state, "waiting": len(services.engine.room)}
    return JSONResponse(body, 200 if state == "ready" else 503)
