"""`dgate evaluate`: the numbers of a run, with their uncertainty."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from dgate_core.evaluation.results import Evaluation

EXIT_INCOMPLETE = 3
"""Some metric that was asked for could not be measured."""


@click.command("evaluate")
@click.argument("run")
@click.option("--reference", metavar="SET", help="Reference set for FID and the like: a card's name, or an address.")
@click.option("--baseline", metavar="RUN", help="Run to compare with, picture by picture.")
@click.option("--metrics", metavar="A,B", default="", help="Instead of the default set; also module:attr of your own.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", help="Of the networks.")
@click.option("--no-cache", is_flag=True, help="Compute all features anew.")
@click.option("--json", "as_json", is_flag=True, help="evaluation.json on stdout and nothing else.")
def command(run: str, metrics: str, no_cache: bool, as_json: bool, **options: Any) -> int:
    """Measures the pictures of RUN; writes evaluation/evaluation.json and evaluation/scores.parquet into it.

    Exit code 0 when every metric was measured, 3 when some could not be, 1 when the evaluation failed, 2 when the
    command is wrong.
    """
    from dgate_core.evaluation.evaluate import EvaluateOptions, evaluate_run
    from dgate_core.storage import open_storage
    from reports.evaluation.page import render_evaluation
    from reports.publish import publish_evaluation

    names = tuple(name for name in metrics.split(",") if name.strip())
    try:
        evaluation = evaluate_run(
            run, EvaluateOptions(metrics=names, use_cache=not no_cache, **options), print_progress
        )
        for outcome in publish_evaluation(run).wait():
            click.echo(outcome.describe(run), err=True)
        page = open_storage(run).uri_of(render_evaluation(run))
    finally:
        end_progress()
    found = {**asdict(evaluation), "page": page}
    click.echo(json.dumps(found) if as_json else "\n".join([f"report    {page}", *describe_evaluation(evaluation)]))
    return EXIT_INCOMPLETE if any(metric.error for metric in evaluation.metrics) else 0


def print_progress(line: str) -> None:
    """One line on a terminal that is written over and over; nothing elsewhere."""
    if sys.stderr.isatty():
        click.echo(f"\r\033[K{line}", err=True, nl=False)


def end_progress() -> None:
    """Takes the line away."""
    if sys.stderr.isatty():
        click.echo("\r\033[K", err=True, nl=False)


def describe_evaluation(evaluation: Evaluation) -> Iterator[str]:
    """A table in plain text, then what a reader must know, and what could not be measured."""
    width = max([len(metric.name) for metric in evaluation.metrics], default=0)
    for metric in evaluation.metrics:
        if metric.value is None:
            yield f"{metric.name:{width}}  not measured"
            continue
        interval = f"[{metric.interval[0]:.4g}, {metric.interval[1]:.4g}]" if metric.interval else ""
        counted = f"{metric.n_used:,} of {metric.n_expected:,}"
        yield f"{metric.name:{width}}  {metric.value:<10.5g} {interval:24} {counted:>18}  {metric.extractor}".rstrip()
    if evaluation.defects:
        yield "defects   " + ", ".join(f"{count:,} {name}" for name, count in sorted(evaluation.defects.items()))
    yield "seconds   " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in evaluation.seconds.items())
    for metric in evaluation.metrics:
        for warning in metric.warnings:
            yield f"note      {metric.name}: {warning}"
        if metric.error:
            yield f"error     {metric.name}: {metric.error}"
