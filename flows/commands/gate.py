"""`dgate gate`: may this run replace that one?"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from dgate_core.errors import DgateError

if TYPE_CHECKING:
    from dgate_core.evaluation.gate.verdict import Check, Verdict
    from dgate_core.storage import Storage

SHOWN = {"pass": "pass", "fail": "FAIL", "undecided": "????"}


@click.command("gate")
@click.argument("candidate")
@click.option("--baseline", metavar="RUN", help="The run to hold it against; rules with fixed windows need none.")
@click.option("--rules", default="regression", show_default=True, metavar="R", help="Preset or YAML file.")
@click.option("--reference", metavar="SET", help="Where the reference set of the evaluations is, if it has no card.")
@click.option("--device", default="cpu", show_default=True, help="For features that are not cached: cpu, cuda, mps.")
@click.option("--json", "as_json", is_flag=True, help="gate.json on stdout and nothing else.")
def command(candidate: str, baseline: str | None, as_json: bool, **options: str) -> int:
    """Judges CANDIDATE, an evaluated run, and writes evaluation/gate.json into it.

    Exit code 0 it passes, 1 it fails, 2 it could not be decided, which is not a pass. Presets: regression (no metric
    worse beyond noise), int8 (close to a 16-bit baseline), mlperf-sdxl (fixed windows).
    """
    from dgate_core.evaluation.gate.corpus_bootstrap import CorpusBootstrap
    from dgate_core.evaluation.gate.gate import judge_run
    from dgate_core.evaluation.gate.rules import read_rules
    from dgate_core.evaluation.gate.verdict import verdict_to_record, write_verdict
    from dgate_core.storage import open_storage

    rules, run = read_rules(options["rules"]), open_storage(candidate)
    other = open_storage(baseline) if baseline is not None else None
    verdict = judge_run(run, other, rules, CorpusBootstrap(options["device"], options["reference"]))
    write_verdict(run, verdict)
    page = show_verdict(run, baseline)
    if as_json:
        click.echo(json.dumps(verdict_to_record(verdict)))
    else:
        print_verdict(verdict)
        if page is not None:
            click.echo(f"report    {page}")
    return verdict.exit_code


def show_verdict(run: Storage, baseline: str | None) -> str | None:
    """Tells the trackers and draws the page anew; the verdict stands whether or not either succeeds.

    Returns:
        The page's address; None where there is no evaluation, or where it cannot be drawn, which is said.
    """
    from dgate_core.evaluation.results import EVALUATION_FILE
    from reports.evaluation.page import render_evaluation
    from reports.publish import publish_evaluation

    if not run.exists(EVALUATION_FILE):
        return None
    try:
        for outcome in publish_evaluation(run.uri, baseline).wait():
            click.echo(outcome.describe(run.uri), err=True)
        return run.uri_of(render_evaluation(run.uri, baseline))
    except DgateError as error:
        click.echo(f"the verdict is written, its page is not drawn: {error}", err=True)
        return None


def print_verdict(verdict: Verdict) -> None:
    """The decision, then a line for each check with what it saw."""
    click.echo(f"{verdict.decision.upper()}  {verdict.candidate}  against {verdict.baseline or 'fixed windows'}")
    width = max((len(check.metric or check.rule) for check in verdict.checks), default=0)
    for check in verdict.checks:
        shown = "info" if check.reported_only else SHOWN[check.decision]
        click.echo(f"{shown}  {check.metric or check.rule:{width}}  {describe_figures(check):54}  {check.reason}")


def describe_figures(check: Check) -> str:
    """Effect, interval, and n_used of n_expected."""
    effect = "" if check.effect is None else f"{check.effect:+.4g}"
    interval = "" if check.interval is None else f"[{check.interval[0]:+.3g}, {check.interval[1]:+.3g}]"
    counted = f"{check.n_used:,} of {check.n_expected:,}" if check.n_expected else ""
    return f"{effect:10} {interval:24} {counted:>18}"
