"""Pictures of one request without a server: what the API would answer, as files."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from dgate_core.api.image_request import ImageRequest
from dgate_core.api.services import open_services
from dgate_core.api.settings import ApiSettings
from dgate_core.api.waiting_room import Made, TicketOptions, WorkKey


def make_pictures(settings: ApiSettings, body: Mapping[str, Any]) -> list[Made]:
    """Loads the model, makes the request's pictures, and lets go of it.

    Args:
        settings: The model, and how it is run.
        body: As /v1/images/generations takes it.

    Raises:
        ValidationError: of pydantic, a parameter that is wrong by itself.
        ApiError: one that is wrong for the model.
        RowError, ModelError: what kept a picture from being made.
    """
    services, asked = open_services(settings), ImageRequest.model_validate(dict(body))
    rows, key = services.rows.make_rows("one-picture", asked.to_body())
    options = TicketOptions("", "one-picture", time.monotonic() + settings.timeout_seconds, asked.to_image_format())
    services.engine.start()
    try:
        _, futures = services.engine.submit(rows, WorkKey(key), options)
        return [future.result() for future in futures]
    finally:
        services.engine.close(settings.drain_seconds)
