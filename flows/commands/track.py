"""`dgate track`: what a run's trackers have of it, and sending them what they missed."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from dgate_core.storage import Storage

SYNC_SECONDS = 300.0


@click.group("track")
def command() -> None:
    """Records of a run in W&B, MLflow and other trackers; the run's own JSON lines are always there."""


@command.command("sync")
@click.argument("run")
@click.option("--tracker", "trackers", multiple=True, metavar="NAME", help="Instead of those in the run's config.")
@click.option("--timeout", "limit_seconds", default=SYNC_SECONDS, show_default=True, help="Seconds.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array on stdout and nothing else.")
def sync_run(run: str, trackers: tuple[str, ...], limit_seconds: float, as_json: bool) -> int:
    """Sends RUN's records to its trackers; what has arrived before is not sent again.

    Exit code 0 when every tracker has everything, 1 when something is missing.
    """
    from dgate_core.runs.store import RunStore
    from dgate_core.storage import open_storage
    from dgate_core.tracking.sending import start_sending

    store = RunStore(open_storage(run))
    names = choose_trackers(store.read_run(), trackers, store.uri)
    outcomes = start_sending(store.uri, names, limit_seconds).wait()
    if as_json:
        click.echo(json.dumps([asdict(outcome) for outcome in outcomes]))
    else:
        click.echo("\n".join(outcome.describe(store.uri) for outcome in outcomes))
    return 1 if any(outcome.missing for outcome in outcomes) else 0


@command.command("show")
@click.argument("run")
def show_run(run: str) -> None:
    """What RUN has recorded, and what each tracker has of it."""
    from dgate_core.storage import open_storage

    click.echo(describe_tracking(open_storage(run)))


def choose_trackers(run: dict[str, Any], given: tuple[str, ...], uri: str) -> tuple[str, ...]:
    """The trackers that were given, or those in the run's config.

    Raises:
        UsageError: there are none.
    """
    from dgate_core.errors import UsageError

    names = given or tuple(run.get("trackers") or ())
    if not names:
        raise UsageError(
            f"{uri} names no tracker", "trackers in the run's config", f"run: dgate track sync {uri} --tracker mlflow"
        )
    return names


def describe_tracking(storage: Storage) -> str:
    """A few lines of plain text."""
    from dgate_core.tracking.local_json import LocalLog
    from dgate_core.tracking.sending import read_outcomes

    log = LocalLog(storage)
    batches = [log.read_batch(number) for number in log.list_numbers()]
    lines = [
        f"{batch.number:05d}  {record.kind:10}  {len(record.metrics)} metrics, {len(record.tables)} tables"
        for batch in batches
        for record in batch.records
    ]
    lines += [outcome.describe(storage.uri) for outcome in read_outcomes(storage)]
    return "\n".join(lines) or "nothing is recorded yet"
