"""Writes report/evaluation.html and report/evaluation.md of an evaluated run."""

from __future__ import annotations

from dataclasses import dataclass

from dgate_core.evaluation.results import EVALUATION_PAGE
from dgate_core.storage import open_storage
from reports.evaluation.collect import CollectedEvaluation, collect_evaluation
from reports.evaluation.html import render_page
from reports.evaluation.markdown import summarise_evaluation
from reports.evaluation.pairs import PictureSource, WorstPictures, list_orders, read_pairs

EVALUATION_MARKDOWN = "report/evaluation.md"


@dataclass(frozen=True, slots=True)
class EvaluationPageOptions:
    """How much the page shows."""

    worst_pictures: int = 12
    """Pictures for each metric."""
    picture_size: int = 512
    """Longest side in pixels; smaller pictures keep their size."""


def render_evaluation(
    run_uri: str, baseline_uri: str | None = None, *, options: EvaluationPageOptions = EvaluationPageOptions()
) -> str:
    """Writes the report of an evaluated run into its folder and returns the page's key.

    Args:
        run_uri: The run's folder.
        baseline_uri: Run to compare with; by default the one of the verdict, or of the evaluation.
        options: How much it shows.

    Raises:
        RunError: there is no run.
        EvaluationError: the run has not been evaluated.
        StorageError: a folder cannot be read or written.
    """
    run = open_storage(run_uri)
    collected = collect_evaluation(run, baseline_uri)
    page = render_page(collected, find_worst_pictures(collected, options))
    run.write_bytes(EVALUATION_MARKDOWN, summarise_evaluation(collected).encode())
    run.write_bytes(EVALUATION_PAGE, page.encode())
    return EVALUATION_PAGE


def find_worst_pictures(collected: CollectedEvaluation, options: EvaluationPageOptions) -> WorstPictures:
    """The pictures that show best what the numbers say."""
    first = choose_first_metric(collected)
    orders = list_orders(collected.evaluation, collected.comparison, first, options.worst_pictures)
    baseline = open_storage(collected.baseline) if collected.baseline else None
    source = PictureSource(open_storage(collected.uri), baseline, options.picture_size)
    return read_pairs(orders, collected.evaluation, collected.comparison, source)


def choose_first_metric(collected: CollectedEvaluation) -> str:
    """The metric that decided the verdict, as far as pictures can show it; else the first of them."""
    decisive = collected.verdict.list_checks(collected.verdict.decision) if collected.verdict else []
    known = [metric.name for metric in collected.evaluation.metrics]
    names = [check.metric for check in decisive if check.metric in known and check.decision != "pass"]
    return next(iter([*names, *known]), "")
