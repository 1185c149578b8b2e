"""`dgate retry`: rows of a run again, by their status."""

from __future__ import annotations

from typing import Any

import click

from flows.commands.outcome import find_exit_code, print_json, print_outcome


@click.command("retry")
@click.argument("run")
@click.option(
    "--where",
    "statuses",
    multiple=True,
    default=("error",),
    metavar="STATUS",
    show_default="error",
    help="error, skipped or ok; may be repeated.",
)
@click.option("--lanes", metavar="N", help="Workers; by default one per GPU, or one on the CPU.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="device, batch_size, rows_per_shard, ….")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout and nothing else.")
def command(run: str, statuses: tuple[str, ...], as_json: bool, **options: Any) -> int:
    """Makes the failed rows of RUN again and nothing else; rows that are wrong in the manifest itself stay errors.

    Exit code as for `dgate generate`: 0 when every row is ok now, 3 when some are not, 1 and 2 for what went wrong.
    """
    outcome = retry(run, statuses, options)
    (print_json if as_json else print_outcome)(outcome)
    return find_exit_code(outcome)


def retry(run: str, statuses: tuple[str, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Runs lanes on this machine for the rows that have one of the statuses.

    Returns:
        The run's outcome.

    Raises:
        DgateError: what was wrong, or ended the lanes.
        StoppedEarly: a signal came while no lane was at work.
    """
    from dgate_core.engine.local import hold_run
    from dgate_core.engine.outcome import read_outcome
    from dgate_core.engine.retry import check_options, check_statuses, retry_rows
    from dgate_core.engine.stopping import StopSignal
    from dgate_core.runs.store import RunStore
    from dgate_core.storage import open_storage
    from flows.commands.early_stop import raise_on_signals
    from flows.commands.progress_bar import show_progress
    from flows.commands.settings import gather_settings
    from reports.gallery import write_gallery

    settings = check_options(gather_settings(options))
    check_statuses(statuses)
    store = RunStore(open_storage(run))
    store.read_run()
    with raise_on_signals(run), hold_run(store, settings.lease_seconds), show_progress(run):
        retry_rows(store, statuses, settings, StopSignal(), lambda _reports: None)
        write_gallery(store.storage)
    return read_outcome(store)
