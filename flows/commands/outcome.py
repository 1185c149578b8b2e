"""How a run is told to the person, or the script, that started it."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from typing import Any

import click

from dgate_core.errors import DgateError, UsageError
from reports.summary import format_duration, format_rate

EXIT_CODES = {"completed": 0, "completed_with_errors": 3}


def find_exit_code(outcome: Mapping[str, Any]) -> int:
    """0 every row is ok, 3 some rows failed, 128 + n stopped by signal n, 1 anything else."""
    if outcome["state"] == "cancelled" and outcome["stopped_by"] in signal.Signals.__members__:
        return 128 + signal.Signals[outcome["stopped_by"]]
    return EXIT_CODES.get(outcome["state"], 1)


def print_outcome(outcome: Mapping[str, Any]) -> None:
    """The gallery's path, a line of figures, and what to do next where something is left."""
    if "gallery" in outcome:
        click.echo(f"gallery  {outcome['gallery']}")
    click.echo(f"figures  {describe_outcome(outcome)}")
    if failures := outcome["failures"]:
        click.echo(f"failed   {', '.join(f'{code} {count:,}' for code, count in failures.items())}")
    if outcome["state"] == "completed_with_errors":
        click.echo(f"next     {suggest_after_errors(outcome['run'], outcome['counts'])}")
    elif outcome["state"] == "cancelled":
        click.echo(f"stopped  by {outcome['stopped_by']}; give the same command again and it goes on from here")


def suggest_after_errors(run: str, counts: Mapping[str, int]) -> str:
    """`dgate retry` where that can help; rows that the manifest's checks refused fail again, however often tried."""
    if counts["error"] > counts.get("bad_rows", 0):
        return f"dgate retry {run}"
    return "mend the bad rows and give the manifest again with another --out; error_message in the results says how"


def describe_outcome(outcome: Mapping[str, Any]) -> str:
    """Pictures, failures, duplicates, speed and time by stage, in one line."""
    counts = outcome["counts"]
    parts = [f"{counts['ok']:,} pictures", f"{counts['error']:,} failed"]
    parts += [
        f"{counts[name]:,} {text}" for name, text in (("duplicate", "duplicates"), ("skipped", "to do")) if counts[name]
    ]
    if outcome["pictures_per_second"]:
        parts.append(f"{format_rate(outcome['pictures_per_second'])} pictures/s")
    spent = {name.replace("_", " "): seconds for name, seconds in outcome["seconds"].items() if seconds >= 0.001}
    stages = [f"{name} {format_duration(seconds)}" for name, seconds in spent.items()]
    return ", ".join(parts) + (f" ({', '.join(stages)})" if stages else "")


def print_json(outcome: Mapping[str, Any]) -> None:
    """One object and nothing else."""
    click.echo(json.dumps(outcome))


def print_json_error(error: DgateError | click.ClickException) -> None:
    """The same for a command that failed."""
    if isinstance(error, DgateError):
        details = {"code": error.code, "message": error.got, "expected": error.expected, "next": error.next_step}
    else:
        details = {"code": UsageError.code, "message": error.format_message(), "expected": "", "next": ""}
    print_json({"state": "failed", "error": details})
