"""`dgate bench`: measurements, each a ratio taken in one run."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
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
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any setting, for every run.")
@click.option("--out", metavar="FILE", help="Write the table here as JSON.")
def bench_gate(out: str | None, assignments: tuple[str, ...], **options: Any) -> int:
    """Plants regressions into real runs and prints what the gate says; exit code 1 when it says anything wrong."""
    from dgate_core.bench.gate import GateBenchOptions, measure_gate
    from dgate_core.config import parse_assignments

    settings = parse_assignments(assignments)
    found = measure_gate(GateBenchOptions(**options, settings=settings), click.echo)
    click.echo(f"{found['false_alarms']} false alarms in {found['reruns']} runs with other seeds")
    for name in found["not_tried"]:
        click.echo(f"not tried: {name}")
    if out is not None:
        Path(out).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0 if found["as_wanted"] else 1


@command.command("evaluation")
@click.option("--pictures", default=1000, show_default=True, help="Of each of the two sets.")
@click.option("--size", default=512, show_default=True, help="Pixels of a side.")
@click.option("--rounds", default=1, show_default=True, help="The figures are medians over the rounds.")
@click.option("--threads", default=2, show_default=True, help="Of every contestant's arithmetic.")
@click.option("--out", metavar="FILE", help="Write the figures here as JSON.")
def bench_evaluation(out: str | None, **options: int) -> None:
    """Pictures per second of FID, CLIP score and LPIPS against pytorch-fid, torch-fidelity and torchmetrics."""
    from dgate_core.bench.evaluation import EvaluationBenchOptions, list_stages, measure_evaluation

    found = measure_evaluation(EvaluationBenchOptions(**options), click.echo)
    print_ratios(found)
    for line in [*list_stages(found), *(f"{name}: {value:+.2e}" for name, value in found["differences"].items())]:
        click.echo(line)
    if out is not None:
        Path(out).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


@command.command("quantised")
@click.option("--model", default="starter-unet", show_default=True, help="Catalogue name or folder.")
@click.option("--pictures", default=16, show_default=True, help="Per contestant and round, in one batch.")
@click.option("--rounds", default=3, show_default=True, help="Ratios are medians over the rounds.")
@click.option("--steps", "num_inference_steps", type=int, help="Denoising steps; the model's default when not given.")
@click.option("--out", metavar="FILE", help="Write the figures here as JSON.")
def bench_quantised(out: str | None, **options: Any) -> None:
    """INT8 on this CPU beside eager, compiled and ONNX Runtime in 32 and 16 bit; needs what `dgate optimize` made."""
    from dgate_core.bench.quantised import CPU_ENTRIES, RaceOptions, list_ratios, race_entries

    found = race_entries(RaceOptions(**options), CPU_ENTRIES, click.echo)
    for line in list_ratios(found):
        click.echo(line)
    if out is not None:
        Path(out).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


@command.command("swap")
@click.option("--first", default="starter-unet", show_default=True, help="Catalogue name or folder.")
@click.option("--second", help="Swapped in and out; a changed copy of the first when not given.")
@click.option("--batch-size", default=8, show_default=True, help="Pictures of a request.")
@click.option("--steps", "num_inference_steps", default=5, show_default=True, help="Of every picture.")
@click.option("--batches", default=10, show_default=True, help="Served before, between and after the swaps.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, mps or auto.")
@click.option("--out", metavar="FILE", help="Write the figures here as JSON.")
def bench_swap(out: str | None, **options: Any) -> int:
    """A cold load, a swap while batches are served, and the way back; exit code 1 when a request is lost or mixed."""
    from dgate_core.bench.swap import SwapBenchOptions, list_figures, measure_swap

    found = measure_swap(SwapBenchOptions(**options), click.echo)
    for line in list_figures(found["times"]):
        click.echo(line)
    if out is not None:
        Path(out).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0 if found["as_wanted"] else 1


@command.command("generate")
@click.option("--case", required=True, help="sdxl-mlperf, sd15, flux-dev, flux-schnell or starter.")
@click.option(
    "--profile",
    "profiles",
    default="fast",
    show_default=True,
    metavar="A,B",
    help="Profiles or backends, with levers and batch: fast+fp8+deep-cache-2@16.",
)
@click.option("--weights", default="random", show_default=True, metavar="random|M", help="Or a model, or a folder.")
@click.option("--size", type=click.Choice(["full", "toy"]), default="full", show_default=True)
@click.option("--rounds", default=2, show_default=True, help="Figures are medians over the rounds.")
@click.option("--steps", type=int, help="Denoising steps; the case's own when not given.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto.")
@click.option("--no-plain", is_flag=True, help="Leave plain diffusers out.")
@click.option("--seconds", type=float, help="After so long no further round begins.")
@click.option("--out", metavar="DIR", default="reports/benchmarks", show_default=True, help="JSON and plot go here.")
def bench_generate(profiles: str, no_plain: bool, out: str, **options: Any) -> None:
    """Pictures per second of real architectures against plain diffusers, with TFLOP/s, memory and time by stage."""
    from dgate_core.bench.generation import GenerationBenchOptions, measure_generation

    chosen = GenerationBenchOptions(profiles=split_names(profiles), plain=not no_plain, **options)
    file = Path(out) / f"generate-{chosen.case}{'-toy' if chosen.size == 'toy' else ''}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    found = measure_generation(chosen, click.echo, lambda figures: write_figures(figures, file))
    write_figures(found, file)
    write_case_plot(found, file.with_suffix(".svg"))
    for line in list_case_lines(found):
        click.echo(line)
    click.echo(f"figures   {file}")


@command.command("whole-path")
@click.option("--case", default="sd15", show_default=True, help="sdxl-mlperf, sd15 or starter.")
@click.option("--profile", default="fast", show_default=True, help="As of `bench generate`, one.")
@click.option("--weights", default="random", show_default=True, metavar="random|M", help="Or a model, or a folder.")
@click.option("--size", type=click.Choice(["full", "toy"]), default="full", show_default=True)
@click.option("--batches", default=4, show_default=True, help="Per round, for the loop and for the lane.")
@click.option("--rounds", default=2, show_default=True, help="The ratio is the median over the rounds.")
@click.option("--steps", type=int, help="Denoising steps; the case's own when not given.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto.")
@click.option("--out", metavar="FILE", help="Write the figures here as JSON.")
def bench_whole_path(out: str | None, **options: Any) -> None:
    """What a lane with PNG encoding, hashing and writing reaches of the bare denoise-decode loop."""
    from dgate_core.bench.whole_path import WholePathOptions, measure_whole_path

    file = Path(out) if out is not None else None
    keep = (lambda figures: write_figures(figures, file)) if file is not None else (lambda _: None)
    found = measure_whole_path(WholePathOptions(**options), click.echo, keep)
    for name, rate in found["pictures_per_second"].items():
        click.echo(f"{name:32} {rate:8.2f} pictures/s")
    click.echo(
        f"{'lane over the bare loop':40} {found['ratio']['median']:5.3f}   (bar {found['ratio']['bar']} on a GPU)"
    )


@command.command("gpu-table")
@click.option("--out", metavar="DIR", default="reports/benchmarks/gpu", show_default=True, help="Figures go here.")
@click.option("--budget", default=540.0, show_default=True, help="Seconds for all cases; the rest is not run.")
@click.option("--only", metavar="A,B", default="", help="Some of the cases, by name.")
@click.option("--size", type=click.Choice(["full", "toy"]), default="full", show_default=True)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto.")
def bench_gpu_table(out: str, only: str, **options: Any) -> None:
    """The whole table of a GPU, most important case first, each with a time limit; figures are kept as they come."""
    from dgate_core.bench.gpu_table import TableOptions, run_table
    from reports.speed_table import table_to_markdown

    found = run_table(TableOptions(out=out, only=split_names(only), **options), click.echo)
    written = table_to_markdown(found)
    (Path(out) / "table.md").write_text(written, encoding="utf-8")
    for file in Path(out).glob("*.json"):
        figures = json.loads(file.read_text(encoding="utf-8"))
        if figures["benchmark"] == "generate":
            write_case_plot(figures, file.with_suffix(".svg"))
    click.echo(written)


@command.command("compare")
@click.argument("models", nargs=-1, required=True, metavar="MODEL[@STEPS]...")
@click.option(
    "--suite", default="suite:postcards-smoke", show_default=True, help="Prompts: suite:NAME or a .jsonl file."
)
@click.option("--prompts", default=64, show_default=True, help="How many of its first.")
@click.option("--reference", default="postcards-smoke", show_default=True, help="Of the distances; empty for none.")
@click.option("--metrics", metavar="A,B", default="", help="Instead of those that fit the prompts.")
@click.option("--profile", default="exact", show_default=True, help="Of all models.")
@click.option("--rounds", default=1, show_default=True, help="Speeds are medians over the rounds, taken in turns.")
@click.option("--batches", default="1,4,16", show_default=True, help="Sizes that the throughput is looked for in.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto.")
@click.option(
    "--folder", default="runs/compare", show_default=True, help="Runs, JSON and page; runs are not made twice."
)
def bench_compare(models: tuple[str, ...], metrics: str, batches: str, folder: str, **options: Any) -> None:
    """Models side by side: latency, throughput, memory, and the quality of the same prompts' pictures."""
    from dgate_core.bench.compare import CompareOptions, measure_comparison
    from reports.comparison import render_comparison

    options["reference"] = options["reference"] or None
    sizes = tuple(int(each) for each in split_names(batches))
    chosen = CompareOptions(models, metrics=split_names(metrics), batches=sizes, folder=folder, **options)
    found = measure_comparison(chosen, click.echo)
    write_figures(found, Path(folder) / "compare.json")
    page = Path(folder) / "compare.html"
    page.write_text(render_comparison(found), encoding="utf-8")
    print_comparison(found)
    click.echo(f"page      {page}")


