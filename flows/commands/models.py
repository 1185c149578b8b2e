"""`dgate models`: what the catalogue holds."""

from __future__ import annotations

import click


@click.group("models")
def command() -> None:
    """The models that are known by name; any local diffusers folder works by its path."""


@command.command("list")
def list_models() -> None:
    """Name, where it comes from, default steps and guidance, licence."""
    from rich.console import Console
    from rich.table import Table

    from dgate_core.models.catalog import CATALOG

    table = Table("name", "source", "steps", "guidance", "licence", box=None)
    for spec in CATALOG.values():
        source = "ships with D-Gate" if spec.revision is None else f"{spec.source}@{spec.revision[:8]}"
        table.add_row(spec.name, source, str(spec.num_inference_steps), f"{spec.guidance_scale:g}", spec.licence)
    Console().print(table)
