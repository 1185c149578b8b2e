"""A run's result as a page of markdown, for a flow's artifact or a pull request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reports.summary import RunSummary, format_duration, format_rate, read_summary

MESSAGE_LIMIT = 160
FAILURES_SHOWN = 20


def summarise_run(
    run_json: Mapping[str, Any],
    failures: Mapping[str, int],
    gallery_uri: str,
    examples: Mapping[str, str] | None = None,
) -> str:
    """Counts, speed, time by stage and failures by code as markdown.

    Args:
        run_json: Content of run.json; missing keys leave their line out.
        failures: Error code to number of rows.
        gallery_uri: Where the gallery lies; empty when there is none.
        examples: Error code to one of its messages.
    """
    run = read_summary(run_json)
    parts = [f"# {escape_text(run.name)}: {run.state.replace('_', ' ')}", _list_figures(run)]
    if gallery_uri:
        parts.append(f"[Open the gallery](<{gallery_uri}>)")
    if failures:
        parts.append(_table_failures(failures, examples or {}))
    if run.stages:
        parts.append(_table_stages(run))
    return "\n\n".join(part for part in parts if part) + "\n"


def _list_figures(run: RunSummary) -> str:
    lines = [f"- {status}: {count:,}" for status, count in run.counts.items() if count or status == "ok"]
    if run.pictures_per_second is not None:
        lines.append(f"- pictures per second: {format_rate(run.pictures_per_second)}")
    if run.wall_seconds is not None:
        lines.append(f"- wall time: {format_duration(run.wall_seconds)}")
    if run.models:
        lines.append(f"- model: {escape_text(', '.join(run.models))}")
    return "\n".join(lines)


def _table_failures(failures: Mapping[str, int], examples: Mapping[str, str]) -> str:
    ranked = sorted(failures.items(), key=lambda item: (-item[1], item[0]))
    rows = [
        f"| {_code(code)} | {count:,} | {format_cell(examples.get(code, ''))} |"
        for code, count in ranked[:FAILURES_SHOWN]
    ]
    rest = ranked[FAILURES_SHOWN:]
    if rest:
        rows.append(f"| {len(rest):,} more codes | {sum(count for _, count in rest):,} | |")
    return "\n".join(["## Failures", "", "| code | rows | for example |", "|---|---:|---|", *rows])


def _table_stages(run: RunSummary) -> str:
    rows = [
        f"| {format_cell(stage.name)} | {format_duration(stage.seconds)} | {stage.share:.0%} |" for stage in run.stages
    ]
    return "\n".join(["## Time by stage", "", "| stage | time | share |", "|---|---:|---:|", *rows])


def format_cell(text: str) -> str:
    """Text that stays inside one cell of a table."""
    flat = " ".join(text.split())
    return escape_text(flat if len(flat) <= MESSAGE_LIMIT else flat[: MESSAGE_LIMIT - 1] + "…")


def _code(text: str) -> str:
    return "`" + text.replace("`", "'").replace("|", "\\|") + "`"


def escape_text(text: str) -> str:
    """Markdown's and HTML's own characters, made plain."""
    for mark in "\\`*_[]|":
        text = text.replace(mark, "\\" + mark)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
