"""One metric of two runs, compared as a rule asks; what stands in the way of a number is kept as a failure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from dgate_core.errors import DgateError
from dgate_core.evaluation.gate.bootstrap import Estimate, resample_means
from dgate_core.evaluation.gate.pairs import Pairing
from dgate_core.evaluation.gate.rules import GateRules, Rule
from dgate_core.evaluation.gate.scored_run import ScoredRun
from dgate_core.evaluation.results import MetricValue

ALIKE_COUNTS: Final = 0.01
"""Distances of corpora grow as their pictures become fewer: numbers of pictures may differ by this share at most."""
MEASURED_ALIKE = ("scope", "better", "extractor", "weights_sha256", "resize", "reference")
"""Fields of a metric that must be equal in both runs."""


@dataclass(frozen=True, slots=True)
class RunPair:
    """What the gate looks at."""

    candidate: ScoredRun
    """The run that shall pass."""
    baseline: ScoredRun | None
    """The run that it is held against; None when the rules have fixed windows only."""
    pairing: Pairing | None
    """Which rows belong together; None without a baseline."""
    rules: GateRules
    """All rules."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was found for one rule."""

    rule: Rule
    """What is asked."""
    metric: MetricValue
    """The candidate's metric, or a stand-in with the reason why there is none."""
    failure: str = ""
    """Why the metric cannot be compared; empty when it was."""
    estimate: Estimate | None = None
    """Effect in the bound's unit; None for single numbers without an interval."""
    baseline: float | None = None
    """The baseline's number."""
    candidate: float | None = None
    """The candidate's number."""
    n_used: int = 0
    """Rows in the numbers."""
    n_expected: int = 0
    """Rows that should be."""
    n_worst: int = 0
    """Rows that count with the worst score."""
    n_unscored: int = 0
    """Sound pairs without a score in either run, such as prompts that the metric does not understand."""


CorpusDraws = Callable[[RunPair, MetricValue], np.ndarray]
"""Draws of candidate less baseline of a corpus metric, float64 (resamples,); raises DgateError when it cannot."""


def compare_metric(rule: Rule, name: str, pair: RunPair, draw_corpus: CorpusDraws) -> Comparison:
    """Finds the effect that the rule is about, or the reason why there is none."""
    metric = pair.candidate.evaluation.find_metric(name)
    if failure := find_obstacle(rule, name, pair):
        nothing = MetricValue(name, "picture", "higher", None, error=failure)
        return Comparison(rule, metric or nothing, failure)
    assert metric is not None
    if not rule.needs_baseline:
        return _take_value(rule, metric, pair.candidate)
    if metric.scope == "corpus":
        return _compare_corpora(rule, metric, pair, draw_corpus)
    return _compare_pictures(rule, metric, pair)


def find_obstacle(rule: Rule, name: str, pair: RunPair) -> str:
    """Why the metric cannot be compared at all; empty when it can."""
    sides = {"candidate": pair.candidate}
    if rule.needs_baseline and pair.baseline is not None:
        sides["baseline"] = pair.baseline
    for side, run in sides.items():
        metric = run.evaluation.find_metric(name)
        if metric is None:
            return f"the {side}'s evaluation has no {name}: run dgate evaluate {run.uri} with this metric"
        if metric.error is not None:
            return f"{name} of the {side} could not be measured: {metric.error}"
        if metric.value is None or not math.isfinite(metric.value):
            return f"{name} of the {side} is {metric.value}, which is no number to compare"
        if metric.scope != "corpus" and name not in run.scores.column_names:
            return f"scores.parquet of the {side} has no column {name}"
    found = [run.evaluation.find_metric(name) for run in sides.values()]
    if problem := _find_other_measure(rule, found[0]):
        return problem
    for field in MEASURED_ALIKE:
        values = {getattr(metric, field) for metric in found}
        if len(values) > 1:
            return f"{name} was measured with different {field}: {' and '.join(sorted(map(repr, values)))}"
    return "" if rule.needs_baseline else _find_paired_obstacle(found[0], pair)


def _find_other_measure(rule: Rule, metric: MetricValue | None) -> str:
    """The rule may name the extractor and the reference that its numbers are of, and must not contradict the metric."""
    assert metric is not None
    if rule.direction in {"higher", "lower"} and rule.direction != metric.better:
        return f"the rule says that {rule.direction} is better, but of {metric.name} {metric.better} is better"
    if rule.extractor and not {metric.extractor, _drop_revision(metric.extractor)} & set(rule.extractor):
        return (
            f"{metric.name} was measured with {metric.extractor}, and the rule asks for {' or '.join(rule.extractor)}"
        )
    if rule.reference and metric.reference.partition("@")[0] != rule.reference:
        against = metric.reference or "nothing"
        return f"{metric.name} was measured against {against}, and the rule asks for {rule.reference}"
    return ""


def _drop_revision(extractor: str) -> str:
    """`OWNER/NAME` of a hub's `OWNER/NAME@REVISION`; other names stay whole."""
    return extractor.partition("@")[0] if "/" in extractor else extractor


def _find_paired_obstacle(metric: MetricValue | None, pair: RunPair) -> str:
    """A metric against a baseline must be against this one, as it is now."""
    if metric is None or metric.scope != "paired" or pair.baseline is None:
        return ""
    told = pair.candidate.evaluation
    if told.baseline_pictures == pair.baseline.hash_pictures():
        return ""
    if told.baseline != pair.baseline.uri:
        return f"{metric.name} was measured against {told.baseline}, not against {pair.baseline.uri}"
    return f"{metric.name} was measured against other pictures than {told.baseline} has now"


