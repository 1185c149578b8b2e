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
REFERENCE = "postcards-smoke"
METRICS = ("attribute_accuracy", "caption_choice", "clip_score", "fd:starter-clip")
INCEPTION_METRICS = ("fid", "kid")


@click.command("demo")
@click.option("--out", metavar="DIR", help="The run's folder; by default runs/demo, or the next free runs/demo-2, ….")
@click.option("--model", metavar="M", help="Another model than starter-unet.")
@click.option("--lanes", metavar="N", help="Workers; by default one per GPU, or one on the CPU.")
def command(out: str | None, **options: Any) -> int:
    """Makes 64 postcards from the shipped manifest, measures and shows them; a demo that was cut off goes on."""
    from flows.commands.generate import generate, print_evaluation

    manifest = find_data_file(MANIFEST)
    out = out or find_demo_folder(Path("runs"))
    click.echo(f"64 postcards into {out}", err=True)
    scoring = {"score": ",".join(choose_metrics()), "reference": REFERENCE}
    outcome = generate([str(manifest)], out, "local", gather_settings({**options, **scoring}))
    if outcome["state"] != "cancelled":
        print_evaluation(outcome["run"])
    print_outcome(outcome)
    return find_exit_code(outcome)


def choose_metrics() -> tuple[str, ...]:
    """What is measured: with Inception when its weights are here, else without, and said."""
    from dgate_core.evaluation.weights.store import has_weights

    if has_weights("inception"):
        return (*METRICS, *INCEPTION_METRICS)
    click.echo("FID and KID are left out: the weights are not here (dgate weights fetch inception)", err=True)
    return METRICS


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
