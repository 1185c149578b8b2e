"""`dgate plan`: what a run would be."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click

from flows.commands.settings import gather_settings, run_options


@click.command("plan")
@click.argument("manifest", nargs=-1, required=True)
@run_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout and nothing else.")
def command(manifest: tuple[str, ...], as_json: bool, **options: Any) -> int:
    """Checks every row of MANIFEST and shows rows, batch keys, shards, time and disk; writes nothing.

    Exit code 0 when all rows are good, 3 when some are bad.
    """
    from dgate_core.engine.begin import plan_only
    from dgate_core.manifest.summary import format_plan

    summary = plan_only(manifest, gather_settings(options))
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(summary), default=str))
    else:
        click.echo(format_plan(summary))
    return 3 if summary.total_problems else 0
