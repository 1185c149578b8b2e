"""Measuring a run, and what is shown and told of its numbers."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client

from dgate_core.evaluation.evaluate import EvaluateOptions, evaluate_run
from dgate_core.evaluation.metric_request import list_requests
from dgate_core.evaluation.references import open_reference
from dgate_core.evaluation.results import MetricValue, read_evaluation
from dgate_core.runs.store import RunStore
from dgate_core.storage import open_storage
from reports.evaluation.collect import collect_evaluation
from reports.evaluation.markdown import summarise_evaluation
from reports.evaluation.page import render_evaluation
from reports.publish import publish_evaluation
from tasks.artifacts import UNREACHABLE, RunArtifact
from tasks.finish import is_transient

logger = logging.getLogger(__name__)


@task(
    name="measure",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=2,
    retry_delay_seconds=[2, 10],
    retry_condition_fn=is_transient,
    timeout_seconds=24 * 3600,
)
def measure_pictures(run: str, reference: str | None, baseline: str | None, metrics: Sequence[str], device: str) -> str:
    """Writes evaluation.json and scores.parquet.

    Returns:
        The run's folder.
    """
    evaluate_run(run, EvaluateOptions(reference, baseline, tuple(metrics), device), logger.info)
    return run


@task(
    name="evaluation page",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=2,
    retry_delay_seconds=[2, 10],
    retry_condition_fn=is_transient,
    timeout_seconds=6 * 3600,
)
def show_evaluation(run: str) -> str:
    """Writes the report, shows the numbers in Prefect, and tells the trackers of the run's config.

    Returns:
        The report's address.
    """
    # First the trackers: the page names those that missed something.
    for outcome in publish_evaluation(run).wait():
        logger.info(outcome.describe(run))
    page = open_storage(run).uri_of(render_evaluation(run))
    show_metrics(run)
    return page


def show_metrics(run: str) -> None:
    """A table of the metrics with their intervals, and the report as markdown; the run goes on without Prefect."""
    storage = open_storage(run)
    rows = [metric_to_row(metric) for metric in read_evaluation(storage).metrics]
    text = summarise_evaluation(collect_evaluation(storage, None))
    try:
        with get_client(sync_client=True) as client:
            RunArtifact(client, "table").show(json.dumps(rows), f"Metrics of {storage.uri}")
            RunArtifact(client, "markdown").show(text, f"Evaluation of {storage.uri}")
    except UNREACHABLE as error:
        logger.warning("the evaluation could not be shown in Prefect: %s", error)


def metric_to_row(metric: MetricValue) -> dict[str, str]:
    """One row of the table."""
    return {
        "metric": metric.name,
        "value": "not measured" if metric.value is None else f"{metric.value:.5g}",
        "95 %": f"{metric.interval[0]:.5g} to {metric.interval[1]:.5g}" if metric.interval else "",
        "better": metric.better,
        "pictures": f"{metric.n_used:,} of {metric.n_expected:,}",
        "extractor": metric.extractor,
        "why not": metric.error or "",
    }


def check_scoring(settings: Mapping[str, Any]) -> None:
    """Sees before any picture is made that what shall be scored can be.

    Raises:
        UsageError: an unknown metric, or one without its reference.
        EvaluationError: the reference set cannot be had.
    """
    if settings["score"]:
        list_requests(settings["score"], has_reference=settings["reference"] is not None, has_baseline=False)
    if settings["score"] and settings["reference"] is not None:
        open_reference(settings["reference"])


def score_pictures(run: str, settings: Mapping[str, Any]) -> None:
    """Evaluates a run that asked for it, unless it was stopped: features made on the way are in the cache."""
    if settings["score"] and RunStore(open_storage(run)).read_run()["state"] != "cancelled":
        measure_pictures(run, settings["reference"], None, settings["score"], settings["device"])
        show_evaluation(run)


def conclude_evaluation(run: str, page: str) -> dict[str, Any]:
    """evaluation.json and the report's address, as the flow's result."""
    return {**asdict(read_evaluation(open_storage(run))), "page": page}
