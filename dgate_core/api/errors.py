"""Errors as OpenAI's clients read them: a status, and {"error": {message, type, param, code}}."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

from dgate_core.errors import (
    DgateError,
    ManifestError,
    ModelError,
    ObjectNotFoundError,
    RowError,
    StorageError,
    UsageError,
)

logger = logging.getLogger(__name__)

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_STATUSES: tuple[tuple[type[DgateError], int], ...] = (
    (UsageError, 400),
    (ManifestError, 400),
    (ObjectNotFoundError, 404),
    (ModelError, 503),
    (StorageError, 503),
)
_INSIDE = {404: "what was asked for is not there", 503: "the server's disk or models cannot be used just now"}
_SEE_LOG = "the log has the details under this request's id"
_ROW_STATUSES = {"out_of_memory": 503, "nan_picture": 500, "generation_failed": 500, "encode_failed": 400}


class ApiError(DgateError):
    """What a client is told instead of an answer.

    Args:
        status: Of HTTP.
        message: What was got, what was expected, what to do next.
        code: Stable name, for programs.
        param: The parameter that is wrong.
        retry_after: Seconds after which the same request may fare better; sent as Retry-After.
    """

    code: ClassVar[str] = "api"

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.api_code, self.param, self.retry_after = status, code, param, retry_after


def to_api_error(error: Exception) -> ApiError:
    """Any error as one; what nobody foresaw says nothing of the inside."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RowError):
        return ApiError(_ROW_STATUSES.get(error.row_code, 500), join_lines(error), error.row_code)
    if isinstance(error, DgateError):
        status = next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)
        if isinstance(error, UsageError | ManifestError):
            return ApiError(status, join_lines(error), error.code)
        # The texts of all others are for the operator: they name places on the server.
        logger.error("%s: %s", error.code, join_lines(error))
        return ApiError(status, f"{_INSIDE.get(status, 'the server failed')}; {_SEE_LOG}", error.code)
    return ApiError(500, f"the server failed; {_SEE_LOG}", "internal_error")


def describe_lateness() -> ApiError:
    """The deadline of a request has passed."""
    return ApiError(504, "the time for this request is over", "deadline_exceeded")


def describe_error(error: ApiError) -> dict[str, Any]:
    """The envelope."""
    kind = _TYPES.get(error.status, SERVER_ERROR if error.status >= 500 else INVALID_REQUEST)
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.api_code}}


def list_headers(error: ApiError) -> dict[str, str]:
    """Headers that go with an error."""
    if error.retry_after is None:
        return {}
    return {"retry-after": str(max(1, round(error.retry_after)))}


def join_lines(error: Exception) -> str:
    """An error's text on one line."""
    return "; ".join(line.strip() for line in str(error).splitlines())
