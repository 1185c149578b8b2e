"""Runs the application with uvicorn, and ends it in order."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from types import FrameType

import uvicorn

from dgate_core.api.application import make_application
from dgate_core.api.guarded_protocol import GuardedProtocol
from dgate_core.api.services import Services
from dgate_core.api.settings import LOOPBACK, ApiSettings
from dgate_core.errors import UsageError

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.02
CLOSE_SECONDS = 5
"""For connections that send nothing, once the work is done."""
BACKLOG = 2048
"""Connections that wait to be accepted."""
LONGEST_HEAD_BYTES = 64 << 10


class DrainingServer(uvicorn.Server):
    """The first SIGTERM or Ctrl-C turns /readyz red, ends the work in hand, then closes; the second closes at once.

    Args:
        config: Of uvicorn.
        services: Those of its application.
    """

    def __init__(self, config: uvicorn.Config, services: Services) -> None:
        super().__init__(config)
        self._services = services
        self._draining_since: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See `uvicorn.Server`."""
        if self._draining_since is not None:
            super().handle_exit(sig, frame)
            return
        self.drain()
        logger.warning("draining: what was accepted is finished; once more stops at once")

    def drain(self) -> None:
        """Refuses new work; the server ends by itself when the work in hand is done."""
        self._services.readiness.is_draining = True
        self._draining_since = time.monotonic()

    async def on_tick(self, counter: int) -> bool:
        """See `uvicorn.Server`: called ten times a second."""
        if self._draining_since is not None and self._may_close():
            self.should_exit = True
        return await super().on_tick(counter)

    def _may_close(self) -> bool:
        assert self._draining_since is not None
        spent = time.monotonic() - self._draining_since
        settings = self._services.settings
        if spent < settings.notice_seconds:
            return False
        return not self._services.engine.unfinished or spent > settings.drain_seconds


def make_server(settings: ApiSettings, services: Services) -> DrainingServer:
    """A server that listens when it is run.

    Raises:
        UsageError: it would be open to the network without API keys.
    """
    check_binding(settings, services)
    config = uvicorn.Config(
        make_application(settings, services),
        host=settings.host,
        port=settings.port,
        http=GuardedProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=LONGEST_HEAD_BYTES,
        timeout_graceful_shutdown=CLOSE_SECONDS,
    )
    return DrainingServer(config, services)


def check_binding(settings: ApiSettings, services: Services) -> None:
    """Without keys only this machine may reach the server.

    Raises:
        UsageError: it would be open to the network.
    """
    if services.parts.gatekeeper.is_open and settings.host not in LOOPBACK:
        raise UsageError(
            f"--host {settings.host} without API keys would let everybody in",
            f"one of {', '.join(LOOPBACK)} while there are no keys",
            "make a key with `dgate keys create`, or bind to 127.0.0.1",
        )


def open_listener(settings: ApiSettings) -> socket.socket:
    """A socket that listens, so that the address is known, and taken, before anything is loaded.

    Raises:
        UsageError: the address is taken or not this machine's.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With the protocol said, asyncio switches Nagle's algorithm off; without, every answer waits 40 ms for an ACK.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        # From here on the address is this server's alone, and who asks before all is up waits instead of being refused.
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise UsageError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}",
            "a free port of this machine",
            "stop what listens there, or give another --port",
        ) from error
    return listener


def describe_address(listener: socket.socket) -> str:
    """`http://127.0.0.1:8000`."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(server: DrainingServer, listener: socket.socket) -> None:
    """Returns when the server has ended."""
    asyncio.run(server.serve(sockets=[listener]))
