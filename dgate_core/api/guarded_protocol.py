"""Connections that nobody may hold for nothing: uvicorn's HTTP/1.1 with the time limits that it lacks.

uvicorn itself only limits how long an idle connection is kept after an answer (timeout_keep_alive) and the size of a
head (h11_max_incomplete_event_size). Here also: how long a head may take, how long a client may leave its answer
unread, how many connections there are. How long a body may take stands in `request_limits`.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import h11
import orjson
from uvicorn.protocols.http.h11_impl import H11Protocol

from dgate_core.api.errors import ApiError, describe_error

HEAD_SECONDS = 10.0
"""From the first byte of a request, or from the connection, to the end of its head."""
READ_SECONDS = 60.0
"""For a client to take any more of its answer."""
MOST_CONNECTIONS = 1024


class GuardedProtocol(H11Protocol):
    """See `H11Protocol`; a client that is too slow is cut off, one too many is not let in."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        # uvicorn asks the logger; a line of the access log holds the query, in which people leave keys.
        self.access_log = self.access_log and self.config.access_log
        self._head_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
            return
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._cut_off)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._stop_head_timer()
        self._stop_read_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        if not self._owes_head():
            self._stop_head_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._cut_off)

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`: the client does not read as fast as it is written to."""
        super().pause_writing()
        self._watch_reading(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._stop_read_timer()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets the envelope too, unless its answer has begun: then only the end is left."""
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.close()
            return
        error = ApiError(400, msg, "invalid_http")
        body = orjson.dumps(describe_error(error))
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            (b"x-request-id", f"req_{secrets.token_hex(16)}".encode()),
        ]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _owes_head(self) -> bool:
        """A head has begun or is awaited, or a body still comes for which the answer is out already."""
        if self.conn.their_state is h11.IDLE:
            return True
        is_answered = self.cycle is not None and self.cycle.response_complete
        return is_answered and self.conn.their_state is h11.SEND_BODY

    def _cut_off(self) -> None:
        self._head_timer = None
        self.transport.abort()

    def _watch_reading(self, unread: int) -> None:
        self._stop_read_timer()
        self._read_timer = self.loop.call_later(READ_SECONDS, self._check_reading, unread)

    def _check_reading(self, before: int) -> None:
        unread = self.transport.get_write_buffer_size()
        if unread >= before:
            self.transport.abort()
        else:
            self._watch_reading(unread)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
