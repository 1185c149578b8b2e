"""A server for a bounded time, in a thread: for a flow, a notebook, a test."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from dgate_core.api.contract import RequestRecord, Telemetry
from dgate_core.api.server import DrainingServer, describe_address, make_server, open_listener
from dgate_core.api.services import Parts, Services, open_services
from dgate_core.api.settings import LOOPBACK, ApiSettings
from dgate_core.engine.stopping import StopSignal

POLL_SECONDS = 0.2


class IdleClock:
    """Telemetry that passes all on, and remembers when somebody last asked for work.

    Args:
        told: What else is told.
    """

    def __init__(self, told: Telemetry) -> None:
        self._told = told
        self._last = time.monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._told, name)

    def on_request(self, record: RequestRecord) -> None:
        """See `Telemetry`; looking whether the server is well is no work."""
        if record.route.startswith("/v1/"):
            self.touch()
        self._told.on_request(record)

    def touch(self) -> None:
        """There is work now."""
        self._last = time.monotonic()

    @property
    def idle_seconds(self) -> float:
        """Since the last request for work."""
        return time.monotonic() - self._last


@dataclass(frozen=True, slots=True)
class BoundedServer:
    """A server that runs."""

    address: str
    """Where clients reach it."""
    services: Services
    idle: IdleClock
    server: DrainingServer
    thread: threading.Thread

    def wait(self, seconds: float, idle_seconds: float, stop: StopSignal) -> str:
        """Returns why it shall end: `time`, `idle`, `stopped`, or `ended` when it ended by itself."""
        deadline = time.monotonic() + seconds
        while self.thread.is_alive():
            if stop.wait(POLL_SECONDS):
                return "stopped"
            if time.monotonic() > deadline:
                return "time"
            if self._is_at_work():
                self.idle.touch()
            elif self.idle.idle_seconds > idle_seconds:
                return "idle"
        return "ended"

    def _is_at_work(self) -> bool:
        is_loading = not self.services.readiness.is_warm
        return is_loading or bool(self.services.engine.unfinished or self.services.batches.is_busy)


@contextmanager
def run_server(settings: ApiSettings, parts: Parts | None = None) -> Iterator[BoundedServer]:
    """A server while the block runs; what was accepted is finished before it returns.

    Raises:
        DgateError: it cannot start.
    """
    parts = parts or Parts()
    idle = IdleClock(parts.telemetry)
    services = open_services(settings, replace(parts, telemetry=idle))
    server, listener = make_server(settings, services), open_listener(settings)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), name="api")
    thread.start()
    try:
        yield BoundedServer(name_address(settings, listener), services, idle, server, thread)
    finally:
        server.drain()
        thread.join()


def name_address(settings: ApiSettings, listener: socket.socket) -> str:
    """The public url where there is one; of a server that listens to the network, its host's name."""
    if settings.public_url:
        return settings.public_url
    if settings.host in LOOPBACK:
        return describe_address(listener)
    return f"http://{socket.getfqdn()}:{listener.getsockname()[1]}"
