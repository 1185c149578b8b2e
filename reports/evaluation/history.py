"""Earlier numbers of the same metric: from runs beside this one, and from what this run recorded before."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dgate_core.evaluation.results import EVALUATION_FILE, Evaluation, EvaluationError, MetricValue, read_evaluation
from dgate_core.runs.folder import list_children
from dgate_core.runs.store import RunStore
from dgate_core.storage import Storage, open_storage, split_uri
from dgate_core.tracking.local_json import LocalLog
from reports.evaluation.numbers import Interval
from reports.summary import read_time

logger = logging.getLogger(__name__)

MAX_RUNS = 200
MAX_POINTS = 30


@dataclass(frozen=True, slots=True)
class HistoryPoint:
    """A metric at one moment."""

    run: str
    """Name of the run."""
    moment: datetime
    """When it was measured, UTC."""
    value: float
    """The number."""
    interval: Interval | None
    """95 % confidence interval."""
    is_current: bool = False
    """Whether it is the evaluation that the report is about."""


@dataclass(frozen=True, slots=True)
class PastEvaluation:
    """Metrics of one run at one moment, as plain data."""

    run: str
    """Name of the run."""
    moment: datetime
    """When it was made, UTC."""
    metrics: tuple[Mapping[str, Any], ...]
    """Like `MetricValue`."""


History = dict[str, tuple[HistoryPoint, ...]]


def collect_history(run: Storage, evaluation: Evaluation) -> History:
    """Metric → its numbers, the oldest first, this evaluation's last; only numbers that compare with it.

    A number compares when the same prompts were asked and the metric had the same extractor, weights, resize and
    reference.
    """
    moment, name = read_time(evaluation.created), _name_run(run)
    if moment is None:
        return {}
    past = [each for each in [*read_own_past(run), *read_neighbours(run)] if each.moment < moment]
    past.sort(key=lambda each: each.moment)
    history: History = {}
    for metric in evaluation.metrics:
        if metric.value is not None:
            now = HistoryPoint(name, moment, metric.value, metric.interval, is_current=True)
            history[metric.name] = (*find_points(metric, past)[-MAX_POINTS:], now)
    return history


def find_points(metric: MetricValue, past: list[PastEvaluation]) -> list[HistoryPoint]:
    """The numbers of one metric that compare with its number now."""
    points = []
    for each in past:
        for found in each.metrics:
            if found["value"] is not None and _identify_measure(found) == _identify_measure(_as_plain(metric)):
                interval = found.get("interval")
                points.append(
                    HistoryPoint(each.run, each.moment, found["value"], tuple(interval) if interval else None)
                )
    return points


def read_own_past(run: Storage) -> Iterator[PastEvaluation]:
    """Evaluations that this run recorded; those that measured it before count too."""
    for record in LocalLog(run).read_records():
        found = record.documents.get("evaluation")
        moment = read_time(found.get("created")) if found else None
        if found and moment:
            yield PastEvaluation(_name_run(run), moment, tuple(found["metrics"]))


def read_neighbours(run: Storage) -> Iterator[PastEvaluation]:
    """Evaluations of the runs beside this one that made the same prompts; a bucket is not searched."""
    if run.local_path("x") is None:
        return
    parent, name = split_uri(run.uri)
    folder, manifest = open_storage(parent), _read_manifest(run)
    for child in list_children(folder)[:MAX_RUNS]:
        beside = folder.child(child)
        if child == name or not beside.exists(EVALUATION_FILE) or _read_manifest(beside) != manifest:
            continue
        try:
            evaluation = read_evaluation(beside)
        except EvaluationError as error:  # another run's damage costs this one a point of its history, no more
            logger.warning("%s is left out of the history: %s", child, error.got)
            continue
        moment = read_time(evaluation.created)
        if moment is not None:
            yield PastEvaluation(child, moment, tuple(_as_plain(metric) for metric in evaluation.metrics))


def _identify_measure(metric: Mapping[str, Any]) -> str:
    names = ("name", "extractor", "weights_sha256", "resize", "reference")
    return json.dumps([metric.get(name, "") for name in names])


def _as_plain(metric: MetricValue) -> dict[str, Any]:
    names = ("name", "extractor", "weights_sha256", "resize", "reference", "value", "interval")
    return {name: getattr(metric, name) for name in names}


def _read_manifest(run: Storage) -> str | None:
    store = RunStore(run)
    return store.read_run()["manifest"].get("sha256") if store.exists() else None


def _name_run(run: Storage) -> str:
    return run.uri.rstrip("/").rpartition("/")[2]
