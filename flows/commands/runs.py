"""`dgate runs`: show one run, list those in a folder, tell Prometheus of them."""

from __future__ import annotations

import json
import signal
from typing import Any

import click

from flows.commands.outcome import suggest_after_errors


@click.group("runs")
def command() -> None:
    """Runs as their folders tell of them."""


@command.command("show")
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="run.json on stdout.")
def show_run(run: str, as_json: bool) -> None:
    """State, counts, figures and the commands that go on from here."""
    from dgate_core.runs.store import RunStore
    from dgate_core.storage import open_storage

    record = RunStore(open_storage(run)).read_run()
    click.echo(json.dumps(record) if as_json else describe_run(run, record))


@command.command("list")
@click.argument("folder", default="runs")
def list_runs(folder: str) -> None:
    """Every run directly below FOLDER, local or s3://."""
    from rich.console import Console
    from rich.table import Table

    from dgate_core.runs.folder import find_runs
    from dgate_core.storage import open_storage

    table = Table("run", "state", "ok", "errors", "pictures/s", "model", box=None)
    for name, record in find_runs(open_storage(folder)):
        counts = record.get("counts", {})
        rate = f"{record['pictures_per_second']:.2f}" if record.get("pictures_per_second") else ""
        models = ", ".join(record.get("models", {}))
        table.add_row(name, record["state"], str(counts.get("ok", "")), str(counts.get("error", "")), rate, models)
    Console().print(table)


@command.command("metrics")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind.")
@click.option("--port", default=9109, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--once", is_flag=True, help="Print the metrics and end, for node_exporter's textfile collector.")
def show_metrics(runs: tuple[str, ...], host: str, port: int, once: bool) -> None:
    """Rows, rate, time left, lanes and gate verdict of runs, for Prometheus; folders or s3://, begun or not."""
    from dgate_core.telemetry.run_metrics import render_runs, serve_runs

    if once:
        click.echo(render_runs(runs).decode(), nl=False)
        return
    # A shell starts what goes into the background with Ctrl-C switched off.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    port, thread, server = serve_runs(runs, host, port)
    click.echo(f"metrics of {len(runs)} runs at http://{host}:{port}/metrics. Ctrl-C stops it.")
    try:
        thread.join()
    finally:
        server.shutdown()


def describe_run(uri: str, record: dict[str, Any]) -> str:
    """A few lines of plain text."""
    counts, model = record["counts"], ", ".join(record["models"])
    lines = [
        f"run          {uri}",
        f"state        {record['state']}",
        f"fingerprint  {record['fingerprint']}",
        f"manifest     {', '.join(record['manifest']['files'])} ({record['manifest']['rows']:,} rows)",
        f"model        {model}, {record['spec']['precision']}, determinism {record['spec']['determinism']}",
        "images       "
        + ", ".join(f"{counts[name]:,} {name}" for name in ("ok", "error", "skipped", "duplicate") if name in counts),
    ]
    if record.get("pictures_per_second"):
        lines.append(f"speed        {record['pictures_per_second']:.2f} pictures/s")
    if record.get("failures"):
        lines.append("failed       " + ", ".join(f"{code} {count:,}" for code, count in record["failures"].items()))
    if record.get("error"):
        lines.append(f"error        {record['error']}")
    if record["state"] == "completed_with_errors":
        lines.append(f"next         {suggest_after_errors(uri, counts)}")
    elif record["state"] != "completed":
        lines.append("next         give the command that made the run again: it goes on from here")
    return "\n".join(lines)
