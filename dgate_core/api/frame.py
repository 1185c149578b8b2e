"""What is around every request: its id, who it is from, an answer whatever happens, and a line for those who count."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any

import orjson
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as AsgiScope

from dgate_core.api.contract import RequestFacts, RequestRecord, Scope
from dgate_core.api.errors import ApiError, describe_error, list_headers, to_api_error
from dgate_core.api.services import Services

logger = logging.getLogger(__name__)

REQUEST_ID: ContextVar[str] = ContextVar("dgate_request_id", default="")
"""Of the request in hand, for log lines."""
METRICS_PATH = "/metrics"
_SCOPES: tuple[tuple[str, Scope], ...] = (
    ("/v1/images", "generate"),
    ("/v1/files", "batch"),
    ("/v1/batches", "batch"),
    ("/v1", "read"),
    (METRICS_PATH, "metrics"),
)
"""What the paths below need, first match; others are open to all."""


class RequestFrame:
    """ASGI middleware around the whole application.

    Args:
        app: What answers.
        services: Gatekeeper and telemetry.
    """

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app, self._services = app, services
        self._open_path = METRICS_PATH if services.settings.metrics_open else None

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        frame = _Frame(scope, send)
        token = REQUEST_ID.set(frame.request_id)
        release = None
        try:
            needed = None if scope["path"] == self._open_path else find_scope(scope["path"])
            if needed is not None:
                admission = await self._services.parts.gatekeeper.admit(frame.collect_facts(needed))
                release = admission.release
                frame.state["admission"] = admission
            await self._app(scope, receive, frame.send)
        except Exception as error:
            if not isinstance(error, ApiError):
                logger.exception("request %s failed", frame.request_id)
            await frame.send_error(to_api_error(error))
        finally:
            if release is not None:
                release()
            self._services.parts.telemetry.on_request(frame.to_record())
            REQUEST_ID.reset(token)


class _Frame:
    """One request."""

    def __init__(self, scope: AsgiScope, send: Send) -> None:
        self._scope, self._send = scope, send
        self._started = time.perf_counter()
        self._status = 499
        self.request_id = f"req_{secrets.token_hex(16)}"
        self.state: MutableMapping[str, Any] = scope.setdefault("state", {})
        self.state["request_id"] = self.request_id

    def collect_facts(self, needed: Scope) -> RequestFacts:
        """For the gatekeeper."""
        headers = dict(self._scope["headers"])
        host = self._scope["client"][0] if self._scope.get("client") else ""
        authorization = headers.get(b"authorization", b"").decode("latin-1")
        return RequestFacts(self.request_id, self._scope["method"], self._scope["path"], needed, authorization, host)

    async def send(self, message: Message) -> None:
        """Adds the headers that every answer has."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            spent = round(1000 * (time.perf_counter() - self._started))
            message["headers"] = [
                *message.get("headers", ()),
                (b"x-request-id", self.request_id.encode()),
                (b"openai-processing-ms", b"%d" % spent),
                (b"x-content-type-options", b"nosniff"),
            ]
        await self._send(message)

    async def send_error(self, error: ApiError) -> None:
        """The envelope; an answer that has begun can only be broken off."""
        self.state["error_code"] = error.api_code
        if self._status != 499:
            raise error
        body = orjson.dumps(describe_error(error))
        headers = {"content-type": "application/json", "content-length": str(len(body)), **list_headers(error)}
        start = {"type": "http.response.start", "status": error.status}
        await self.send({**start, "headers": [(name.encode(), value.encode()) for name, value in headers.items()]})
        await self._send({"type": "http.response.body", "body": body})

    def to_record(self) -> RequestRecord:
        """For telemetry."""
        admission = self.state.get("admission")
        return RequestRecord(
            self.request_id,
            getattr(self._scope.get("route"), "path", "unmatched"),
            self._scope["method"],
            self._status,
            self.state.get("model", ""),
            self.state.get("error_code", ""),
            time.perf_counter() - self._started,
            getattr(admission, "key_id", None),
        )


def find_scope(path: str) -> Scope | None:
    """What a path needs; None is open to all."""
    return next((scope for prefix, scope in _SCOPES if path == prefix or path.startswith(f"{prefix}/")), None)
