"""The report of an evaluation as markdown, for a pull request or a flow's artifact."""

from __future__ import annotations

from dgate_core.evaluation.gate.verdict import Check
from dgate_core.evaluation.results import EVALUATION_PAGE, MetricValue
from reports.evaluation.collect import AttributeRow, CollectedEvaluation
from reports.evaluation.html import order_checks, view_metric
from reports.evaluation.numbers import format_share
from reports.evaluation.words import describe_effect, describe_verdict, name_check, name_decision, name_verdict
from reports.markdown import escape_text, format_cell

VALUES_SHOWN = 5


def summarise_evaluation(collected: CollectedEvaluation) -> str:
    """Verdict, checks, metrics, the worst values of each attribute, and what could not be measured."""
    title = f"# {name_verdict(collected)}: {escape_text(collected.run.name)}"
    parts = [title, describe_verdict(collected), _list_facts(collected)]
    if collected.verdict:
        parts.append(_table_checks(order_checks(collected.verdict)))
    parts.append(_table_metrics(collected))
    if collected.attributes:
        parts.append(_table_attributes(collected.attributes))
    if collected.gaps:
        lines = [f"- {escape_text(gap.what)}: {format_cell(gap.why)}" for gap in collected.gaps]
        parts.append("\n".join(["## What could not be measured", "", *lines]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _list_facts(collected: CollectedEvaluation) -> str:
    evaluation = collected.evaluation
    lines = [f"- pictures: {evaluation.n_expected:,}"]
    if collected.baseline:
        lines.append(f"- baseline: {escape_text(collected.baseline_name)}")
    if collected.verdict:
        lines.append(f"- rules: {escape_text(collected.verdict.rules)}")
    if evaluation.reference:
        lines.append(f"- reference: {escape_text(evaluation.reference)}")
    if evaluation.defects:
        defects = ", ".join(f"{count:,} {escape_text(name)}" for name, count in evaluation.defects.items())
        lines.append(f"- defects: {defects}")
    lines.append(f"- [page with pictures](<{collected.uri}/{EVALUATION_PAGE}>)")
    return "\n".join(lines)


def _table_checks(checks: list[Check]) -> str:
    rows = [
        f"| {'Reported' if check.reported_only else name_decision(check.decision)} | {format_cell(name_check(check))} "
        f"| {describe_effect(check)} | {check.n_used:,} of {check.n_expected:,} | {format_cell(check.reason)} |"
        for check in checks
    ]
    head = ["## Checks", "", "| | rule | effect (interval) | pictures | why |", "|---|---|---:|---:|---|"]
    return "\n".join([*head, *rows])


def _table_metrics(collected: CollectedEvaluation) -> str:
    rows = [_describe_metric(metric, collected) for metric in collected.evaluation.metrics]
    head = [
        "## Metrics",
        "",
        "| metric | value | 95 % interval | baseline | change | pictures |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    return "\n".join([*head, *rows])


def _describe_metric(metric: MetricValue, collected: CollectedEvaluation) -> str:
    name = f"{format_cell(metric.name)} {'↑' if metric.better == 'higher' else '↓'}"
    used = f"{metric.n_used:,} of {metric.n_expected:,}"
    if metric.error is not None:
        return f"| {name} | not measured | | | | {used} |"
    view = view_metric(metric, collected)
    return f"| {name} | {view.value} | {view.interval} | {view.baseline} | {view.change} | {used} |"


def _table_attributes(attributes: dict[str, tuple[AttributeRow, ...]]) -> str:
    rows = [
        _describe_value(attribute, row) for attribute, values in attributes.items() for row in values[:VALUES_SHOWN]
    ]
    title = f"## By attribute, the worst {VALUES_SHOWN} of each"
    head = "| attribute | value | right | baseline | pictures |"
    return "\n".join([title, "", head, "|---|---|---:|---:|---:|", *rows])


def _describe_value(attribute: str, row: AttributeRow) -> str:
    before = "" if row.baseline is None else format_share(row.baseline)
    return f"| {format_cell(attribute)} | {format_cell(row.value)} | {format_share(row.share)} | {before} | {row.n:,} |"
