"""`dgate serve` as it is started: metrics, JSON log lines, traces from request to row."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from dgate_core.api.services import Parts
from dgate_core.api.settings import ApiSettings
from dgate_core.telemetry.api_metrics import ApiMetrics
from dgate_core.telemetry.server import ServerTelemetry
from dgate_core.telemetry.traces import RequestTracer
from tests.api.conftest import run_server
from tests.run_lab import wait_for
from tests.telemetry.records import value

ROUTE = "/v1/images/generations"


def test_a_real_request_is_one_trace_down_to_its_rows(checkpoint: str, tmp_path: Path) -> None:
    exporter = InMemorySpanExporter()
    telemetry = ServerTelemetry(ApiMetrics(list), RequestTracer(exporter, at_once=True))
    settings = ApiSettings((f"tiny={checkpoint}",), port=0, folder=str(tmp_path), device="cpu", precision="float32")
    with run_server(settings, Parts(telemetry=telemetry)) as live:
        body = {"prompt": "a boat", "n": 2, "num_inference_steps": 2}
        answer = httpx.post(f"{live.url}{ROUTE}", json=body, timeout=60)
        wait_for(lambda: any(span.parent is None for span in exporter.get_finished_spans()))
    spans = exporter.get_finished_spans()
    ids = {format(span.context.trace_id, "032x") for span in spans if span.context is not None}
    assert ids == {answer.headers["x-request-id"].removeprefix("req_")}
    (root,) = [span for span in spans if span.parent is None]
    (batch,) = [span for span in spans if span.name == "batch"]
    rows = [span for span in spans if span.name == "row"]
    assert root.context is not None
    assert batch.context is not None
    assert batch.parent is not None
    assert batch.parent.span_id == root.context.span_id
    assert [row.parent.span_id for row in rows if row.parent is not None] == [batch.context.span_id] * 2
    told = {(row.attributes or {})["dgate.row_id"] for row in rows}
    assert told == {each["id"] for each in answer.json()["data"]}


def test_the_command_shows_metrics_and_writes_json(checkpoint: str, tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "flows.cli", "serve", "--model", f"tiny={checkpoint}", "--port", "0"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*arguments, "--folder", str(tmp_path)], stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert process.stdout is not None
            url = next(word for word in process.stdout.readline().split() if word.startswith("http://"))
            answer = httpx.post(f"{url}{ROUTE}", json={"prompt": "a boat", "num_inference_steps": 1}, timeout=120)
            told = httpx.get(f"{url}/metrics").text
        finally:
            process.terminate()
            process.communicate(timeout=60)
    assert value(told, "dgate_requests_total", route=ROUTE, method="POST", status="200", model="tiny") == 1
    assert value(told, "dgate_model_loads_total", device="cpu:0") == 1
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    (line,) = [line for line in lines if line.get("route") == ROUTE]
    assert line["request_id"] == answer.headers["x-request-id"]
    assert line["status"] == 200
