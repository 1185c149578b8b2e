"""`dgate bench`: measurements, each a ratio taken in one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


@click.group("bench")
def command() -> None:
    """Measures against plain diffusers, and against the machine."""


@command.command("pipeline")
@click.option("--model", default="starter-unet", show_default=True, help="Catalogue name or folder.")
@click.option("--pictures", default=32, show_default=True, help="Per contestant and round.")
@click.option("--rounds", default=5, show_default=True, help="Ratios are medians over the rounds.")
@click.option("--steps", type=int, help="Denoising steps; the model's default when not given.")
@click.option("--out", metavar="FILE", help="Write the figures here as JSON.")
def bench_pipeline(model: str, pictures: int, rounds: int, steps: int | None, out: str | None) -> None:
    """Steady pictures per second of a lane against the plain loop and the best hand-batched loop of diffusers."""
    from dgate_core.bench.pipeline import BenchOptions, measure_pipeline

    options = BenchOptions(model=model, pictures=pictures, rounds=rounds, num_inference_steps=steps)
    found = measure_pipeline(options, click.echo)
    print_ratios(found)
    if out is not None:
        Path(out).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


@command.command("planning")
@click.option("--rows", default=1_000_000, show_default=True, help="Rows of the manifest that is made.")
@click.option("--format", "kind", type=click.Choice(["jsonl", "parquet"]), default="jsonl", show_default=True)
def bench_planning(rows: int, kind: str) -> None:
    """Rows per second and peak memory of planning a large manifest."""
    from dgate_core.bench.planning import main

    main(["--rows", str(rows), "--format", kind])


def print_ratios(found: dict[str, Any]) -> None:
    """Rates, then each ratio beside its bar."""
    for name, rate in found["pictures_per_second"].items():
        click.echo(f"{name:32} {rate:8.2f} pictures/s")
    for name, ratio in found["ratios"].items():
        click.echo(f"{name:40} {ratio['median']:5.2f}x   (bar {ratio['bar']}x)")
