"""`dgate models`: what the catalogue holds, what is here and whole, and what production is."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

    from dgate_core.models.aliases import Alias
    from dgate_core.models.description import ModelDescription
    from dgate_core.models.imported import ImportedModel


@click.group("models")
def command() -> None:
    """The models that are known by name; any local diffusers folder works by its path."""


@command.command("list")
def list_models() -> None:
    """Aliases with what they stand for, imported models, then the catalogue with its sources, defaults and licences."""
    from rich.console import Console

    from dgate_core.models.aliases import read_aliases
    from dgate_core.models.imported import read_imported

    aliases, imported = read_aliases(), read_imported()
    if aliases:
        Console().print(_tabulate_aliases(list(aliases.values())))
        click.echo()
    if imported:
        Console().print(_tabulate_imported(list(imported.values())))
        click.echo()
    Console().print(_tabulate_catalog())


@command.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Everything, for programs.")
def show(name: str, as_json: bool) -> None:
    """All that is known of the model NAME: pipeline, defaults, licence, sizes, memory, hashes, what is missing."""
    from dgate_core.models.description import describe_model

    described = describe_model(name)
    if as_json:
        click.echo(json.dumps(asdict(described), indent=2, default=str))
        return
    for label, value in _list_facts(described):
        click.echo(f"{label:12} {value}")
    _print_parts(described)


@command.command("pull")
@click.argument("name")
@click.option("--from", "mirror", metavar="MIRROR", help="s3://bucket/models or a folder; DGATE_MODEL_MIRROR does too.")
@click.option("--workers", type=click.IntRange(1, 64), default=8, show_default=True, help="Pieces under way at once.")
@click.option("--offline", is_flag=True, help="Fetch nothing; say whether NAME is here and whole.")
def pull(name: str, mirror: str | None, workers: int, offline: bool) -> None:
    """Fetches NAME from the hub or a mirror (s3://bucket/models/NAME works too); a pull that was cut off goes on."""
    from dgate_core.models.mirror_fetch import PullOptions
    from dgate_core.models.pull import PullSource, pull_model

    path = pull_model(name, PullSource(mirror, offline, PullOptions(workers=workers)), click.echo)
    click.echo(f"{name} is here and whole: {path}")


@command.command("verify")
@click.argument("name")
def verify(name: str) -> int:
    """Reads every file of NAME: sha256 where it is known, headers, configs against weights; exit code 1 on damage."""
    from dgate_core.models.verify import verify_model

    found = verify_model(name, click.echo)
    for problem in found.problems:
        click.echo(f"damaged    {problem}")
    recorded = sum(file.state == "ok" for file in found.files)
    verdict = "whole" if found.is_whole else "DAMAGED"
    click.echo(
        f"{name} is {verdict}: {len(found.files)} files, {recorded} of them by their recorded sha256, {found.path}"
    )
    return 0 if found.is_whole else 1


@command.command("import")
@click.argument("path")
@click.option("--name", required=True, help="What --model will call it.")
@click.option("--to", "target", default="registry", show_default=True, help="registry, or a mirror: s3://bucket/models")
@click.option("--licence", default="unknown", help="As its card states it.")
@click.option("--steps", type=click.IntRange(1, 1000), help="Default steps; the pipeline's own when not given.")
@click.option("--guidance", type=click.FloatRange(0, 100), help="Default guidance; the pipeline's own when not given.")
@click.option("--replace", is_flag=True, help="In the place of what the name stands for.")
def import_model(path: str, name: str, target: str, **given: Any) -> None:
    """Gives the folder or single file PATH a name on this machine, or puts it into a mirror for all."""
    from dgate_core.models.importing import ImportOptions, import_to_mirror, import_to_registry

    options = ImportOptions(given["licence"], given["steps"], given["guidance"], given["replace"])
    if target == "registry":
        model = import_to_registry(path, name, options)
        click.echo(f"{name} is {model.source} ({model.pipeline_class}); use it as --model {name}")
        return
    manifest = import_to_mirror(path, name, target, options, click.echo)
    click.echo(
        f"{name} is in the mirror, {len(manifest.files)} files; anywhere: dgate models pull {name} --from {target}"
    )


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


def _list_facts(described: ModelDescription) -> list[tuple[str, Any]]:
    spec, checkpoint = described.spec, described.checkpoint
    revision = f"@{spec.revision}" if spec.revision else ""
    facts: list[tuple[str, Any]] = [("name", described.name), ("kind", described.kind)]
    facts.append(("source", f"{spec.source}{revision}"))
    if checkpoint is not None:
        facts.append(("pipeline", f"{checkpoint.pipeline_class} (family {checkpoint.family})"))
        facts.append(("size", f"{checkpoint.native_size} px, multiples of {spec.size_multiple}"))
    facts += [("steps", spec.num_inference_steps), ("guidance", f"{spec.guidance_scale:g}"), ("licence", spec.licence)]
    facts.append(("aliases", ", ".join(described.aliases) or "none"))
    if described.path is not None:
        facts.append(("lies in", described.path))
    if checkpoint is not None:
        total = sum(file.size for file in described.files)
        facts.append(("files", f"{len(described.files)}, {total / 1e6:.1f} MB"))
        facts.append(("weights", f"sha256 {checkpoint.weights_hash}"))
    return facts + ([("missing", described.problem)] if described.problem else [])


def _print_parts(described: ModelDescription) -> None:
    from rich.console import Console
    from rich.table import Table

    if described.checkpoint is None:
        return
    parts = Table("part", "parameters", "stored", "dtype", box=None)
    for name, part in described.parts.items():
        parts.add_row(
            name, f"{part.parameters / 1e6:.2f} M", f"{part.stored_bytes / 1e6:.1f} MB", ", ".join(part.dtypes)
        )
    memory = Table("precision", "weights", "and one picture", box=None)
    for precision, each in described.memory.items():
        memory.add_row(precision, f"{each.weights_bytes / 1e6:.1f} MB", f"about {each.activation_bytes / 1e6:.0f} MB")
    for table in (parts, memory):
        click.echo()
        Console().print(table)
    click.echo()
    for file in described.files:
        click.echo(f"{file.sha256}  {file.path} ({file.size} bytes)")


def _tabulate_imported(models: list[ImportedModel]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("imported", "source", "pipeline", "licence", box=None)
    for model in models:
        there = "" if Path(model.source).exists() else " (not there)"
        source, licence = escape(f"{model.source}{there}"), escape(model.manifest.licence)
        table.add_row(model.name, source, model.pipeline_class, licence)
    return table


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
    from rich.markup import escape
    from rich.table import Table

    from dgate_core.models.catalog import CATALOG

    table = Table("name", "source", "steps", "guidance", "licence", box=None)
    for spec in CATALOG.values():
        source = "ships with D-Gate" if spec.revision is None else f"{spec.source}@{spec.revision[:8]}"
        table.add_row(
            spec.name, source, str(spec.num_inference_steps), f"{spec.guidance_scale:g}", escape(spec.licence)
        )
    return table
