"""`dgate demo`: 64 postcards with the model that ships."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import click

from dgate_core.data_files import find_data_file
from flows.commands.outcome import find_exit_code, print_outcome
from flows.commands.settings import gather_settings

MANIFEST = "manifests/demo.jsonl"


@click.command("demo")
@click.option("--out", metavar="DIR", help="The run's folder; by default runs/demo, or the next free runs/demo-2, ….")
@click.option("--model", metavar="M", help="Another model than starter-unet.")
@click.option("--lanes", metavar="N", help="Workers; by default one per GPU, or one on the CPU.")
def command(out: str | None, **options: Any) -> int:
    """Makes 64 postcards from the shipped manifest, and a gallery; a demo that was cut off goes on."""
    from flows.commands.generate import generate

    manifest = find_data_file(MANIFEST)
    out = out or find_demo_folder(Path("runs"))
    click.echo(f"64 postcards into {out}", err=True)
    outcome = generate([str(manifest)], out, "local", gather_settings(options))
    print_outcome(outcome)
    return find_exit_code(outcome)


def find_demo_folder(parent: Path) -> str:
    """The first of demo, demo-2, demo-3, … that does not hold a finished run."""
    from dgate_core.runs.store import RunStore
    from dgate_core.storage import open_storage

    for number in count(1):
        folder = str(parent / ("demo" if number == 1 else f"demo-{number}"))
        store = RunStore(open_storage(folder))
        if not store.exists() or not store.read_run()["state"].startswith("completed"):
            return folder
    raise AssertionError("there is always a next number")
