"""A candidate through the whole way into production, with a real Prefect server: passed, failed, and asked again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State

from dgate_core.errors import ModelError
from dgate_core.evaluation.gate.verdict import read_verdict
from dgate_core.models.aliases import REGISTRY_VARIABLE, read_aliases, resolve_alias
from dgate_core.models.promotion import promote_checkpoint
from dgate_core.storage import open_storage
from flows.evaluate_checkpoint import evaluate_checkpoint
from tests.flows.conftest import list_prompts, write_manifest
from tests.prefect_server import wait_for

RULES = """
description: the pictures are the baseline's, nearly
minimum_rows: 4
rules:
  - {metric: psnr, test: value, bound: {window: [30, 100]}}
  - {metric: "*"}
"""


@pytest.fixture
def contest(tmp_path: Path, checkpoint: str, api: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The checkpoint is in production; prompts and rules."""
    monkeypatch.setenv(REGISTRY_VARIABLE, str(tmp_path / "models.json"))
    monkeypatch.setenv("DGATE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rules.yaml").write_text(RULES)
    promote_checkpoint("production", checkpoint, "by hand")
    return {
        "suite": write_manifest(tmp_path / "prompts.jsonl", list_prompts(4)),
        "rules": str(tmp_path / "rules.yaml"),
        "out": str(tmp_path / "contests"),
        "metrics": ["sanity", "psnr"],
        "settings": {"precision": "float32", "num_inference_steps": 2},
    }


def run_flow(**parameters: Any) -> State[Any]:
    state = evaluate_checkpoint(device="cpu", return_state=True, **parameters)
    assert isinstance(state, State)
    return state


def count_events(name: str, model: str) -> int:
    wanted = {"event": {"name": [name]}, "resource": {"id": [f"dgate.gate.{model}"]}}
    with get_client(sync_client=True) as client:
        found = client._client.post("/events/filter", json={"filter": wanted})
    return len(found.raise_for_status().json()["events"])


def test_a_candidate_that_passes_moves_the_alias(contest: dict[str, Any], checkpoint: str, tmp_path: Path) -> None:
    candidate = str(shutil.copytree(checkpoint, tmp_path / "same"))
    record = run_flow(candidate=candidate, **contest).result()
    assert record["passed"] is True, record["checks"]
    assert (record["promoted"], resolve_alias("production")) == (candidate, candidate)
    history = read_aliases()["production"].history
    assert [each.model for each in history] == [checkpoint, candidate]
    assert record["candidate"] in history[-1].reason
    assert Path(record["page"]).is_file()
    wait_for(lambda: count_events("dgate.gate.passed", candidate) == 1, 30)

    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("contests/*/*/shards/**/*") if path.is_file()}
    again = run_flow(candidate=candidate, **{**contest, "alias": None}).result()
    assert again["promoted"] == ""
    assert {path: path.stat().st_mtime_ns for path in times} == times, "rows that exist are not made again"


def test_a_candidate_that_fails_fails_the_flow_run_and_promotes_nothing(
    contest: dict[str, Any], checkpoint: str, tmp_path: Path
) -> None:
    from tests.tiny import make_sd

    candidate = str(make_sd(tmp_path / "other", seed=1))
    state = run_flow(candidate=candidate, **contest)
    assert state.is_failed()
    assert "the gate says fail: psnr" in str(state.message)
    assert resolve_alias("production") == checkpoint
    run = next(path.parent for path in tmp_path.glob("contests/*/model-*/evaluation") if (path / "gate.json").exists())
    verdict = read_verdict(open_storage(run))
    assert [check.metric for check in verdict.list_checks("fail")] == ["psnr"]
    wait_for(lambda: count_events("dgate.gate.failed", candidate) == 1, 30)


def test_without_a_model_in_production_there_is_nothing_to_compare_with(
    contest: dict[str, Any], checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(REGISTRY_VARIABLE, str(tmp_path / "empty.json"))
    with pytest.raises(ModelError, match="dgate models promote production"):
        run_flow(candidate=checkpoint, **contest).result()