@command.command("savers")
@click.option("--savers", metavar="A,B", default="", help="Levers, such as deep-cache-2,guidance-0.6.")
@click.option("--prompts", default=128, show_default=True, help="How many of suite:postcards-1k.")
@click.option("--model", default="starter-unet", show_default=True, help="A model of postcards.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto.")
@click.option("--out", metavar="FILE", default="reports/benchmarks/savers.json", show_default=True)
def bench_savers(savers: str, out: str, **options: Any) -> None:
    """What step savers cost the pictures: accuracy, CLIP score and LPIPS against every step computed."""
    from dgate_core.bench.saver_loss import SaverLossOptions, measure_saver_loss

    chosen = SaverLossOptions(**options)
    chosen = replace(chosen, savers=split_names(savers)) if savers else chosen
    write_figures(measure_saver_loss(chosen, click.echo), Path(out))


@command.command("api")
@click.option("--model", default="starter-unet", show_default=True, help="Catalogue name or folder.")
@click.option("--concurrency", default="1,8,32", show_default=True, help="Clients at a time.")
@click.option("--requests", default=32, show_default=True, help="Per contestant, concurrency and round.")
@click.option("--rounds", default=3, show_default=True, help="Ratios are medians over the rounds.")
@click.option("--steps", "num_inference_steps", type=int, help="Denoising steps; the model's default when not given.")
@click.option("--precision", default="auto", show_default=True, help="Of all contestants.")
@click.option("--out", metavar="FILE", help="Write the figures here as JSON.")
def bench_api(concurrency: str, out: str | None, **options: Any) -> int:
    """The API under load beside diffusers behind a lock and alone; exit code 1 when a bar is not reached."""
    from dgate_core.bench.api_load import LoadOptions, has_reached_bars, list_load_lines, measure_api_load

    counts = tuple(int(each) for each in split_names(concurrency))
    serve = (sys.executable, "-m", "flows.cli", "serve", "--port", "0")
    found = measure_api_load(LoadOptions(serve, concurrency=counts, **options), click.echo)
    for line in list_load_lines(found):
        click.echo(line)
    if out is not None:
        write_figures(found, Path(out))
    return 0 if has_reached_bars(found) else 1


