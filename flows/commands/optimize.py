"""`dgate optimize`: the flow `optimize_model` from the command line."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import click

if TYPE_CHECKING:
    from prefect import State


@click.command("optimize")
@click.argument("model")
@click.option("--profile", default="turbo", show_default=True, metavar="P", help="One that quantises.")
@click.option(
    "--calibration",
    default="suite:postcards-calibration",
    show_default=True,
    metavar="MANIFEST",
    help="Prompts to calibrate with; none of the suite's.",
)
@click.option("--suite", default="postcards-1k", show_default=True, metavar="S", help="Prompts of the gate.")
@click.option("--rules", default="int8", show_default=True, metavar="R", help="Preset of the gate, or a YAML file.")
@click.option("--out", default="runs/optimized", show_default=True, metavar="DIR", help="Folder of the runs.")
@click.option("--metrics", metavar="A,B", default="", help="Instead of the default set.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", help="Where it will serve."
)
@click.option("--race-pictures", default=16, show_default=True, help="Per round of the speed table; 0 leaves it out.")
@click.option(
    "--option", "options", multiple=True, metavar="KEY=VALUE", help="Of calibration, sensitivity and kernels."
)
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Setting of both runs.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout and nothing else.")
def command(model: str, options: tuple[str, ...], assignments: tuple[str, ...], as_json: bool, **given: Any) -> int:
    """Quantises MODEL for a profile, and lets the result serve when its pictures pass the gate.

    Exit code 0 it passed, 1 it failed or could not be decided, 2 the command is wrong.
    """
    from dgate_core.config import parse_assignments

    parameters = {
        **given,
        "model": model,
        "metrics": [name for name in given["metrics"].split(",") if name.strip()] or None,
        "options": parse_assignments(options),
        "settings": parse_assignments(assignments),
    }
    record = optimize(parameters)
    if as_json:
        click.echo(json.dumps(record))
    else:
        print_record(record)
    return 0 if record["passed"] else 1


def optimize(parameters: dict[str, Any]) -> dict[str, Any]:
    """Runs the flow.

    Returns:
        The verdict's record; that of a fail too.

    Raises:
        DgateError: what ended the flow before there was a verdict.
    """
    from flows.commands.api_session import open_session

    with open_session(), show_lines():
        from flows.optimize_model import optimize_model

        state = cast("State[Any]", optimize_model(**parameters, return_state=True))
        found = state.result(raise_on_failure=False)
    if isinstance(found, Exception):
        raise found
    return cast("dict[str, Any]", found)


@contextmanager
def show_lines() -> Iterator[None]:
    """Progress on stderr: what the flow's own tasks log."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            click.echo(record.getMessage(), err=True)

    logger, handler = logging.getLogger("tasks.optimize"), Lines(logging.INFO)
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def print_record(record: dict[str, Any]) -> None:
    """Verdict, speeds, and where everything is."""
    click.echo(f"verdict   {record['decision']}")
    for check in record["checks"]:
        effect = "" if check["effect"] is None else f"{check['effect']:+.4g}"
        shown = "reported" if check["reported_only"] else check["decision"]
        click.echo(f"{shown:9} {check['metric'] or check['rule']}  {effect}  {check['reason']}")
    speed = record["speed"]
    for name, rate in speed.get("pictures_per_second", {}).items():
        click.echo(f"speed     {rate:8.2f} pictures/s  {speed['ratios'][name]:5.2f} x {speed['reference']}  {name}")
    click.echo(f"artefact  {record['folder']}")
    click.echo(f"report    {record['page']}")
