"""`dgate models`: what the catalogue holds, and what production is."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

    from dgate_core.models.aliases import Alias


@click.group("models")
def command() -> None:
    """The models that are known by name; any local diffusers folder works by its path."""


@command.command("list")
def list_models() -> None:
    """Aliases with what they stand for, then the catalogue: source, default steps and guidance, licence."""
    from rich.console import Console

    from dgate_core.models.aliases import read_aliases

    aliases = read_aliases()
    if aliases:
        Console().print(_tabulate_aliases(list(aliases.values())))
        click.echo()
    Console().print(_tabulate_catalog())


@command.command("promote")
@click.argument("name")
@click.argument("model")
@click.option("--reason", default="by hand", show_default=True, help="Kept in the history.")
def promote(name: str, model: str, reason: str) -> None:
    """Lets NAME (such as production) stand for MODEL; `--model NAME` then takes it."""
    from dgate_core.models.promotion import promote_checkpoint

    click.echo(_describe_alias(promote_checkpoint(name, model, reason)))


@command.command("rollback")
@click.argument("name")
def rollback(name: str) -> None:
    """Lets NAME stand for what it stood for before."""
    from dgate_core.models.aliases import roll_back

    click.echo(_describe_alias(roll_back(name)))


def _describe_alias(alias: Alias) -> str:
    current, former = alias.current, alias.history[-2:-1]
    before = f", before it {former[0].model} {former[0].weights_sha256[:12]}" if former else ""
    return f"{alias.name} is {current.model} {current.weights_sha256[:12]}{before}"


def _tabulate_aliases(aliases: list[Alias]) -> Table:
    from rich.table import Table

    table = Table("alias", "model", "weights", "since", "why", "before it", box=None)
    for alias in aliases:
        current, former = alias.current, alias.history[-2:-1]
        since = datetime.fromtimestamp(current.promoted_at).astimezone().strftime("%Y-%m-%d %H:%M")
        before = former[0].model if former else ""
        table.add_row(alias.name, current.model, current.weights_sha256[:12], since, current.reason, before)
    return table


def _tabulate_catalog() -> Table:
    from rich.table import Table

    from dgate_core.models.catalog import CATALOG

    table = Table("name", "source", "steps", "guidance", "licence", box=None)
    for spec in CATALOG.values():
        source = "ships with D-Gate" if spec.revision is None else f"{spec.source}@{spec.revision[:8]}"
        table.add_row(spec.name, source, str(spec.num_inference_steps), f"{spec.guidance_scale:g}", spec.licence)
    return table
