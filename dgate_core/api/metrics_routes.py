"""GET /metrics, for Prometheus; where keys are asked for it needs one with the scope `metrics`, or `metrics_open`.

Its labels hold names of models and routes and nothing of clients, but how much is made, and of what, is the operator's.
"""

from __future__ import annotations

from fastapi import APIRouter, Response

from dgate_core.api.services import Services
from dgate_core.telemetry.api_metrics import ApiMetrics


def make_metrics_router(metrics: ApiMetrics) -> APIRouter:
    """For `Parts.routers`."""
    router = APIRouter(include_in_schema=False)

    @router.get("/metrics")
    def show_metrics() -> Response:
        """A thread of the pool renders it: the GPUs are asked for it."""
        body, content_type = metrics.render()
        return Response(body, headers={"content-type": content_type})

    return router


def watch_pools(metrics: ApiMetrics, services: Services) -> None:
    """Shows the model pools of a server's devices."""
    workers = services.engine.workers
    metrics.watch_pools(lambda: {f"{each.device}:{each.number}": each.pool.describe() for each in workers})
