"""Spans request → batch → row.

A server tells of rows and batches before the request that they belong to is answered, and from other threads. So ids
are not handed around but follow from the request's own id: its 32 hex digits are the trace's id (W3C Trace Context,
https://www.w3.org/TR/trace-context/), and who sees `x-request-id` in an answer finds the trace by it.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dgate_core.errors import ConfigError, MissingExtraError
from dgate_core.telemetry.contract import BatchFacts, PictureFacts, RequestFacts

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter

SERVICE = "d-gate"


@dataclass(frozen=True, slots=True)
class SpanRecord:
    """A span whose time is over."""

    name: str
    trace: str
    """What the trace's id follows from: the id of a request or of a batch."""
    own: str
    """What its own id follows from, together with the trace."""
    parent: str
    """The parent's `own`; empty for the first span of a trace."""
    seconds: float
    """It ends now."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    """Code of what went wrong; empty for nothing."""


class SpanWriter:
    """Hands finished spans with fixed ids to OpenTelemetry.

    Args:
        exporter: Where they go.
        at_once: Export each when it ends; for tests. Otherwise a thread sends them in batches.
    """

    def __init__(self, exporter: SpanExporter, *, at_once: bool = False) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON

        self._ids = _make_fixed_ids()
        resource = Resource.create({"service.name": SERVICE})
        self._provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False, id_generator=self._ids)
        processor = SimpleSpanProcessor(exporter) if at_once else BatchSpanProcessor(exporter)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("dgate_core")

    def write(self, record: SpanRecord) -> None:
        """One span that ends now."""
        from opentelemetry.trace import Status, StatusCode

        ended = time.time_ns()
        self._ids.chosen.trace, self._ids.chosen.span = read_trace_id(record.trace), make_span_id(record.own)
        span = self._tracer.start_span(
            record.name,
            context=_make_parent(record),
            attributes=dict(record.attributes),
            start_time=ended - int(record.seconds * 1e9),
        )
        if record.error:
            span.set_status(Status(StatusCode.ERROR, record.error))
        span.end(ended)

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()


class RequestTracer:
    """Makes spans of what a server tells.

    Args:
        exporter: Where they go.
        at_once: See `SpanWriter`.
    """

    def __init__(self, exporter: SpanExporter, *, at_once: bool = False) -> None:
        self._writer = SpanWriter(exporter, at_once=at_once)

    def on_request(self, record: RequestFacts) -> None:
        """The root of a trace."""
        attributes = {
            "http.request.method": record.method,
            "http.route": record.route,
            "http.response.status_code": record.status,
            "dgate.request_id": record.request_id,
            "dgate.model": record.model,
        }
        is_error = record.status >= 500
        name, own = f"{record.method} {record.route}", record.request_id
        error = record.code if is_error else ""
        self._writer.write(SpanRecord(name, own, own, "", record.seconds, attributes, error))

    def on_batch(self, record: BatchFacts) -> None:
        """A span in the trace of every request that had rows in it; in a trace of its own where these are not told."""
        stages = {f"dgate.stage.{name}_seconds": seconds for name, seconds in record.stages.items()}
        attributes = {
            "dgate.model": record.model,
            "dgate.device": record.device,
            "dgate.batch.rows": record.rows,
            "dgate.batch.attempts": record.attempts,
            **stages,
        }
        batch: str = getattr(record, "batch_id", "") or f"batch-{threading.get_ident()}-{time.monotonic_ns()}"
        seconds = sum(record.stages.values())
        requests: tuple[str, ...] = getattr(record, "request_ids", ())
        for request in dict.fromkeys(requests):
            own = f"{request}/{batch}"
            self._writer.write(SpanRecord("batch", request, own, request, seconds, attributes, record.error_code))
        if not requests:
            self._writer.write(SpanRecord("batch", batch, batch, "", seconds, attributes, record.error_code))

    def on_picture(self, record: PictureFacts) -> None:
        """A span below its batch in its request, or right below the request where the batch is not told."""
        batch: str = getattr(record, "batch_id", "")
        row: str = getattr(record, "row_id", "") or f"{threading.get_ident()}-{time.monotonic_ns()}"
        attributes = {
            "dgate.model": record.model,
            "dgate.row_id": getattr(record, "row_id", ""),
            "dgate.queue_seconds": record.queue_seconds,
            "dgate.picture.bytes": record.size_bytes,
        }
        request = record.request_id
        parent = f"{request}/{batch}" if batch else request
        own = f"{parent}/{row}"
        self._writer.write(SpanRecord("row", request, own, parent, record.encode_seconds, attributes))

    def close(self) -> None:
        """Sends what is left."""
        self._writer.close()


def open_exporter(endpoint: str) -> SpanExporter:
    """Sends spans by OTLP over HTTP.

    Raises:
        ConfigError: the endpoint is no http address.
        MissingExtraError: OpenTelemetry is not installed.
    """
    if urlsplit(endpoint).scheme not in {"http", "https"} or not urlsplit(endpoint).netloc:
        raise ConfigError(
            f"DGATE_TRACES={endpoint!r}", "an address such as http://localhost:4318/v1/traces", "set it so, or unset it"
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise MissingExtraError("opentelemetry-exporter-otlp-proto-http", "traces") from error
    return OTLPSpanExporter(endpoint=endpoint)


def read_trace_id(text: str) -> int:
    """128 bits: those of a request's id, `req_` and 32 hex digits; of anything else, of its hash."""
    digits = text.removeprefix("req_")
    try:
        value = int(digits, 16) if len(digits) == 32 else 0
    except ValueError:
        value = 0
    return value or int.from_bytes(hashlib.sha256(text.encode()).digest()[:16])


def make_span_id(text: str) -> int:
    """64 bits, never 0."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) or 1


def _make_parent(record: SpanRecord) -> Context:
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    if not record.parent:
        return Context()
    trace, parent = read_trace_id(record.trace), make_span_id(record.parent)
    context = SpanContext(trace, parent, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return set_span_in_context(NonRecordingSpan(context), Context())


def _make_fixed_ids() -> Any:
    """An id generator that gives out what its thread has chosen."""
    from opentelemetry.sdk.trace.id_generator import IdGenerator

    class FixedIds(IdGenerator):
        def __init__(self) -> None:
            self.chosen = threading.local()

        def generate_trace_id(self) -> int:
            trace: int = self.chosen.trace
            return trace

        def generate_span_id(self) -> int:
            span: int = self.chosen.span
            return span

    return FixedIds()
