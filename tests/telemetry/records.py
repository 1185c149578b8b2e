"""Records as a server tells them, and every metric that D-Gate exports."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from dgate_core.api.contract import BatchRecord, PictureRecord, RequestRecord
from dgate_core.telemetry.api_metrics import ApiMetrics
from dgate_core.telemetry.gpus import GpuReading
from dgate_core.telemetry.run_metrics import render_runs

REQUEST = "req_0af7651916cd43dd8448eb211c80319c"
GPU = GpuReading(0, "a GPU", 30 << 30, 80 << 30, 0.75)
POOL = {
    "budget_bytes": 1 << 30,
    "models": [{"names": ["boats"], "state": "warm", "bytes": 1 << 20, "leases": 1}],
    "loads": 3,
    "load_seconds": 1.5,
    "returns": 0,
    "evictions": 1,
    "swaps": 2,
    "failures": 0,
}


def request(status: int = 200, code: str = "", method: str = "POST", request_id: str = REQUEST) -> RequestRecord:
    return RequestRecord(request_id, "/v1/images/generations", method, status, "boats", code, 0.2, "key_1")


def batch(rows: int = 3, attempts: int = 1, error_code: str = "") -> BatchRecord:
    return BatchRecord("boats", "cpu", rows, {"prompts": 0.01, "denoise": 0.12, "decode": 0.02}, attempts, error_code)


def picture(request_id: str = REQUEST) -> PictureRecord:
    return PictureRecord(request_id, "boats", 0.004, 0.01, 5000)


def fill_metrics(gpus: Sequence[GpuReading] = (GPU,)) -> ApiMetrics:
    """Metrics that were told one of everything."""
    metrics = ApiMetrics(lambda: gpus)
    metrics.watch_pools(lambda: {"cuda:0": POOL})
    metrics.on_request(request())
    metrics.on_request(request(503, "out_of_memory"))
    metrics.on_batch(batch())
    metrics.on_batch(batch(attempts=2, error_code="nan_picture"))
    metrics.on_picture(picture())
    metrics.on_queue(7, 256)
    return metrics


def read_families(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def read_samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Value by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in read_families(text).values()
        for sample in family.samples
    }


def value(text: str, name: str, /, **labels: str) -> float | None:
    return read_samples(text).get((name, frozenset(labels.items())))


def list_exported(run: str) -> dict[str, set[str]]:
    """Labels of every metric that the code exports, by the name of its samples; `run` is a folder with a verdict."""
    exported: dict[str, set[str]] = {"up": {"job", "instance"}}
    for text in (fill_metrics().render()[0].decode(), render_runs([run]).decode()):
        for name, labels in read_samples(text):
            exported.setdefault(name, {"job", "instance"}).update(label for label, _ in labels)
    return exported
