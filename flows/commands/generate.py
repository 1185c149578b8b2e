"""`dgate generate`: the flow `generate_images` from the command line."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from dgate_core.errors import UsageError
from flows.commands.outcome import find_exit_code, print_json, print_outcome
from flows.commands.settings import gather_settings, run_options

if TYPE_CHECKING:
    from prefect import State

    from dgate_core.runs.settings import RunSettings


@click.command("generate")
@click.argument("manifest", nargs=-1, required=True)
@click.option("--out", required=True, metavar="DIR", help="The run's folder, a path or s3://.")
@run_options
@click.option("--execution", type=click.Choice(["local", "work_pool"]), default="local", help="Where the lanes run.")
@click.option("--score", metavar="A,B", help="Metrics to measure, from the pictures while they are in memory.")
@click.option("--reference", metavar="SET", help="Reference set for FID and the like.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout and nothing else.")
def command(manifest: tuple[str, ...], out: str, execution: str, as_json: bool, **options: Any) -> int:
    """Makes the pictures of MANIFEST (files, a folder, or suite:NAME); the same command again goes on where it stopped.

    Exit code 0 when every row is ok, 3 when some rows failed, 1 when the run failed, 2 when the command is wrong.
    """
    check_paths(manifest)
    settings = gather_settings(options)
    outcome = generate(manifest, out, execution, settings)
    (print_json if as_json else print_outcome)(outcome)
    if settings.score and not as_json and outcome["state"] != "cancelled":
        print_evaluation(outcome["run"])
    return find_exit_code(outcome)


def generate(manifest: Sequence[str], out: str, execution: str, settings: RunSettings) -> dict[str, Any]:
    """Runs the flow and shows its progress.

    Returns:
        The run's outcome.

    Raises:
        DgateError: what ended the flow.
        StoppedEarly: a signal came while no lane was at work.
    """
    from dgate_core.engine.outcome import read_outcome
    from dgate_core.runs.store import RunStore
    from dgate_core.storage import open_storage
    from flows.commands.api_session import open_session
    from flows.commands.early_stop import raise_on_signals
    from flows.commands.progress_bar import show_progress

    with raise_on_signals(out), show_progress(out), open_session():
        from flows.generate_images import generate_images

        flat, rest = split_settings(settings, inspect.signature(generate_images.fn).parameters)
        given = {"execution": execution, "settings": rest or None, **flat}
        state = cast("State[Any]", generate_images(list(manifest), out, **given, return_state=True))
        if state.is_failed():
            raise state.result(raise_on_failure=False)
    return read_outcome(RunStore(open_storage(out)))


def print_evaluation(run: str) -> None:
    """The numbers of the run that was just scored."""
    from dgate_core.evaluation.results import EVALUATION_PAGE, read_evaluation
    from dgate_core.storage import open_storage
    from flows.commands.evaluate import describe_evaluation

    storage = open_storage(run)
    click.echo(
        "\n".join([*describe_evaluation(read_evaluation(storage)), f"report   {storage.uri_of(EVALUATION_PAGE)}"])
    )


def split_settings(settings: RunSettings, parameters: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings that are parameters of the flow, and the others that were set, which it takes in one piece."""
    from dgate_core.runs.settings import RunSettings

    values, defaults = asdict(settings), asdict(RunSettings())
    flat = {name: value for name, value in values.items() if name in parameters}
    rest = {name: value for name, value in values.items() if name not in parameters and value != defaults[name]}
    return flat, rest


def check_paths(manifest: Sequence[str]) -> None:
    """A path that is not there is told at once, before anything starts.

    Raises:
        UsageError: names it.
    """
    from dgate_core.manifest.suites import SUITE_SCHEME

    for path in manifest:
        if "://" not in path and not path.startswith(SUITE_SCHEME) and not Path(path).expanduser().exists():
            raise UsageError(f"no manifest at {path}", "a file or a folder", "check the path")
