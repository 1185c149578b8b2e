"""All that a server tells: metrics, a log line for every request, and traces where they are asked for."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Final

from dgate_core.telemetry.api_metrics import ApiMetrics
from dgate_core.telemetry.contract import BatchFacts, PictureFacts, RequestFacts
from dgate_core.telemetry.traces import RequestTracer, open_exporter

logger = logging.getLogger(__name__)

TRACES_VARIABLE: Final = "DGATE_TRACES"
"""Address of an OTLP/HTTP collector, such as http://localhost:4318/v1/traces; unset traces nothing."""
QUIET_ROUTES: Final = frozenset({"/metrics", "/healthz", "/readyz"})
"""Asked every few seconds by machines: logged at DEBUG only."""


class ServerTelemetry:
    """The hooks of the server, and what it shows at /metrics.

    Args:
        metrics: Counts.
        tracer: Writes spans; None writes none.
    """

    def __init__(self, metrics: ApiMetrics, tracer: RequestTracer | None = None) -> None:
        self.metrics, self.tracer = metrics, tracer

    def on_request(self, record: RequestFacts) -> None:
        """A request was answered."""
        self.metrics.on_request(record)
        level = logging.DEBUG if record.route in QUIET_ROUTES else logging.INFO
        facts = {
            "request_id": record.request_id,
            "route": record.route,
            "status": record.status,
            "model": record.model,
            "seconds": round(record.seconds, 6),
            "error_code": record.code,
            "key_id": record.key_id,
        }
        logger.log(level, "%s %s %d", record.method[:20], record.route, record.status, extra=facts)
        if self.tracer is not None and record.route not in QUIET_ROUTES:
            self.tracer.on_request(record)

    def on_batch(self, record: BatchFacts) -> None:
        """A batch came back from a device."""
        self.metrics.on_batch(record)
        if self.tracer is not None:
            self.tracer.on_batch(record)

    def on_picture(self, record: PictureFacts) -> None:
        """A picture was made."""
        self.metrics.on_picture(record)
        if self.tracer is not None:
            self.tracer.on_picture(record)

    def on_queue(self, waiting: int, limit: int) -> None:
        """The queue grew or shrank."""
        self.metrics.on_queue(waiting, limit)

    def close(self) -> None:
        """Sends the spans that are still here."""
        if self.tracer is not None:
            self.tracer.close()


def open_telemetry(environment: Mapping[str, str] = os.environ) -> ServerTelemetry:
    """Metrics always; traces where DGATE_TRACES names a collector.

    Raises:
        ConfigError: DGATE_TRACES is no address.
        MissingExtraError: it is set and OpenTelemetry is not installed.
    """
    endpoint = environment.get(TRACES_VARIABLE, "")
    tracer = RequestTracer(open_exporter(endpoint)) if endpoint else None
    return ServerTelemetry(ApiMetrics(), tracer)