def _take_value(rule: Rule, metric: MetricValue, run: ScoredRun) -> Comparison:
    """The number itself, with the interval that the evaluation gives; copies of a picture count once."""
    assert metric.value is not None
    seen = run.find_pictures() if metric.scope == "corpus" else run.find_sound()
    expected = metric.n_expected or metric.n_used
    if metric.scope == "picture":
        seen &= ~np.isfinite(run.read_scores(metric.name))
        if rule.test != "report" and (lost := int(seen.sum())):
            return Comparison(rule, metric, f"{lost:,} sound pictures have no {metric.name}, uncounted")
    elif metric.scope == "corpus" and metric.n_used != int(seen.sum()):
        return Comparison(rule, metric, _describe_uncounted(metric, int(seen.sum())))
    distinct = metric.n_used - int((run.find_repeats() & run.find_pictures()).sum())
    return Comparison(rule, metric, candidate=metric.value, n_used=max(distinct, 0), n_expected=expected)


def _describe_uncounted(metric: MetricValue, pictures: int) -> str:
    return f"{metric.name} is of {metric.n_used:,} pictures, and the run has {pictures:,}"


def _compare_pictures(rule: Rule, metric: MetricValue, pair: RunPair) -> Comparison:
    """Mean of the differences row by row; a row without a sound picture counts with the worst score seen."""
    assert pair.baseline is not None
    assert pair.pairing is not None
    sound = pair.pairing.candidate_is_sound
    theirs = pair.baseline.read_scores(metric.name)[pair.pairing.baseline]
    ours = np.where(sound, pair.candidate.read_scores(metric.name)[pair.pairing.candidate], np.nan)
    if np.isinf(ours).any() or np.isinf(theirs).any():
        return Comparison(rule, metric, f"some rows have an infinite {metric.name}")
    asked = np.isfinite(theirs)
    if lost := int((sound & (np.isfinite(ours) != asked)).sum()):
        return Comparison(rule, metric, f"{lost:,} sound pictures have no {metric.name} in one run, uncounted")
    if not asked.any():
        return Comparison(rule, metric, f"no row of the baseline has a {metric.name}")
    seen = np.concatenate([theirs[asked], ours[np.isfinite(ours)]])
    worst = seen.min() if metric.better == "higher" else seen.max()
    ours = np.where(asked & ~sound, worst, ours)[asked]
    theirs = theirs[asked]
    found = Comparison(
        rule,
        metric,
        baseline=float(theirs.mean()),
        candidate=float(ours.mean()),
        n_used=len(ours),
        n_expected=len(asked),
        n_unscored=int((sound & ~asked).sum()),
        n_worst=int((asked & ~sound).sum()),
    )
    columns = np.stack([ours - theirs, theirs], axis=1)
    drawn = resample_means(columns, pair.rules.resamples, pair.rules.seed)
    return _add_effect(found, float((ours - theirs).mean()), drawn[:, 0], drawn[:, 1], is_smooth=True)


def _compare_corpora(rule: Rule, metric: MetricValue, pair: RunPair, draw_corpus: CorpusDraws) -> Comparison:
    """Difference of the evaluations' numbers, its spread by bootstrap over features."""
    assert pair.baseline is not None
    other = pair.baseline.evaluation.find_metric(metric.name)
    assert other is not None
    assert other.value is not None
    assert metric.value is not None
    found = Comparison(
        rule,
        metric,
        baseline=other.value,
        candidate=metric.value,
        n_used=metric.n_used,
        n_expected=max(metric.n_expected, other.n_used),
    )
    if problem := _find_other_counts(metric, other, pair):
        return replace(found, failure=problem)
    try:
        draws = draw_corpus(pair, metric)
    except DgateError as error:
        # Whatever is missing here (weights, a reference, pictures) is this rule's failure; the others are still judged.
        return replace(found, failure=f"{metric.name} cannot be drawn again: {error.got}")
    if not np.isfinite(draws).all():
        return replace(found, failure=f"{metric.name} drawn again is not always a number")
    level = np.full(len(draws), other.value)
    return _add_effect(found, metric.value - other.value, draws, level, is_smooth=False)


def _find_other_counts(metric: MetricValue, other: MetricValue, pair: RunPair) -> str:
    """Numbers of all pictures that are there, and of about as many in both runs; empty when they are."""
    assert pair.baseline is not None
    for run, found in ((pair.candidate, metric), (pair.baseline, other)):
        if found.n_used != (pictures := int(run.find_pictures().sum())):
            return _describe_uncounted(found, pictures)
    share = max(ALIKE_COUNTS, pair.rules.missing_rows)
    if abs(metric.n_used - other.n_used) > share * max(metric.n_used, other.n_used):
        return f"{metric.name} of {metric.n_used:,} pictures does not compare with that of {other.n_used:,}"
    return ""


def _add_effect(
    found: Comparison, difference: float, drawn: np.ndarray, levels: np.ndarray, *, is_smooth: bool
) -> Comparison:
    """The difference in the unit of the rule's bound."""
    if found.rule.bound.kind == "absolute":
        return replace(found, estimate=Estimate(difference, drawn, is_smooth))
    assert found.baseline is not None
    if found.baseline == 0:
        return replace(found, failure=f"{found.metric.name} of the baseline is 0, so nothing is relative to it")
    # A baseline that is near 0 in some resample must not flip the sign there.
    relative = drawn / np.maximum(np.abs(levels), 1e-3 * abs(found.baseline))
    return replace(found, estimate=Estimate(difference / abs(found.baseline), relative, is_smooth))
