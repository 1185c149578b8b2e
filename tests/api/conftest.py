"""A real server on loopback with a tiny model, and OpenAI's own client to talk to it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from dgate_core.api.server import DrainingServer, describe_address, make_server, open_listener
from dgate_core.api.services import Parts, Services, open_services
from dgate_core.api.settings import ApiSettings
from tests.run_lab import wait_for


@dataclass(frozen=True)
class Live:
    """A server that runs in a thread of the test's process."""

    url: str
    server: DrainingServer
    services: Services
    thread: threading.Thread

    def client(self, **options: Any) -> OpenAI:
        own = {"api_key": "unused", "max_retries": 0, "timeout": 60.0, **options}
        return OpenAI(base_url=f"{self.url}/v1", **own)

    def wait_until_ready(self) -> None:
        wait_for(lambda: self.services.readiness.is_warm or not self.thread.is_alive())
        assert self.thread.is_alive()


@contextmanager
def run_server(settings: ApiSettings, parts: Parts | None = None, *, warm: bool = True) -> Iterator[Live]:
    services = open_services(settings, parts)
    listener = open_listener(settings)
    server = make_server(settings, services)
    # A server takes signals in the main thread only; here it runs in another.
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    live = Live(describe_address(listener), server, services, thread)
    try:
        if warm:
            live.wait_until_ready()
        yield live
    finally:
        server.drain()
        thread.join(60)
        assert not thread.is_alive(), "the server did not end"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tests.tiny import make_sd

    return str(make_sd(tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture(scope="session")
def settings(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> ApiSettings:
    folder = str(tmp_path_factory.mktemp("api"))
    return ApiSettings(
        models=(f"tiny={checkpoint}",), port=0, folder=folder, device="cpu", precision="float32", timeout_seconds=60.0
    )


@pytest.fixture(scope="session")
def live(settings: ApiSettings) -> Iterator[Live]:
    with run_server(settings) as live:
        yield live


@pytest.fixture
def own_settings(settings: ApiSettings, tmp_path: Path) -> ApiSettings:
    """For a server of the test's own."""
    return replace(settings, folder=str(tmp_path / "api"))
