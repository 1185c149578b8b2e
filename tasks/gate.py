"""A candidate before the gate: what has to be made and compared, the verdict, and what follows from it."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import State, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.states import Failed

from dgate_core.config import build_settings
from dgate_core.errors import ConfigError, ModelError
from dgate_core.evaluation.gate.corpus_bootstrap import CorpusBootstrap
from dgate_core.evaluation.gate.gate import judge_run
from dgate_core.evaluation.gate.rules import read_rules
from dgate_core.evaluation.gate.verdict import Verdict, read_verdict, verdict_to_record, write_verdict
from dgate_core.evaluation.metric_request import parse_request
from dgate_core.manifest.suites import SUITE_SCHEME
from dgate_core.models.aliases import PRODUCTION, resolve_alias
from dgate_core.models.catalog import CATALOG, find_checkpoint
from dgate_core.models.promotion import promote_checkpoint
from dgate_core.models.spec import LocalCheckpoint
from dgate_core.registry import explain_unknown
from dgate_core.runs.settings import RunSettings
from dgate_core.storage import open_storage
from tasks.artifacts import UNREACHABLE, RunArtifact

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Contest:
    """Two runs to be made and compared."""

    manifest: str
    """Prompts of both."""
    candidate: str
    """Model, as `--model` takes it."""
    baseline: str
    """Model that it is held against."""
    candidate_run: str
    """Folder of the candidate's run; the same model, prompts and settings always have the same."""
    baseline_run: str
    """Folder of the baseline's run."""
    settings: Mapping[str, Any]
    """Of both runs: the baseline's own steps and guidance, unless others were given."""


@task(name="prepare contest", cache_policy=NO_CACHE, persist_result=False)
def prepare_contest(candidate: str, baseline: str, suite: str, out: str, settings: Mapping[str, Any]) -> Contest:
    """Finds both checkpoints, and where their runs belong.

    Raises:
        ModelError: one of the models is not to be had, or nothing is in production yet.
        ConfigError: a setting is unknown, is no value of its kind, or is not for the caller to choose.
    """
    typed = read_settings(settings, "model")
    models = [_name_model(name) for name in (candidate, baseline)]
    found = [find_checkpoint(model) for model in models]
    manifest = suite if "/" in suite or Path(suite).suffix or ":" in suite else f"{SUITE_SCHEME}{suite}"
    spec = found[1].spec
    own = {"num_inference_steps": spec.num_inference_steps, "guidance_scale": spec.guidance_scale}
    chosen = {**own, **typed}
    runs = [_name_run(out, manifest, model, each, chosen) for model, each in zip(models, found, strict=True)]
    return Contest(manifest, models[0], models[1], runs[0], runs[1], chosen)


def read_settings(settings: Mapping[str, Any], *decided: str) -> dict[str, Any]:
    """The settings of both runs as their types, which a command line gives as texts.

    Args:
        settings: By name.
        decided: Names of what the contest itself decides, and settings may not.

    Raises:
        ConfigError: a setting is unknown, is no value of its kind, or is decided.
    """
    taken = sorted(settings.keys() & set(decided))
    if taken:
        raise ConfigError(
            f"the setting {taken[0]} for both runs", "settings that leave the two sides apart", f"leave {taken[0]} out"
        )
    built = build_settings(RunSettings, settings)
    return {name: getattr(built, name) for name in settings}


def check_judgement(rules: str, metrics: Sequence[str] | None) -> None:
    """Sees before any work that rules and metrics are known.

    Raises:
        UsageError: one is not.
    """
    read_rules(rules)
    for name in metrics or ():
        parse_request(name)


def list_baseline_metrics(metrics: Sequence[str]) -> list[str]:
    """What the baseline is measured with: all but what would be measured against itself."""
    kept = [name for name in metrics if parse_request(name).scope != "paired"]
    return kept or (["sanity"] if metrics else [])


