"""Reads everything that the report of an evaluation says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dgate_core.evaluation.gate.verdict import Verdict, read_verdict
from dgate_core.evaluation.results import EVALUATION_FILE, GATE_FILE, Evaluation, MetricValue, read_evaluation
from dgate_core.runs.store import RunStore
from dgate_core.storage import Storage, open_storage
from dgate_core.tracking.sending import TrackerOutcome, read_outcomes
from reports.evaluation.history import History, collect_history
from reports.evaluation.numbers import Interval, find_share_interval
from reports.evaluation.scores import Comparison, compare_scores
from reports.summary import RunSummary, read_summary

FIRST_ATTRIBUTES = ("colour", "object", "count")


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that could not be measured."""

    what: str
    """Metric, or what else."""
    why: str
    """One sentence or more."""


@dataclass(frozen=True, slots=True)
class AttributeRow:
    """How often one value of an attribute is right, on postcards."""

    value: str
    """Such as red."""
    n: int
    """Pictures that were to show it."""
    share: float
    """Part of them that do, 0 to 1."""
    interval: Interval
    """95 %, Wilson."""
    baseline: float | None
    """The baseline's share; None when there is none."""


@dataclass(frozen=True, slots=True)
class CollectedEvaluation:
    """What the report says."""

    uri: str
    """Address of the run."""
    run: RunSummary
    """Its figures."""
    evaluation: Evaluation
    """Its numbers."""
    verdict: Verdict | None
    """The gate's; None when it was not asked."""
    baseline: str
    """Address of the baseline; empty when there is none."""
    baseline_evaluation: Evaluation | None
    """Its numbers, when it has some."""
    comparison: Comparison
    """Scores by picture."""
    history: History
    """Earlier numbers by metric."""
    attributes: dict[str, tuple[AttributeRow, ...]]
    """Postcards only: attribute → its values, the worst first."""
    gaps: tuple[Gap, ...]
    """What could not be measured, and why."""
    trackers: tuple[TrackerOutcome, ...]
    """What came of the last sending to each tracker."""

    @property
    def baseline_name(self) -> str:
        """Last part of its address."""
        return self.baseline.rstrip("/").rpartition("/")[2]

    def find_before(self, metric: MetricValue) -> MetricValue | None:
        """The baseline's number of the same metric, if it was measured in the same way."""
        before = self.baseline_evaluation.find_metric(metric.name) if self.baseline_evaluation else None
        if before is None or before.value is None or metric.scope == "paired":
            return None
        return before if before.weights_sha256 == metric.weights_sha256 else None


def collect_evaluation(run: Storage, baseline_uri: str | None) -> CollectedEvaluation:
    """Reads an evaluated run and its baseline, by default the one that it was gated or evaluated against.

    Raises:
        RunError: there is no run.
        EvaluationError: it has not been evaluated.
    """
    summary = read_summary(RunStore(run).read_run())
    evaluation = read_evaluation(run)
    verdict = read_verdict(run) if run.exists(GATE_FILE) else None
    place = baseline_uri or (verdict.baseline if verdict else "") or evaluation.baseline
    baseline = open_storage(place) if place else None
    before = read_evaluation(baseline) if baseline is not None and baseline.exists(EVALUATION_FILE) else None
    comparison = compare_scores(run, baseline)
    outcomes = read_outcomes(run)
    return CollectedEvaluation(
        uri=run.uri,
        run=summary,
        evaluation=evaluation,
        verdict=verdict,
        baseline=place,
        baseline_evaluation=before,
        comparison=comparison,
        history=collect_history(run, evaluation),
        attributes=compare_attributes(evaluation, before),
        gaps=tuple(list_gaps(evaluation, verdict, comparison, outcomes)),
        trackers=outcomes,
    )


def compare_attributes(evaluation: Evaluation, before: Evaluation | None) -> dict[str, tuple[AttributeRow, ...]]:
    """Attribute → values with their shares, the worst first."""
    known = before.by_attribute if before else {}
    compared = {}
    names = [name for name in FIRST_ATTRIBUTES if name in evaluation.by_attribute]
    for attribute in (*names, *(name for name in evaluation.by_attribute if name not in names)):
        values, rows = evaluation.by_attribute[attribute], []
        for value, found in values.items():
            n, right = found["n"], found["right"]
            was = known.get(attribute, {}).get(value)
            share = right / n if n else 0.0
            earlier = was["right"] / was["n"] if was and was["n"] else None
            rows.append(AttributeRow(value, int(n), share, find_share_interval(right, n), earlier))
        compared[attribute] = tuple(sorted(rows, key=lambda row: row.share))
    return compared


def list_gaps(
    evaluation: Evaluation, verdict: Verdict | None, comparison: Comparison, trackers: Sequence[TrackerOutcome]
) -> Iterator[Gap]:
    """What could not be measured, what was left out of a number, and what was not told."""
    short: dict[str, list[str]] = {}
    for metric in evaluation.metrics:
        if metric.error is not None:
            yield Gap(metric.name, metric.error)
        elif metric.n_used < metric.n_expected:
            why = f"{metric.n_expected - metric.n_used:,} of {metric.n_expected:,} pictures are not in the number"
            short.setdefault(why, []).append(metric.name)
    yield from (Gap(", ".join(names), why) for why, names in short.items())
    if verdict is None:
        yield Gap("verdict", "the gate was not asked; run: dgate gate")
    if not comparison.has_baseline:
        yield Gap("change", "there is no baseline: pictures and numbers stand alone")
    elif not comparison.baseline_scored:
        yield Gap("change", "the baseline has not been evaluated: its pictures are shown, its scores are not known")
    if comparison.unpaired:
        yield Gap("pairs", f"{comparison.unpaired:,} pictures have none of the same prompt and seed in the baseline")
    for outcome in trackers:
        if outcome.missing:
            yield Gap(f"tracker {outcome.tracker}", f"{outcome.missing} of its records were not sent: {outcome.error}")
