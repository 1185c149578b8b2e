"""A collected evaluation as one page of HTML that needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np
from markupsafe import Markup

from dgate_core.evaluation.gate.verdict import Check, Verdict
from dgate_core.evaluation.results import MetricValue
from reports.evaluation.collect import CollectedEvaluation
from reports.evaluation.numbers import format_interval, format_number, format_share, measure_spread
from reports.evaluation.pairs import PicturePair, WorstPictures
from reports.evaluation.plots import draw_distribution, draw_effect, draw_history
from reports.evaluation.scores import list_picture_metrics
from reports.evaluation.words import describe_verdict, name_check, name_decision, write_effect
from reports.html import open_templates, read_template, to_script_json
from reports.summary import Stage, read_stages, read_time

STYLES = ("gallery.css", "evaluation.css")
SCRIPT = "compare.js"


@dataclass(frozen=True, slots=True)
class MetricView:
    """A metric as its row shows it."""

    metric: MetricValue
    """The number and what it depends on."""
    value: str
    """Written with the digits that its interval bears."""
    interval: str
    """Written; empty when there is none."""
    baseline: str
    """The baseline's number; empty when there is none to compare with."""
    change: str
    """Difference from the baseline; empty when there is none."""
    direction: str
    """better, worse, or same: within both intervals."""
    history: Markup | None
    """Plot; None when there is no earlier number."""
    n_earlier: int
    """Earlier numbers in the plot."""


@dataclass(frozen=True, slots=True)
class DistributionView:
    """How a metric's values are spread over the pictures."""

    metric: MetricValue
    """Whose values they are."""
    plot: Markup
    """The drawing."""
    mean: str
    """Of the run."""
    baseline_mean: str
    """Of the baseline; empty when there is none."""


@dataclass(frozen=True, slots=True)
class CheckView:
    """A rule of the gate as its row shows it."""

    check: Check
    """The rule and what came of it."""
    effect: str
    """Written; empty when nothing was measured."""
    interval: str
    """Written; empty when there is none."""
    plot: Markup | None
    """Effect and interval over what is allowed."""


def render_page(collected: CollectedEvaluation, worst: WorstPictures) -> str:
    """The page as HTML."""
    script = f'(() => {{\n"use strict";\n{read_template(SCRIPT)}}})();\n'
    environment = open_templates()
    environment.filters.update(share=format_share, points=write_points, decision=name_decision, check=name_check)
    return environment.get_template("evaluation.html.j2").render(
        found=collected,
        verdict=collected.verdict,
        sentence=describe_verdict(collected),
        checks=[view_check(check) for check in order_checks(collected.verdict)],
        metrics=[view_metric(metric, collected) for metric in collected.evaluation.metrics if metric.error is None],
        distributions=view_distributions(collected),
        stages=list_stages(collected.evaluation.seconds),
        absent=[metric for metric in collected.evaluation.metrics if metric.error is not None],
        moment=write_moment(read_time(collected.evaluation.created)),
        worst=worst,
        content=to_script_json(worst_to_content(worst, collected)),
        style="\n".join(read_template(name) for name in STYLES),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )


def order_checks(verdict: Verdict | None) -> list[Check]:
    """What failed first, then what is undecided, then what passed; what is only reported comes last."""
    ranks = {"fail": 0, "undecided": 1, "pass": 2}
    checks = verdict.checks if verdict else ()
    return sorted(checks, key=lambda check: (check.reported_only, ranks[check.decision]))


def view_check(check: Check) -> CheckView:
    """A rule with its numbers written and drawn."""
    if check.effect is None:
        return CheckView(check, "", "", None)
    effect = write_effect(check)
    interval = format_interval(check.interval, signed=True) if check.interval else ""
    plot = draw_effect(check.effect, check.interval, check.bound) if check.interval or check.bound else None
    return CheckView(check, effect, interval, plot)


def view_metric(metric: MetricValue, collected: CollectedEvaluation) -> MetricView:
    """A metric with its numbers written; it must have a value."""
    assert metric.value is not None
    spread = measure_spread(metric.interval) or abs(metric.value) / 100 or None
    before = collected.find_before(metric)
    known = before.value if before is not None else None
    points = collected.history.get(metric.name, ())
    return MetricView(
        metric=metric,
        value=format_number(metric.value, spread),
        interval=format_interval(metric.interval) if metric.interval else "",
        baseline="" if known is None else format_number(known, spread),
        change="" if known is None else format_number(metric.value - known, spread, signed=True),
        direction=find_direction(metric, before),
        history=draw_history(points) if len(points) > 1 else None,
        n_earlier=max(0, len(points) - 1),
    )


def find_direction(metric: MetricValue, before: MetricValue | None) -> str:
    """`better` or `worse` where the intervals do not overlap (or there are none), `same` where they do."""
    if metric.value is None or before is None or before.value is None or metric.value == before.value:
        return "same"
    if metric.interval and before.interval:
        low, high = max(metric.interval[0], before.interval[0]), min(metric.interval[1], before.interval[1])
        if low <= high:
            return "same"
    return "better" if (metric.value > before.value) == (metric.better == "higher") else "worse"


def view_distributions(collected: CollectedEvaluation) -> list[DistributionView]:
    """A plot for every metric that has a value for each picture."""
    views = []
    for metric in list_picture_metrics(collected.evaluation, collected.comparison):
        values = _keep_finite(collected.comparison.read_scores(metric.name))
        before = _keep_finite(collected.comparison.read_scores(metric.name, of_baseline=True))
        if len(values):
            means = [format_number(float(np.mean(group))) if len(group) else "" for group in (values, before)]
            views.append(DistributionView(metric, draw_distribution(values, before), *means))
    return views


def list_stages(seconds: Mapping[str, float]) -> tuple[Stage, ...]:
    """Time by stage, without the sum of all."""
    return read_stages({name: spent for name, spent in seconds.items() if name != "total"})


def worst_to_content(worst: WorstPictures, collected: CollectedEvaluation) -> dict[str, Any]:
    """What the page's script reads."""
    places = {row: place for place, row in enumerate(worst.pairs)}
    orders = [
        {"key": order.key, "label": order.label, "pairs": [places[row] for row in order.rows]} for order in worst.orders
    ]
    pairs = [_pair_to_content(pair) for pair in worst.pairs.values()]
    return {"orders": orders, "pairs": pairs, "hasBaseline": collected.comparison.has_baseline}


def write_moment(moment: datetime | None) -> str:
    """`4 May 2031, 12:30 UTC`; empty when it is not known."""
    return "" if moment is None else f"{moment.day} {moment:%b %Y, %H:%M UTC}"


def write_points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return format_number(share * 100, 10.0, signed=True)


def _pair_to_content(pair: PicturePair) -> dict[str, Any]:
    return {
        "id": pair.id,
        "prompt": pair.prompt,
        "seed": pair.seed,
        "now": {"picture": pair.candidate, "note": pair.candidate_note},
        "before": {"picture": pair.baseline, "note": pair.baseline_note},
        "scores": [asdict(line) for line in pair.scores],
    }


def _keep_finite(values: Any) -> Any:
    return np.array([]) if values is None else values[np.isfinite(values)]
