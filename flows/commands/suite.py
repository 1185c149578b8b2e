"""`dgate suite`: the prompts that models are judged and calibrated by."""

from __future__ import annotations

import shutil
from pathlib import Path

import click


@click.group("suite")
def command() -> None:
    """Prompt suites: versioned, hashed manifests, generated from as suite:NAME."""


@command.command("list")
def list_suites() -> None:
    """Every suite that comes with D-Gate."""
    from rich.console import Console
    from rich.table import Column, Table

    from dgate_core.manifest.suites import list_suites as read_suites

    table = Table(Column("suite", no_wrap=True), "prompts", "for", "sha256", "what", box=None)
    for card in read_suites():
        table.add_row(f"suite:{card.versioned_name}", str(card.count), card.purpose, card.sha256[:12], card.title)
    Console().print(table)


@command.command("show")
@click.argument("name")
@click.option("--prompts", default=5, show_default=True, help="How many of the first prompts.")
def show(name: str, prompts: int) -> None:
    """A suite's card and its first prompts."""
    from dgate_core.manifest.overlap import read_prompts
    from dgate_core.manifest.suites import SUITE_SCHEME, find_suite

    card = find_suite(name)
    click.echo(f"suite:{card.versioned_name}  {card.count} prompts for {card.purpose}, {card.licence}\n{card.title}")
    click.echo(f"sha256 {card.sha256}")
    for portion in card.portions:
        click.echo(f"  {portion.count:4d}  pairs {portion.split}, phrasing {portion.phrasing}, skill {portion.skill}")
    for prompt in list(read_prompts([SUITE_SCHEME + card.name]))[:prompts]:
        click.echo(f"  {prompt}")


@command.command("export")
@click.argument("name")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A .jsonl file.")
def export(name: str, out: Path) -> None:
    """Copies a suite's manifest, to be read or changed."""
    from dgate_core.manifest.suites import locate_suite

    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(locate_suite(name), out)


@command.command("convert")
@click.argument("table", type=click.Path(path_type=Path))
@click.option("--reference", metavar="NAME", help="Every row gets the settings of this reference set's protocol.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A .jsonl file.")
def convert(table: Path, reference: str | None, out: Path) -> None:
    """Makes a manifest of a tab-separated TABLE with a column `caption`, such as MLPerf's captions_source.tsv."""
    from dgate_core.errors import UsageError
    from dgate_core.evaluation.reference_cards import find_reference_card
    from dgate_core.manifest.captions import captions_to_manifest
    from dgate_core.manifest.columns import KNOWN_COLUMNS

    card = find_reference_card(reference) if reference else None
    if reference and card is None:
        raise UsageError(f"unknown reference set {reference!r}", "a name of `dgate reference list`", "")
    generation = card.protocol.generation if card else {}
    settings = {name: value for name, value in generation.items() if name in KNOWN_COLUMNS and name != "model"}
    click.echo(f"{captions_to_manifest(table, out, settings):,} prompts into {out}")


@command.command("check")
@click.argument("calibration")
@click.argument("evaluation", nargs=-1, required=True)
def check(calibration: str, evaluation: tuple[str, ...]) -> None:
    """Makes sure that no prompt of CALIBRATION is in EVALUATION (manifests or suite:NAME); exit code 1 if one is."""
    from dgate_core.manifest.overlap import check_no_overlap, read_prompts

    check_no_overlap(read_prompts([calibration]), read_prompts(evaluation))
    click.echo("no prompt in both")
