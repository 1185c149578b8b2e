"""Metrics of bulk runs, from their folders.

Lanes push nothing and are not scraped: they already write what they did into the run's folder, which outlives them. So
one exporter for any number of runs loses nothing of a lane that lived for three seconds, needs no port in a lane and no
gateway that would keep dead values for ever, and may itself be killed and started again at any time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from dgate_core.errors import DgateError, UsageError
from dgate_core.runs.store import RunStore
from dgate_core.storage import open_storage
from dgate_core.telemetry.run_reading import RunReader, RunReading

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import GaugeMetricFamily, Metric

logger = logging.getLogger(__name__)

READ_EVERY_SECONDS: Final = 2.0
"""More frequent scrapes get the same figures again."""
_FAMILIES: Final[dict[str, tuple[str, list[str]]]] = {
    "dgate_run_readable": ("1 when the run's folder could be read.", ["run"]),
    "dgate_run_state": ("1 for the state of the run.", ["run", "state"]),
    "dgate_run_rows": ("Rows to make in the latest attempt.", ["run"]),
    "dgate_run_rows_done": ("Rows made or failed.", ["run"]),
    "dgate_run_rows_failed": ("Rows failed.", ["run"]),
    "dgate_run_rows_per_second": ("Rate of the last two minutes.", ["run"]),
    "dgate_run_seconds_left": ("At the present rate.", ["run"]),
    "dgate_lane_heartbeat_timestamp_seconds": ("When the lane last told of itself.", ["run", "lane"]),
    "dgate_lane_state": ("1 for the state of the lane.", ["run", "lane", "state"]),
    "dgate_lane_rows": ("Rows of the lane since its process began.", ["run", "lane", "status"]),
    "dgate_lane_shards_done": ("Shards of the lane since its process began.", ["run", "lane"]),
    "dgate_lane_batch_rows": ("Rows of the lane's last batch.", ["run", "lane"]),
    "dgate_lane_stage_seconds": ("Seconds of the lane by stage.", ["run", "lane", "stage"]),
    "dgate_gate_verdict": ("1 for the gate's decision about the run.", ["run", "decision"]),
    "dgate_gate_checks": ("Checks of the gate by decision.", ["run", "decision"]),
}


class RunCollector:
    """Reads the runs when it is asked; a run that cannot be read is told as such and spoils no other.

    Args:
        runs: Addresses of their folders.
        read_every_seconds: See `READ_EVERY_SECONDS`.
    """

    def __init__(self, runs: Sequence[str], read_every_seconds: float = READ_EVERY_SECONDS) -> None:
        self._readers = {run: RunReader(RunStore(open_storage(run))) for run in runs}
        self._read_every_seconds = read_every_seconds
        self._lock = threading.Lock()
        self._readings: dict[str, RunReading | None] = {}
        self._read_at = float("-inf")

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        from prometheus_client.core import GaugeMetricFamily

        families = {name: GaugeMetricFamily(name, text, labels=labels) for name, (text, labels) in _FAMILIES.items()}
        for run, reading in self._read().items():
            families["dgate_run_readable"].add_metric([run], reading is not None)
            if reading is not None:
                add_run(families, run, reading)
                add_lanes(families, run, reading)
                add_verdict(families, run, reading)
        yield from families.values()

    def _read(self) -> dict[str, RunReading | None]:
        with self._lock:
            if time.monotonic() - self._read_at >= self._read_every_seconds:
                self._readings = {run: self._try_read(run) for run in self._readers}
                self._read_at = time.monotonic()
            return self._readings

    def _try_read(self, run: str) -> RunReading | None:
        try:
            return self._readers[run].read()
        except DgateError as error:
            logger.warning("%s cannot be read: %s", run, error)
            return None


def add_run(families: dict[str, GaugeMetricFamily], run: str, reading: RunReading) -> None:
    """State, rows, rate."""
    families["dgate_run_state"].add_metric([run, reading.state], 1)
    families["dgate_run_rows"].add_metric([run], reading.rows)
    families["dgate_run_rows_done"].add_metric([run], reading.counted.done)
    families["dgate_run_rows_failed"].add_metric([run], reading.counted.failed)
    if reading.rate is not None:
        families["dgate_run_rows_per_second"].add_metric([run], reading.rate)
    if reading.seconds_left is not None:
        families["dgate_run_seconds_left"].add_metric([run], reading.seconds_left)


def add_lanes(families: dict[str, GaugeMetricFamily], run: str, reading: RunReading) -> None:
    """What each lane told last."""
    for lane in reading.lanes:
        key = [run, str(lane["lane"])]
        families["dgate_lane_heartbeat_timestamp_seconds"].add_metric(key, lane["updated_at"])
        families["dgate_lane_state"].add_metric([*key, lane["state"]], 1)
        families["dgate_lane_rows"].add_metric([*key, "ok"], lane["ok"])
        families["dgate_lane_rows"].add_metric([*key, "failed"], lane["failed"])
        families["dgate_lane_shards_done"].add_metric(key, lane["shards_done"])
        families["dgate_lane_batch_rows"].add_metric(key, lane["batch_size"])
        for stage, seconds in lane["stages"].items():
            families["dgate_lane_stage_seconds"].add_metric([*key, stage], seconds)


def add_verdict(families: dict[str, GaugeMetricFamily], run: str, reading: RunReading) -> None:
    """The gate's decision, and how many checks came out how."""
    if reading.verdict is None:
        return
    families["dgate_gate_verdict"].add_metric([run, reading.verdict["decision"]], 1)
    decisions = [check["decision"] for check in reading.verdict["checks"]]
    for decision in ("pass", "fail", "undecided"):
        families["dgate_gate_checks"].add_metric([run, decision], decisions.count(decision))


def make_registry(runs: Sequence[str], read_every_seconds: float = READ_EVERY_SECONDS) -> CollectorRegistry:
    """A registry that shows the runs and nothing else."""
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry()
    collector: Any = RunCollector(runs, read_every_seconds)
    registry.register(collector)
    return registry


def render_runs(runs: Sequence[str]) -> bytes:
    """One look as text, for node_exporter's textfile collector."""
    from prometheus_client import generate_latest

    return generate_latest(make_registry(runs))


def serve_runs(runs: Sequence[str], host: str, port: int) -> tuple[int, threading.Thread, Any]:
    """Starts an HTTP server that answers scrapes from a thread of its own.

    Returns:
        Its port, its thread, and the server, to `shutdown()`.

    Raises:
        UsageError: the port cannot be had.
    """
    from prometheus_client import start_http_server

    try:
        server, thread = start_http_server(port, host, make_registry(runs))
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror}", "a free port of this machine", "give another --port"
        ) from error
    return server.server_port, thread, server
