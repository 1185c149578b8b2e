"""The verdict in words."""

from __future__ import annotations

from dgate_core.evaluation.gate.verdict import Check
from reports.evaluation.collect import CollectedEvaluation
from reports.evaluation.numbers import format_interval, format_number, measure_spread

_NAMES = {"pass": "Pass", "fail": "Fail", "undecided": "Could not decide"}
NOT_GATED = "Not gated"


def name_decision(decision: str) -> str:
    """`Pass`, `Fail`, `Could not decide`."""
    return _NAMES[decision]


def name_check(check: Check) -> str:
    """The metric that was compared, else the rule: one rule may stand for several metrics."""
    return check.metric or check.rule


def name_verdict(collected: CollectedEvaluation) -> str:
    """The decision in a word or three, also where there is none."""
    return name_decision(collected.verdict.decision) if collected.verdict else NOT_GATED


def describe_verdict(collected: CollectedEvaluation) -> str:
    """One sentence: how many checks ended how, and the first that decided."""
    verdict = collected.verdict
    if verdict is None:
        return "These are the numbers of one run; no rules were held against them."
    counting = [check for check in verdict.checks if not check.reported_only]
    if verdict.decision == "pass":
        return f"All {len(counting)} checks passed."
    wrong = verdict.list_checks(verdict.decision)
    verb = "failed" if verdict.decision == "fail" else "could not be decided"
    return f"{len(wrong)} of {len(counting)} checks {verb}: {', '.join(map(name_check, wrong))}."


def write_effect(check: Check) -> str:
    """`−0.021`; empty when nothing was measured."""
    if check.effect is None:
        return ""
    spread = measure_spread(check.interval) or abs(check.candidate or check.effect) / 100 or None
    return format_number(check.effect, spread, signed=True)


def describe_effect(check: Check) -> str:
    """`−0.021 (−0.028 to −0.014)`; empty when nothing was measured."""
    effect = write_effect(check)
    return f"{effect} ({format_interval(check.interval, signed=True)})" if effect and check.interval else effect