def print_comparison(found: dict[str, Any]) -> None:
    """The page's table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    from reports.comparison import list_rows

    table = Table("figure", *(each["name"] for each in found["contenders"]), box=None)
    for row in list_rows(found["contenders"]):
        cells = [f"{cell.value or '-'} {cell.note}".strip() for cell in row.cells]
        table.add_row(f"{row.name} {row.unit}".strip(), *cells)
    Console().print(table)


def split_names(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def write_figures(found: dict[str, Any], file: Path) -> None:
    """Figures as JSON, whole or not at all."""
    from dgate_core.bench.gpu_table import write_json

    write_json(file, found)


def write_case_plot(found: dict[str, Any], file: Path) -> None:
    """The plot of one case."""
    from reports.speed_plot import draw_case

    file.write_text(draw_case(found), encoding="utf-8")


def list_case_lines(found: dict[str, Any]) -> list[str]:
    """A line for every contestant, then the ratios, then what was not run."""
    lines = []
    for name, each in found["contestants"].items():
        memory = "" if each["peak_gib"] is None else f", {each['peak_gib']:.1f} GiB"
        stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in each["stages"].items())
        share = f"{each['tflops']:.1f} TFLOP/s, {each['share_of_bf16_limit']:.0%} of the bf16 limit"
        lines.append(f"{name:40} {each['pictures_per_second']:8.3f} pictures/s  {share}{memory}  {stages}".rstrip())
    lines += [f"{name:64} {ratio:5.2f}x" for name, ratio in found["ratios"].items()]
    lines += [
        f"target of {name}: {target['wanted']:g}/s, {'reached' if target['reached'] else 'not reached'}"
        for name, target in found["targets"].items()
    ]
    return [*lines, *(f"{name}: not run: {why}" for name, why in found["not_run"].items())]


def print_ratios(found: dict[str, Any]) -> None:
    """Rates, then each ratio beside its bar."""
    for name, rate in found["pictures_per_second"].items():
        click.echo(f"{name:32} {rate:8.2f} pictures/s")
    for name, ratio in found["ratios"].items():
        click.echo(f"{name:40} {ratio['median']:5.2f}x   (bar {ratio['bar']}x)")
