"""Traces request → batch → row, whose ids follow from the request's id."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from dgate_core.api.contract import BatchRecord, PictureRecord
from dgate_core.errors import ConfigError
from dgate_core.telemetry.server import open_telemetry
from dgate_core.telemetry.traces import RequestTracer, read_trace_id
from tests.telemetry.records import REQUEST, batch, picture, request

OTHER = "req_" + "1" * 32


@dataclass(frozen=True, slots=True)
class NamedBatch(BatchRecord):
    """A batch that says whose rows it held."""

    batch_id: str = "b7"
    request_ids: tuple[str, ...] = (REQUEST, REQUEST, OTHER)


@dataclass(frozen=True, slots=True)
class NamedPicture(PictureRecord):
    """A picture that says in which batch it was."""

    batch_id: str = "b7"
    row_id: str = field(default="row-1")


def trace_ids(span: ReadableSpan) -> tuple[int, int, int | None]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id, span.parent.span_id if span.parent else None


def test_a_request_its_batch_and_its_rows_are_one_trace() -> None:
    exporter = InMemorySpanExporter()
    tracer = RequestTracer(exporter, at_once=True)
    tracer.on_batch(NamedBatch("boats", "cpu", 3, {"denoise": 0.5}, 1))
    with ThreadPoolExecutor(3) as pool:
        rows = [(REQUEST, "row-1"), (REQUEST, "row-2"), (OTHER, "row-3")]
        list(pool.map(lambda row: tracer.on_picture(NamedPicture(row[0], "boats", 0.1, 0.2, 10, row_id=row[1])), rows))
    tracer.on_request(request())
    spans = exporter.get_finished_spans()
    own = [span for span in spans if trace_ids(span)[0] == int(REQUEST[4:], 16)]
    assert sorted(span.name for span in own) == ["POST /v1/images/generations", "batch", "row", "row"]
    (root,) = [span for span in own if span.parent is None]
    (shared,) = [span for span in own if span.name == "batch"]
    assert trace_ids(shared)[2] == trace_ids(root)[1]
    assert {trace_ids(span)[2] for span in own if span.name == "row"} == {trace_ids(shared)[1]}
    assert len({trace_ids(span)[1] for span in spans}) == len(spans) == 6
    assert shared.attributes is not None
    assert shared.attributes["dgate.stage.denoise_seconds"] == 0.5
    assert shared.end_time is not None
    assert shared.start_time is not None
    assert shared.end_time - shared.start_time == 500_000_000


def test_rows_of_batches_without_a_name_hang_on_their_request() -> None:
    exporter = InMemorySpanExporter()
    tracer = RequestTracer(exporter, at_once=True)
    tracer.on_batch(batch())
    tracer.on_picture(picture())
    tracer.on_request(request())
    lonely, row, root = exporter.get_finished_spans()
    assert lonely.parent is None
    assert trace_ids(lonely)[0] != trace_ids(root)[0]
    assert trace_ids(row)[::2] == trace_ids(root)[:2]


def test_failures_are_errors_and_a_clients_mistakes_are_not() -> None:
    exporter = InMemorySpanExporter()
    tracer = RequestTracer(exporter, at_once=True)
    tracer.on_request(request(503, "out_of_memory"))
    tracer.on_request(request(400, "invalid_parameter"))
    failed, mistaken = exporter.get_finished_spans()
    assert (failed.status.status_code, failed.status.description) == (StatusCode.ERROR, "out_of_memory")
    assert mistaken.status.status_code is StatusCode.UNSET


def test_spans_reach_a_collector() -> None:
    bodies: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = Thread(target=server.serve_forever)
    thread.start()
    telemetry = open_telemetry({"DGATE_TRACES": f"http://127.0.0.1:{server.server_port}/v1/traces"})
    telemetry.on_request(request())
    telemetry.close()
    server.shutdown()
    thread.join()
    server.server_close()
    (sent,) = [ExportTraceServiceRequest.FromString(body) for body in bodies]
    (span,) = sent.resource_spans[0].scope_spans[0].spans
    assert span.trace_id.hex() == REQUEST[4:]
    attributes = {each.key: each.value for each in span.attributes}
    assert attributes["http.response.status_code"].int_value == 200


def test_without_the_option_nothing_is_traced_and_a_wrong_one_is_refused() -> None:
    assert open_telemetry({}).tracer is None
    with pytest.raises(ConfigError, match="4318"):
        open_telemetry({"DGATE_TRACES": "localhost"})


@pytest.mark.parametrize("text", ["req_" + "0" * 32, "", "req_xyz", "batch-7"])
def test_any_id_gives_a_valid_trace(text: str) -> None:
    assert 0 < read_trace_id(text) < 1 << 128
