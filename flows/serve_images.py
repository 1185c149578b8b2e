"""The API on demand: a server on a worker, for a bounded time."""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow

from tasks.serve import serve_until


@flow(name="serve_images", retries=0, persist_result=False)
def serve_images(  # noqa: PLR0913, PLR0917 - flat, for the form in Prefect's UI
    models: list[str] | str = "starter-unet",
    host: str = "127.0.0.1",
    port: int = 0,
    minutes: float = 60.0,
    idle_minutes: float = 15.0,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    settings: dict[str, Any] | None = None,
) -> str:
    """Starts the API where this run is, shows its address as an artifact, and stops when it is not needed any more.

    Args:
        models: Served, the first is the default.
        host: Address to bind; without API keys only loopback.
        port: 0 takes a free one.
        minutes: Longest time.
        idle_minutes: It stops earlier when nobody has asked for anything so long.
        device: `auto` takes cuda, mps or cpu, in this order.
        settings: Others by name, see ApiSettings: folder, public_url, queue_limit, profile, …
    """
    chosen = {"models": [models] if isinstance(models, str) else models, "host": host, "port": port, "device": device}
    return serve_until({**chosen, **(settings or {})}, minutes, idle_minutes)
