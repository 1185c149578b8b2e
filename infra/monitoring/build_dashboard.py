"""Builds dashboard.json with grafana-foundation-sdk: `python infra/monitoring/build_dashboard.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableRefresh

FILE = Path(__file__).with_name("dashboard.json")
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH, HEIGHT = 8, 8
"""Of a panel, in a grid of 24 columns: three in a row."""
IMAGES = 'route=~"/v1/images/.*"'
RUN = 'run=~"$run"'


@dataclass(frozen=True)
class Curve:
    """One query of a panel."""

    query: str
    legend: str


@dataclass(frozen=True)
class Plot:
    """One panel."""

    title: str
    unit: str
    """As Grafana calls it."""
    curves: Sequence[Curve]


def rate(metric: str, by: str) -> str:
    """Per second, summed."""
    return f"sum by ({by}) (rate({metric}[$__rate_interval]))"


def quantile(share: float, metric: str, by: str = "", where: str = "") -> str:
    """Of a histogram."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket{{{where}}}', labels)})"


SERVER = (
    Plot("Pictures per second", "short", [Curve(rate("dgate_pictures_total", "model"), "{{model}}")]),
    Plot(
        "Latency of a request",
        "s",
        [
            Curve(quantile(share, "dgate_request_seconds", where=IMAGES), name)
            for share, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
        ],
    ),
    Plot(
        "Requests per second", "reqps", [Curve(rate("dgate_requests_total", "route, status"), "{{route}} {{status}}")]
    ),
    Plot(
        "Queue",
        "short",
        [Curve("dgate_queue_waiting", "waiting {{instance}}"), Curve("dgate_queue_limit", "limit {{instance}}")],
    ),
    Plot(
        "Time in the queue",
        "s",
        [Curve(quantile(0.5, "dgate_queue_seconds"), "p50"), Curve(quantile(0.95, "dgate_queue_seconds"), "p95")],
    ),
    Plot(
        "Batch size",
        "short",
        [
            Curve(
                f"{rate('dgate_batch_rows_sum', 'model')} / {rate('dgate_batch_rows_count', 'model')}", "mean {{model}}"
            ),
            Curve(quantile(0.95, "dgate_batch_rows"), "p95"),
        ],
    ),
    Plot("Stages, p95", "s", [Curve(quantile(0.95, "dgate_stage_seconds", "stage"), "{{stage}}")]),
    Plot(
        "Errors per second",
        "short",
        [
            Curve(rate("dgate_errors_total", "code"), "{{code}}"),
            Curve(rate("dgate_batch_errors_total", "code"), "batch {{code}}"),
            Curve(rate("dgate_batch_retries_total", "model"), "batch tried again"),
        ],
    ),
    Plot(
        "Models",
        "short",
        [
            Curve(rate("dgate_model_swaps_total", "device"), "swaps {{device}}"),
            Curve(rate("dgate_model_evictions_total", "device"), "evictions {{device}}"),
            Curve(rate("dgate_model_failures_total", "device"), "failures {{device}}"),
            Curve(rate("dgate_engine_cache_lookups_total", "result"), "engine cache {{result}}"),
        ],
    ),
)
DEVICES = (
    Plot(
        "VRAM",
        "bytes",
        [
            Curve("dgate_gpu_memory_used_bytes", "used {{instance}} {{gpu}}"),
            Curve("dgate_gpu_memory_total_bytes", "total {{instance}} {{gpu}}"),
        ],
    ),
    Plot("GPU utilisation", "percentunit", [Curve("dgate_gpu_utilisation_ratio", "{{instance}} {{gpu}}")]),
    Plot(
        "Memory of models",
        "bytes",
        [Curve("dgate_model_bytes", "{{model}} {{state}}"), Curve("dgate_model_budget_bytes", "budget {{device}}")],
    ),
)
RUNS = (
    Plot("Progress", "percentunit", [Curve(f"dgate_run_rows_done{{{RUN}}} / dgate_run_rows{{{RUN}}}", "{{run}}")]),
    Plot("Rows per second", "short", [Curve(f"dgate_run_rows_per_second{{{RUN}}}", "{{run}}")]),
    Plot("Time left", "s", [Curve(f"dgate_run_seconds_left{{{RUN}}}", "{{run}}")]),
    Plot("Rows failed", "short", [Curve(f"dgate_run_rows_failed{{{RUN}}}", "{{run}}")]),
    Plot(
        "Since a lane was heard of",
        "s",
        [Curve(f"time() - dgate_lane_heartbeat_timestamp_seconds{{{RUN}}}", "{{run}} {{lane}}")],
    ),
    Plot("Batch size of lanes", "short", [Curve(f"dgate_lane_batch_rows{{{RUN}}}", "{{run}} {{lane}}")]),
    Plot("Seconds of lanes by stage", "s", [Curve(f"sum by (stage) (dgate_lane_stage_seconds{{{RUN}}})", "{{stage}}")]),
    Plot("State", "short", [Curve(f"dgate_run_state{{{RUN}}}", "{{run}} {{state}}")]),
    Plot("Gate", "short", [Curve(f"dgate_gate_checks{{{RUN}}}", "{{run}} {{decision}}")]),
)


def draw(plot: Plot) -> timeseries.Panel:
    """A panel of curves."""
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
    panel = timeseries.Panel().title(plot.title).unit(plot.unit).datasource(SOURCE).min(0)
    panel.span(WIDTH).height(HEIGHT).legend(legend.show_legend(True))
    for number, curve in enumerate(plot.curves):
        query = prometheus.Dataquery().expr(curve.query).legend_format(curve.legend)
        panel.with_target(query.ref_id(chr(ord("A") + number)))
    return panel


def build() -> str:
    """The dashboard as JSON text."""
    board = dashboard.Dashboard("D-Gate").uid("dgate").tags(["dgate"]).refresh("30s").time("now-1h", "now")
    board.editable().timezone("browser")
    board.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    runs = dashboard.QueryVariable("run").label("Run").datasource(SOURCE).query("label_values(dgate_run_rows, run)")
    board.with_variable(runs.multi(True).include_all(True).refresh(VariableRefresh.ON_TIME_RANGE_CHANGED))
    for title, plots in (("Server", SERVER), ("Devices", DEVICES), ("Bulk runs", RUNS)):
        board.with_row(dashboard.Row(title))
        for plot in plots:
            board.with_panel(draw(plot))
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build()) + "\n"


if __name__ == "__main__":
    FILE.write_text(build(), encoding="utf-8")
