"""The FastAPI application: routes, errors, and what runs beside it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from dgate_core.api import batch_routes, docs_routes, edit_routes, file_routes, image_routes, model_routes, page_routes
from dgate_core.api.api_document import complete_document, name_operation
from dgate_core.api.errors import ApiError, describe_error, join_lines, list_headers, to_api_error
from dgate_core.api.frame import RequestFrame
from dgate_core.api.request_limits import RequestLimits, list_own_names
from dgate_core.api.services import Services
from dgate_core.api.settings import ApiSettings
from dgate_core.errors import DgateError

logger = logging.getLogger(__name__)

_CODES = {
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "too_large",
    415: "unsupported_media_type",
}


def make_application(settings: ApiSettings, services: Services) -> FastAPI:
    """The application; models are loaded and batches go on once it starts.

    Args:
        settings: See there.
        services: From `open_services`.
    """
    application = FastAPI(
        title="D-Gate",
        version="1",
        summary="Pictures on demand and in bulk, in the shapes of OpenAI's API.",
        lifespan=live,
        generate_unique_id_function=name_operation,
        redirect_slashes=False,
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
        redoc_url=None,
    )
    application.state.services, application.state.settings = services, settings
    own_names = list_own_names(settings.public_url) if services.parts.gatekeeper.is_open else None
    application.add_middleware(RequestLimits, file_bytes=settings.upload_bytes, own_names=own_names)
    application.add_middleware(RequestFrame, services=services)
    for kind in (DgateError, HTTPException, RequestValidationError):
        application.add_exception_handler(kind, answer_error)
    for routes in (image_routes, edit_routes, model_routes, file_routes, batch_routes, page_routes, docs_routes):
        application.include_router(routes.router)
    for router in services.parts.routers:
        application.include_router(router)
    complete_document(application)
    return application


@asynccontextmanager
async def live(application: FastAPI) -> AsyncIterator[None]:
    """Devices, batches and aliases, from the start of the application to its end."""
    services: Services = application.state.services
    services.engine.start()
    following = asyncio.create_task(_follow_models(services))
    try:
        yield
    finally:
        services.readiness.is_draining = True
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following
        await asyncio.to_thread(services.batches.close, services.settings.drain_seconds)
        await asyncio.to_thread(services.engine.close, services.settings.drain_seconds)


async def _follow_models(services: Services) -> None:
    """Loads what is served, goes on with batches, then looks now and then where aliases lead."""
    try:
        await asyncio.to_thread(services.models.warm_all)
        services.readiness.is_warm = True
    except DgateError as error:
        logger.error("a model could not be loaded: %s", join_lines(error))
    services.batches.start()
    while True:
        await asyncio.sleep(services.settings.follow_seconds)
        await asyncio.to_thread(services.models.follow)


async def answer_error(request: Request, error: Exception) -> Response:
    """Any error that a route raised, in the envelope."""
    known = _read_error(error)
    request.state.error_code = known.api_code
    return JSONResponse(describe_error(known), known.status, headers=list_headers(known))


def _read_error(error: Exception) -> ApiError:
    if isinstance(error, RequestValidationError):
        return _explain_validation(error)
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), _CODES.get(error.status_code, "http_error"))
    return to_api_error(error)


def _explain_validation(error: RequestValidationError) -> ApiError:
    """The first problem is the one that is named; the message has all."""
    told = [(_name_place(each["loc"]), each["msg"].removeprefix("Value error, ")) for each in error.errors()]
    message = "; ".join(f"{place}: {text}" if place else text for place, text in told[:10])
    return ApiError(400, message, "invalid_parameter", told[0][0] or None)


def _name_place(location: tuple[int | str, ...]) -> str:
    """`("body", "n")` is n; the labels of a union's branches are left out."""
    parts = [str(part) for part in location[1:]]
    return ".".join(part for part in parts if part not in {"str", "int"} and not part.startswith("list["))[:100]