def _name_model(name: str) -> str:
    """The model behind an alias; a folder or file by its whole path."""
    model = resolve_alias(name)
    if model == PRODUCTION:
        error = explain_unknown("alias", name, [], ModelError)
        raise ModelError(error.got, "a model in production", f"run: dgate models promote {PRODUCTION} MODEL")
    path = Path(model).expanduser()
    return str(path.resolve()) if model not in CATALOG and path.exists() else model


def _name_run(out: str, manifest: str, model: str, checkpoint: LocalCheckpoint, settings: Mapping[str, Any]) -> str:
    """`OUT/SUITE/MODEL-0123456789`: rows that exist are found again, rows of other weights or settings never."""
    parts = [model, checkpoint.weights_hash, json.dumps(settings, sort_keys=True)]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:10]
    suite, name = (re.sub(r"[^\w.-]+", "-", text.rstrip("/").rpartition("/")[2]) for text in (manifest, model))
    return f"{out.rstrip('/')}/{suite}/{name}-{digest}"


@task(name="gate", cache_policy=NO_CACHE, persist_result=False, timeout_seconds=6 * 3600)
def judge_candidate(contest: Contest, rules: str, device: str) -> str:
    """Writes gate.json into the candidate's run and shows the verdict.

    Returns:
        The decision: pass, fail or undecided.
    """
    run, baseline = open_storage(contest.candidate_run), open_storage(contest.baseline_run)
    draws = CorpusBootstrap("cpu" if device == "auto" else device)
    verdict = judge_run(run, baseline, read_rules(rules), draws)
    write_verdict(run, verdict)
    show_verdict(verdict)
    return verdict.decision


def show_verdict(verdict: Verdict) -> None:
    """The checks as a table; the verdict stands without Prefect."""
    rows = [
        {
            "decision": "reported" if check.reported_only else check.decision,
            "check": check.metric or check.rule,
            "effect": "" if check.effect is None else f"{check.effect:+.4g}",
            "interval": "" if check.interval is None else f"{check.interval[0]:+.4g} to {check.interval[1]:+.4g}",
            "pairs": f"{check.n_used:,} of {check.n_expected:,}" if check.n_expected else "",
            "why": check.reason,
        }
        for check in verdict.checks
    ]
    try:
        with get_client(sync_client=True) as client:
            RunArtifact(client, "table").show(json.dumps(rows), f"Verdict: {verdict.decision}")
    except UNREACHABLE as error:
        logger.warning("the verdict could not be shown in Prefect: %s", error)


@task(name="promote", cache_policy=NO_CACHE, persist_result=False)
def promote_candidate(contest: Contest, alias: str | None) -> str:
    """Lets the alias stand for a candidate that has passed; nothing else is ever promoted.

    Returns:
        What the alias stands for now; empty when nothing was promoted.
    """
    verdict = read_verdict(open_storage(contest.candidate_run))
    if verdict.passed is not True or not alias:
        return ""
    return promote_checkpoint(alias, contest.candidate, f"passed {verdict.rules}: {verdict.candidate}").current.model


def conclude_gate(contest: Contest, page: str, promoted: str) -> dict[str, Any] | State[Any]:
    """Emits `dgate.gate.passed` or `dgate.gate.failed`; a verdict that is no pass fails the flow run."""
    verdict = read_verdict(open_storage(contest.candidate_run))
    record = {**verdict_to_record(verdict), "model": contest.candidate, "page": page, "promoted": promoted}
    name = "passed" if verdict.passed else "failed"
    resource = {"prefect.resource.id": f"dgate.gate.{contest.candidate}", "prefect.resource.name": contest.candidate}
    emit_event(f"dgate.gate.{name}", resource=resource, payload=record)
    if verdict.passed:
        return record
    failed = [*verdict.list_checks("fail"), *verdict.list_checks("undecided")]
    told = "; ".join(f"{check.metric or check.rule}: {check.reason}" for check in failed)
    return Failed(message=f"the gate says {verdict.decision}: {told}", data=record)
