"""From effects to decisions, with the correction for asking many questions at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from dgate_core.evaluation.gate.bootstrap import Estimate, adjust_p_values
from dgate_core.evaluation.gate.comparison import Comparison
from dgate_core.evaluation.gate.rules import GateRules
from dgate_core.evaluation.gate.verdict import Check, Decision

Decider = Callable[[Comparison, Check, GateRules, int], tuple[Decision, str]]
"""Also takes the number of checks in the `worse` family; gives the decision and why."""


def decide_checks(comparisons: Sequence[Comparison], rules: GateRules) -> list[Check]:
    """One check for each comparison, in their order.

    The `worse` rules form a family: their p-values are adjusted (Holm), so that the chance that any of them fails an
    equally good candidate is `significance`. `within` must hold for every rule at once, which needs no correction.
    """
    family = [each for each in comparisons if each.rule.test == "worse" and each.estimate is not None]
    p_values = [_find_p_value(each) for each in family]
    adjusted = {id(each): p for each, p in zip(family, adjust_p_values(p_values), strict=True)}
    return [_decide(each, rules, len(family), adjusted.get(id(each))) for each in comparisons]


def _find_p_value(found: Comparison) -> float:
    """Of harm; for a metric that should stay the same, of a difference to either side."""
    assert found.estimate is not None
    if find_direction(found) == "both":
        return min(1.0, 2 * min(found.estimate.find_p_value(1), found.estimate.find_p_value(-1)))
    return found.estimate.find_p_value(_find_sign(found))


def find_direction(found: Comparison) -> str:
    """The rule's direction, or the metric's own."""
    return found.rule.direction or found.metric.better


def _find_sign(found: Comparison) -> int:
    return 1 if find_direction(found) == "higher" else -1


def _decide(found: Comparison, rules: GateRules, family: int, p_value: float | None) -> Check:
    check = _describe(found, rules, family, p_value)
    minimum = found.rule.minimum_rows or rules.minimum_rows
    if found.failure:
        return replace(check, decision="fail", reason=found.failure, reported_only=False)
    if found.rule.test == "report":
        return check
    if found.n_used < minimum:
        reason = f"{found.n_used:,} rows, and the rule needs {minimum:,}"
        return replace(check, decision="fail", reason=reason)
    deciders: dict[str, Decider] = {"worse": _decide_worse, "within": _decide_within, "value": _decide_value}
    decision, reason = deciders[found.rule.test](found, check, rules, family)
    if found.n_worst:
        reason += f"; {found.n_worst:,} rows without a sound picture count as the worst"
    if found.n_unscored:
        reason += f"; {found.n_unscored:,} rows have no score in either run and are left out"
    return replace(check, decision=decision, reason=reason)


def _describe(found: Comparison, rules: GateRules, family: int, p_value: float | None) -> Check:
    """The check before it is decided."""
    confidence = 1 - 2 * rules.significance / family if p_value is not None else rules.confidence
    estimate, interval = found.estimate, found.metric.interval
    if estimate is not None:
        interval = estimate.find_interval(confidence)
    return Check(
        rule=found.rule.metric,
        metric=found.metric.name,
        decision="pass",
        reason="reported, not judged",
        better=found.metric.better,
        baseline=found.baseline,
        candidate=found.candidate,
        effect=estimate.value if estimate else found.candidate,
        interval=interval,
        confidence=confidence if interval else None,
        bound=_find_allowed(found),
        p_value=p_value,
        n_used=found.n_used,
        n_expected=found.n_expected,
        n_worst=found.n_worst,
        reported_only=found.rule.test == "report",
    )


def _find_allowed(found: Comparison) -> tuple[float | None, float | None] | None:
    """Least and greatest effect that is allowed."""
    bound, direction = found.rule.bound, find_direction(found)
    if found.rule.test == "report":
        return None
    if bound.kind == "window" or direction == "both":
        return bound.low, bound.high
    return (bound.low, None) if direction == "higher" else (None, bound.high)


def _decide_worse(found: Comparison, check: Check, rules: GateRules, family: int) -> tuple[Decision, str]:
    estimate = found.estimate
    assert estimate is not None
    assert check.p_value is not None
    assert check.interval is not None
    harm, limit = _find_harm(found, estimate), found.rule.bound.high
    told = f"{_tell(found, estimate.value)} (corrected p = {check.p_value:.2g})"
    if check.p_value <= rules.significance and harm > 0 and harm >= limit:
        return "fail", f"worse beyond noise: {told}"
    if estimate.is_smooth and family > rules.significance * len(estimate.draws):
        return "undecided", f"{len(estimate.draws):,} resamples cannot tell {rules.significance:g}: {told}"
    reach = max(check.interval[1] - estimate.value, estimate.value - check.interval[0])
    resolution = found.rule.resolution
    if resolution is not None and reach > resolution:
        needed = math.ceil(found.n_used * (reach / resolution) ** 2)
        return "undecided", f"noise could hide {reach:.3g}; about {needed:,} rows would tell {resolution:.3g}: {told}"
    return "pass", f"not worse beyond noise, which could hide {max(reach, limit):.2g}: {told}"


def _find_harm(found: Comparison, estimate: Estimate) -> float:
    """How far the effect lies on the bad side."""
    return abs(estimate.value) if find_direction(found) == "both" else -_find_sign(found) * estimate.value


def _decide_within(found: Comparison, check: Check, *_: object) -> tuple[Decision, str]:
    assert check.bound is not None
    if check.interval is None or check.effect is None:
        return "undecided", f"{found.metric.name} has no interval"
    low, high = check.bound
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    told = f"{_tell(found, check.effect)}, interval {check.interval[0]:.4g} to {check.interval[1]:.4g}"
    if low <= check.interval[0] and check.interval[1] <= high:
        return "pass", f"within the bound: {told}"
    if check.interval[1] < low or check.interval[0] > high:
        return "fail", f"outside the bound: {told}"
    return "undecided", f"the interval reaches over the bound: {told}{_tell_rows(found, check, low, high)}"


def _tell_rows(found: Comparison, check: Check, low: float, high: float) -> str:
    """How many rows would decide, if the effect stays as it is."""
    assert check.interval is not None
    assert check.effect is not None
    room = min(check.effect - low, high - check.effect)
    reach = max(check.interval[1] - check.effect, check.effect - check.interval[0])
    return f"; about {math.ceil(found.n_used * (reach / room) ** 2):,} rows would decide" if room > 0 else ""


def _decide_value(found: Comparison, check: Check, *_: object) -> tuple[Decision, str]:
    assert check.bound is not None
    assert check.effect is not None
    low, high = check.bound
    inside = (low is None or low <= check.effect) and (high is None or check.effect <= high)
    return ("pass" if inside else "fail"), f"{_tell(found, check.effect)} is {'in' if inside else 'out of'} bounds"


def _tell(found: Comparison, effect: float) -> str:
    """The effect in words: `0.561 to 0.542 (-3.4 %)`."""
    if found.baseline is None or found.candidate is None or not found.rule.needs_baseline:
        return f"{effect:.6g}"
    change = f"{100 * effect:+.2f} %" if found.rule.bound.kind == "relative" else f"{effect:+.4g}"
    return f"{found.baseline:.4g} to {found.candidate:.4g} ({change})"
