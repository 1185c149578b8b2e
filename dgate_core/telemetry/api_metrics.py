"""The server's Prometheus metrics. Labels hold names that the server knows, never a client's own words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from dgate_core.telemetry.contract import BatchFacts, PictureFacts, RequestFacts
from dgate_core.telemetry.device_metrics import EngineCacheCollector, GpuCollector, PoolCollector, ReadPools
from dgate_core.telemetry.gpus import GpuReading, read_gpus

REQUEST_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
QUEUE_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
STAGE_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120)
BATCH_ROWS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128)
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Others are counted as OTHER: a client may send any word."""


class ApiMetrics:
    """Counts what a server is told to count; a registry of its own, so that several servers fit one process.

    Args:
        ask_gpus: See `read_gpus`.
    """

    def __init__(self, ask_gpus: Callable[[], Sequence[GpuReading]] = read_gpus) -> None:
        from prometheus_client import CollectorRegistry, ProcessCollector

        self.registry = CollectorRegistry(auto_describe=True)
        self._add_requests()
        self._add_pictures()
        ProcessCollector(registry=self.registry)
        self.registry.register(GpuCollector(ask_gpus))
        self.registry.register(EngineCacheCollector())

    def watch_pools(self, read: ReadPools) -> None:
        """Model pools are asked at each scrape from now on."""
        self.registry.register(PoolCollector(read))

    def render(self) -> tuple[bytes, str]:
        """The body of /metrics and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def on_request(self, record: RequestFacts) -> None:
        """A request was answered."""
        method = record.method if record.method in METHODS else "OTHER"
        self._requests.labels(record.route, method, str(record.status), record.model).inc()
        self._request_seconds.labels(record.route).observe(record.seconds)
        if record.code:
            self._errors.labels(record.code).inc()

    def on_batch(self, record: BatchFacts) -> None:
        """A batch came back from a device."""
        self._batch_rows.labels(record.model).observe(record.rows)
        for stage, seconds in record.stages.items():
            self._stage_seconds.labels(record.model, stage).observe(seconds)
        if record.attempts > 1:
            self._batch_retries.labels(record.model).inc(record.attempts - 1)
        if record.error_code:
            self._batch_errors.labels(record.model, record.error_code).inc()

    def on_picture(self, record: PictureFacts) -> None:
        """A picture was made."""
        self._pictures.labels(record.model).inc()
        self._picture_bytes.labels(record.model).inc(record.size_bytes)
        self._queue_seconds.labels(record.model).observe(record.queue_seconds)
        self._stage_seconds.labels(record.model, "encode").observe(record.encode_seconds)

    def on_queue(self, waiting: int, limit: int) -> None:
        """The queue grew or shrank."""
        self._waiting.set(waiting)
        self._limit.set(limit)

    def _add_requests(self) -> None:
        from prometheus_client import Counter, Histogram

        self._requests = Counter(
            "dgate_requests", "Answered requests.", ["route", "method", "status", "model"], registry=self.registry
        )
        self._request_seconds = Histogram(
            "dgate_request_seconds",
            "From the first byte to the end of the answer.",
            ["route"],
            buckets=REQUEST_SECONDS,
            registry=self.registry,
        )
        self._errors = Counter("dgate_errors", "Requests that ended in an error.", ["code"], registry=self.registry)

    def _add_pictures(self) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        self._pictures = Counter("dgate_pictures", "Pictures made.", ["model"], registry=self.registry)
        self._picture_bytes = Counter(
            "dgate_picture_bytes", "Bytes of the picture files.", ["model"], registry=self.registry
        )
        self._queue_seconds = Histogram(
            "dgate_queue_seconds",
            "A picture's time in the queue.",
            ["model"],
            buckets=QUEUE_SECONDS,
            registry=self.registry,
        )
        self._batch_rows = Histogram(
            "dgate_batch_rows", "Rows of a batch.", ["model"], buckets=BATCH_ROWS, registry=self.registry
        )
        self._stage_seconds = Histogram(
            "dgate_stage_seconds",
            "Of a batch by stage.",
            ["model", "stage"],
            buckets=STAGE_SECONDS,
            registry=self.registry,
        )
        self._batch_retries = Counter(
            "dgate_batch_retries", "Batches tried again, smaller.", ["model"], registry=self.registry
        )
        self._batch_errors = Counter(
            "dgate_batch_errors", "Batches given up.", ["model", "code"], registry=self.registry
        )
        self._waiting = Gauge("dgate_queue_waiting", "Pictures that wait.", registry=self.registry)
        self._limit = Gauge("dgate_queue_limit", "Pictures that may wait.", registry=self.registry)
