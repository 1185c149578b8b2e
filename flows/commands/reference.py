"""`dgate reference`: the sets of pictures that corpus metrics compare with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from dgate_core.evaluation.reference_cards import ReferenceCard


@click.group("reference")
def command() -> None:
    """Reference sets: pictures that a run's pictures are compared with, and their statistics."""


@command.command("build")
@click.argument("reference")
@click.option(
    "--pictures", metavar="ADDRESS", help="Folder, tars or Parquet of a card that does not say where they are."
)
@click.option("--statistics", metavar="FILE", help="A pytorch-fid .npz in place of the pictures.")
@click.option("--extractor", "extractors", multiple=True, metavar="NAME", help="By default those of the card.")
@click.option("--device", default="cpu", show_default=True)
def build(
    reference: str, pictures: str | None, statistics: str | None, extractors: tuple[str, ...], device: str
) -> None:
    """Computes and keeps the statistics of REFERENCE: a name, a card's file, or an address of pictures."""
    from dgate_core.evaluation.features.extractor import open_extractor
    from dgate_core.evaluation.reference_places import Place
    from dgate_core.evaluation.references import DEFAULT_EXTRACTOR, measure_reference, open_reference

    opened = open_reference(reference, Place(pictures, statistics) if pictures or statistics else None)
    click.echo(f"{opened.card.versioned_name}  {opened.count:,} pictures  sha256 {opened.sha256}")
    known = (DEFAULT_EXTRACTOR,) if opened.source is None else tuple(opened.card.protocol.extractors)
    for name in extractors or known or (DEFAULT_EXTRACTOR,):
        found = measure_reference(opened, open_extractor(name, device), lambda text: click.echo(text, err=True))
        click.echo(f"{name}  {found.count:,} pictures  {found.resize}  weights {found.weights_sha256[:16]}")


@command.command("list")
def list_references() -> None:
    """Every card that comes with D-Gate, and what is built here."""
    from rich.console import Console
    from rich.table import Column, Table

    from dgate_core.evaluation.reference_cards import list_reference_cards
    from dgate_core.evaluation.references import list_built

    table = Table(Column("name", no_wrap=True), "pictures", "from", "built here", "what", box=None)
    for card in list_reference_cards():
        count = f"{card.count:,}" if card.count else "yours"
        built = ", ".join(path.stem.rpartition("-")[0] for path in list_built(card)) or "no"
        table.add_row(card.versioned_name, count, card.source.kind, built, card.title)
    Console().print(table)


@command.command("show")
@click.argument("name")
def show(name: str) -> None:
    """Source, licence, hash, protocol and instructions of a card, by name or file."""
    from dgate_core.evaluation.reference_cards import find_reference_card, list_reference_cards
    from dgate_core.evaluation.results import EvaluationError
    from dgate_core.registry import explain_unknown

    card = find_reference_card(name)
    if card is None:
        raise explain_unknown("reference set", name, [card.name for card in list_reference_cards()], EvaluationError)
    click.echo(describe_card(card))


def describe_card(card: ReferenceCard) -> str:
    """A card as plain text."""
    source, protocol = card.source, card.protocol
    drawn = f"drawn from suite:{source.suite} at {source.size}x{source.size}"
    origin = drawn if source.kind == "postcards" else f"{source.kind} {source.uri or '(give --pictures)'}"
    lines = [
        f"name         {card.versioned_name}",
        f"title        {card.title}",
        f"licence      {card.licence}",
        f"pictures     {card.count or 'not pinned'}",
        f"sha256       {card.sha256 or 'not pinned'}",
        f"source       {origin}",
        f"prepared     {protocol.pictures}",
        f"prompts      {protocol.prompts or 'any'}",
        *(f"extractor    {name}: {resize}" for name, resize in protocol.extractors.items()),
        *(f"generation   {name}: {value}" for name, value in protocol.generation.items()),
        *(f"window       {name}: {least} to {most}" for name, (least, most) in protocol.windows.items()),
    ]
    return "\n".join([*lines, "", card.instructions.rstrip()])
