"""The gate: a candidate's evaluation against a baseline's, rule by rule; what it cannot see is a fail, by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache

from dgate_core.evaluation.gate.comparison import Comparison, CorpusDraws, RunPair, compare_metric
from dgate_core.evaluation.gate.decide import decide_checks
from dgate_core.evaluation.gate.pairs import pair_rows
from dgate_core.evaluation.gate.rules import ANY_METRIC, GateRules, Rule
from dgate_core.evaluation.gate.run_checks import check_coverage, check_defects, check_pairs, check_wholeness
from dgate_core.evaluation.gate.scored_run import ScoredRun, open_scored_run
from dgate_core.evaluation.gate.verdict import Check, Verdict, join_decisions
from dgate_core.evaluation.results import EvaluationError, MetricValue
from dgate_core.postcards import CaptionError, parse_caption
from dgate_core.storage import Storage

SEEN_BY_OTHER_CHECKS = frozenset({"sanity"})
"""Metrics that `*` leaves out; the check `defects` holds them more strictly."""
RESAMPLED = frozenset({"fid", "fd", "kid", "cmmd", "precision"})
"""Corpus metrics whose noise is known; of others `*` only reports the number."""


def judge_run(candidate: Storage, baseline: Storage | None, rules: GateRules, draw_corpus: CorpusDraws) -> Verdict:
    """The verdict about an evaluated run.

    Args:
        candidate: Folder of the run that shall pass.
        baseline: Folder of the run that it is held against; None for rules with fixed windows only.
        rules: See `read_rules`.
        draw_corpus: Bootstrap of corpus metrics.

    Raises:
        RunError: one of the folders holds no run.
    """
    checks = list(_judge(candidate, baseline, rules, draw_corpus))
    created = datetime.now(UTC).isoformat(timespec="seconds")
    uri = baseline.uri if baseline is not None else ""
    return Verdict(join_decisions(checks), tuple(checks), candidate.uri, uri, rules.name, created)


def _judge(candidate: Storage, baseline: Storage | None, rules: GateRules, draw_corpus: CorpusDraws) -> Iterator[Check]:
    runs: list[ScoredRun] = []
    for side, storage in (("candidate", candidate), ("baseline", baseline)):
        if storage is not None:
            try:
                runs.append(open_scored_run(storage))
            except EvaluationError as error:
                yield Check("evaluation", "", "fail", f"the {side} cannot be judged: {error.got}; {error.next_step}")
    if len(runs) < 1 + (baseline is not None):
        return
    if rules.needs_baseline and baseline is None:
        yield Check("baseline", "", "fail", "the rules compare with a baseline, and none was given")
        return
    pair = pair_runs(runs[0], runs[1] if baseline is not None else None, rules)
    yield from _check_runs(pair)
    if pair.pairing is None or not pair.pairing.problems:
        checks = check_metrics(pair, draw_corpus)
        yield from checks
        if all(check.reported_only for check in checks):
            yield Check("metrics", "", "undecided", "no rule judged a metric of these runs")


def pair_runs(candidate: ScoredRun, baseline: ScoredRun | None, rules: GateRules) -> RunPair:
    """The two runs with their rows paired."""
    pairing = pair_rows(candidate, baseline, rules.pairing) if baseline is not None else None
    return RunPair(candidate, baseline, pairing, rules)


def _check_runs(pair: RunPair) -> Iterator[Check]:
    if pair.baseline is None or pair.pairing is None:
        yield check_wholeness(pair.candidate, pair.rules)
        return
    yield check_pairs(pair.pairing, pair.rules, is_same_run=pair.candidate.uri == pair.baseline.uri)
    yield check_coverage(pair.candidate, pair.pairing, pair.rules)
    yield check_defects(pair.candidate, pair.baseline, pair.rules)


def check_metrics(pair: RunPair, draw_corpus: CorpusDraws) -> list[Check]:
    """A check for every rule and metric; rules that do not apply come last."""
    asked = [rule for rule in pair.rules.rules if _is_asked(rule, pair)]
    skipped = [rule for rule in pair.rules.rules if rule not in asked]
    found: list[Comparison] = []
    for rule in asked:
        names = find_names(rule, pair)
        if not names and rule.metric != ANY_METRIC:
            reason = f"the rule asks for {rule.metric}, and the evaluation has none"
            nothing = MetricValue(rule.metric, "picture", "higher", None, error=reason)
            found.append(Comparison(rule, nothing, reason))
        found += [compare_metric(_fit_rule(rule, name, pair), name, pair, draw_corpus) for name in names]
    reason = "not asked: too few prompts are captions of the postcard world"
    return [
        *decide_checks(found, pair.rules),
        *(Check(rule.metric, rule.metric, "pass", reason, reported_only=True) for rule in skipped),
    ]


def find_names(rule: Rule, pair: RunPair) -> list[str]:
    """Metrics that the rule is about, as the baseline (or else the candidate) names them.

    `*` takes in what only the candidate was measured with, for a metric that the baseline lacks is not compared; and of
    what is measured against a baseline only what the candidate was asked for in vain.
    """
    run = pair.baseline if pair.baseline is not None and rule.needs_baseline else pair.candidate
    if rule.metric != ANY_METRIC:
        return _match(rule.metric, [metric.name for metric in run.list_metrics()])
    found = [
        *(metric.name for metric in run.list_metrics() if metric.scope != "paired"),
        *(metric.name for metric in pair.candidate.list_metrics() if metric.scope != "paired" or metric.error),
    ]
    others = [other for other in pair.rules.rules if other is not rule and _is_asked(other, pair)]
    named = {name for other in others for name in _match(other.metric, found)}
    return [name for name in dict.fromkeys(found) if name not in named | SEEN_BY_OTHER_CHECKS]


def _fit_rule(rule: Rule, name: str, pair: RunPair) -> Rule:
    """`*` takes in corpus metrics whose noise nobody can tell; these are shown only."""
    metric = pair.candidate.evaluation.find_metric(name)
    unknown = metric is not None and metric.scope == "corpus" and name.partition(":")[0] not in RESAMPLED
    return replace(rule, test="report") if rule.metric == ANY_METRIC and unknown else rule


def _match(asked: str, names: list[str]) -> list[str]:
    """`clip_score:*` matches `clip_score` and `clip_score:any-extractor`."""
    if not asked.endswith(":*"):
        return [name for name in names if name == asked]
    base = asked.removesuffix(":*")
    return [name for name in names if name == base or name.startswith(f"{base}:")]


def _is_asked(rule: Rule, pair: RunPair) -> bool:
    """Rules of the postcard world apply where all prompts are its captions, or as many as a check needs."""
    if rule.prompts == "any":
        return True
    prompts = (pair.baseline or pair.candidate).list_values("prompt")
    captions = sum(bool(prompt) and _is_caption(prompt) for prompt in prompts)
    return captions >= min(rule.minimum_rows or pair.rules.minimum_rows, len(prompts))


@lru_cache(maxsize=100_000)
def _is_caption(prompt: str) -> bool:
    try:
        parse_caption(prompt)
    except CaptionError:
        return False
    return True
