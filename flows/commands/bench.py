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


@command.command("gate")
@click.option("--rows", default=500, show_default=True, help="Of the suite, for each run.")
@click.option("--model", default="starter-unet", show_default=True, help="Catalogue name or folder.")
@click.option("--half-trained", metavar="M", default="", help="A checkpoint of the same recipe, trained half as long.")
@click.option("--reruns", default=0, show_default=True, help="Runs with other seeds, to count false alarms.")
@click.option("--workers", default=1, show_default=True, help="Processes for those runs.")
@click.option("--rules", default="regression", show_default=True, help="Preset or YAML file.")
@click.option(
    "--folder", default="runs/bench-gate", show_default=True, help="Runs stay here; the same command goes on."
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, mps or auto.")
@click.option("--out", metavar="FILE", help="Write the table here as JSON.")
def bench_gate(out: str | None, **options: Any) -> int:
    """Plants regressions into real runs and prints what the gate says; exit code 1 when it says anything wrong."""
    from dgate_core.bench.gate import GateBenchOptions, measure_gate

    found = measure_gate(GateBenchOptions(**options), click.echo)
    click.echo(f"{found['false_alarms']} false alarms in {found['reruns']} runs with other seeds")
    if out is not None:
        Path(out).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0 if found["as_wanted"] else 1


@command.command("evaluation")
@click.option("--pictures", default=1000, show_default=True, help="Of each of the two sets.")
@click.option("--size", default=512, show_default=True, help="Pixels of a side.")
@click.option("--rounds", default=1, show_default=True, help="The figures are medians over the rounds.")
@click.option("--threads", default=2, show_default=True, help="Of every contestant's arithmetic.")
@click.option("--out", metavar="FILE", default="reports/benchmarks/evaluation.json", show_default=True)
def bench_evaluation(out: str, **options: int) -> None:
    """Pictures per second of FID, CLIP score and LPIPS against pytorch-fid, torch-fidelity and torchmetrics."""
    from dgate_core.bench.evaluation import EvaluationBenchOptions, list_stages, measure_evaluation

    found = measure_evaluation(EvaluationBenchOptions(**options), click.echo)
    print_ratios(found)
    for line in [*list_stages(found), *(f"{name}: {value:+.2e}" for name, value in found["differences"].items())]:
        click.echo(line)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def print_ratios(found: dict[str, Any]) -> None:
    """Rates, then each ratio beside its bar."""
    for name, rate in found["pictures_per_second"].items():
        click.echo(f"{name:32} {rate:8.2f} pictures/s")
    for name, ratio in found["ratios"].items():
        click.echo(f"{name:40} {ratio['median']:5.2f}x   (bar {ratio['bar']}x)")
