"""What a request may be like before anybody looks into it: size, kind and time of its body, and where it comes from."""

from __future__ import annotations

import time
from asyncio import wait_for
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dgate_core.api.errors import ApiError

JSON_BYTES = 1 << 20
"""Longest body of JSON."""
FORM_FRAME_BYTES = 1 << 20
"""What a form may hold besides its file."""
BODY_SECONDS = 30.0
"""For a body of no length; longer ones get more, see SLOWEST_BYTES."""
SLOWEST_BYTES = 16 << 10
"""A second: who sends slower is cut off."""
FORM_PATHS = frozenset({"/v1/files", "/v1/images/edits"})
"""Take multipart/form-data; all others JSON."""
_BODY_METHODS = frozenset({"POST", "PUT", "PATCH"})
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class RequestLimits:
    """ASGI middleware.

    Args:
        app: What answers.
        file_bytes: Largest file in a form.
        own_names: Names under which the server may be asked while no keys are asked for; None is any.
    """

    def __init__(self, app: ASGIApp, file_bytes: int, own_names: frozenset[str] | None = None) -> None:
        self._app, self._file_bytes, self._own_names = app, file_bytes, own_names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI; raises ApiError 403, 413, 415."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if self._own_names is not None:
            check_origin(headers, self._own_names)
        is_form = scope["path"] in FORM_PATHS
        if scope["method"] in _BODY_METHODS and has_body(headers):
            check_content_type(headers.get(b"content-type", ""), is_form=is_form)
        limit = self._file_bytes + FORM_FRAME_BYTES if is_form else JSON_BYTES
        check_length(headers.get(b"content-length", ""), limit)
        await self._app(scope, _BodyReader(receive, limit).receive, send)


class _BodyReader:
    """Counts a body and its time; once it is whole, waiting for the end of the connection takes as long as it takes."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._limit = receive, limit
        self._started = time.monotonic()
        self._bytes = 0
        self._is_whole = False

    async def receive(self) -> Message:
        if self._is_whole:
            return await self._receive()
        left = BODY_SECONDS + self._bytes / SLOWEST_BYTES - (time.monotonic() - self._started)
        try:
            message = await wait_for(self._receive(), max(left, 0.001))
        except TimeoutError as error:
            # Starlette's own error, for FastAPI turns all others into "there was an error parsing the body".
            raise HTTPException(408, "the body did not come in time") from error
        self._bytes += len(message.get("body", b""))
        if self._bytes > self._limit:
            raise HTTPException(413, describe_limit(self._limit))
        self._is_whole = not message.get("more_body", False)
        return message


def has_body(headers: Mapping[bytes, str]) -> bool:
    """Whether bytes follow the head."""
    return b"transfer-encoding" in headers or headers.get(b"content-length", "0") != "0"


def check_length(length: str, limit: int) -> None:
    """Raises ApiError 413 before any of the body is read."""
    if length.isdigit() and (len(length) > 18 or int(length) > limit):
        raise ApiError(413, describe_limit(limit), "too_large")


def check_content_type(content_type: str, *, is_form: bool) -> None:
    """Raises ApiError 415 for anything but the one type that is meant, in UTF-8.

    A page in a browser cannot send JSON to another site without asking first, so this also keeps forms of strange
    pages away from the JSON routes.
    """
    kind, *parameters = (part.strip().lower() for part in content_type.split(";"))
    expected = "multipart/form-data" if is_form else "application/json"
    charsets = [each.partition("=")[2].strip('" ') for each in parameters if each.startswith("charset=")]
    if kind != expected or any(charset not in {"utf-8", "utf8"} for charset in charsets):
        message = f"content-type: got {content_type[:100]!r}, expected {expected}"
        raise ApiError(415, message, "unsupported_media_type")


def check_origin(headers: Mapping[bytes, str], own_names: frozenset[str]) -> None:
    """Raises ApiError 403 for what a strange page in a browser of this machine sends, also under a rebound name."""
    origin = headers.get(b"origin")
    is_strange = origin is not None and read_host(origin.partition("://")[2]) not in own_names
    if (
        is_strange
        or read_host(headers.get(b"host", "")) not in own_names
        or headers.get(b"sec-fetch-site") == "cross-site"
    ):
        message = "without API keys only this machine's own pages and programs may ask, under its own name"
        raise ApiError(403, f"{message}; make a key with `dgate keys create`", "foreign_origin")


def describe_limit(limit: int) -> str:
    """The message of every 413."""
    return f"the body is larger than {limit:,} bytes"


def list_own_names(public_url: str) -> frozenset[str]:
    """This machine's own names, and the one under which a proxy on it is reached."""
    return LOCAL_NAMES | ({read_host(public_url.partition("://")[2])} - {""})


def read_host(authority: str) -> str:
    """`[::1]:8000/` and `localhost:8000` without the port."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.partition("/")[0].partition(":")[0].lower()
