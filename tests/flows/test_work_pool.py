"""Lanes on a work pool: a real server, two process workers, a lane killed with SIGKILL."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import run_deployment

from dgate_core.errors import RunError
from dgate_core.runs.claims import read_claim
from dgate_core.runs.layout import name_claim_prefix
from dgate_core.storage import open_storage
from flows.generate_images import generate_images
from tests.flows.conftest import list_prompts, write_manifest
from tests.flows.run_checks import check_every_row_once
from tests.prefect_server import Up, wait_for

ROWS = 40


@pytest.mark.timeout(900)
def test_killed_lane_is_replaced_and_every_row_is_made_once(api: str, up: Up, checkpoint: str, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.jsonl", list_prompts(ROWS, num_inference_steps=60))
    out = up.log.parent / "of-a-pool"  # relative in the form: it begins where `dgate up` was given
    parameters: dict[str, Any] = {
        "manifest": manifest,
        "out": out.name,
        "model": checkpoint,
        "precision": "float32",
        "batch_size": 2,
    }
    parameters["settings"] = {"rows_per_shard": 10, "lease_seconds": 60}
    name = "generate_images/generate_images"
    submitted = run_deployment(name, parameters=parameters, timeout=0, as_subflow=False)
    assert isinstance(submitted, FlowRun)
    wait_for(lambda: bool(list(out.glob("shards/*/_parts/*"))), 400)
    killed = kill_a_lane(out)
    with get_client(sync_client=True) as client:
        wait_for(lambda: is_final(client.read_flow_run(submitted.id)), 400)
        driver = client.read_flow_run(submitted.id)
        lanes = client.read_flow_runs(flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[find_tag(client)])))
        tasks = client.read_task_runs(limit=200)
    assert driver.state is not None
    assert driver.state.type == StateType.COMPLETED, up.log.read_text()
    results = check_every_row_once(out, ROWS)
    assert json.loads((out / "run.json").read_text())["state"] == "completed"
    assert {row["lane"] for row in results} <= {"lane-0", "lane-1"}
    runs = Counter(run.parameters["lane"] for run in lanes)
    assert runs[killed] >= 2, "the killed lane was submitted again"
    first = min((run for run in lanes if run.parameters["lane"] == killed), key=lambda run: str(run.idempotency_key))
    assert first.state is not None
    assert first.state.type == StateType.CRASHED
    assert len([task for task in tasks if task.flow_run_id == driver.id]) < ROWS, "objects per lane, not per row"


def kill_a_lane(run: Path) -> str:
    """Kills a lane that is at work, by the process id in its claim; returns its name."""
    storage = open_storage(run)
    for shard in range(ROWS // 10):
        claim = read_claim(storage, name_claim_prefix(shard))
        if claim is not None and claim.is_held():
            os.kill(claim.holder.pid, signal.SIGKILL)
            return claim.holder.lane
    raise AssertionError("no lane is at work")


def is_final(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_final()


def find_tag(client: Any) -> str:
    """The tag that the lanes of the only run on the pool share."""
    runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(any_=["dgate"])), limit=200)
    return next(tag for run in runs for tag in run.tags if tag.startswith("dgate-run:"))


@pytest.mark.parametrize(
    ("constant", "name", "lanes"), [("POOL", "not-there", None), ("DEPLOYMENT", "generate_lane/not-there", 1)]
)
def test_what_the_server_lacks_is_named(
    api: str,
    checkpoint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    constant: str,
    name: str,
    lanes: int | None,
) -> None:
    monkeypatch.setattr(f"tasks.pool_lanes.{constant}", name)
    manifest = write_manifest(tmp_path / "m.jsonl", list_prompts(1))
    state = generate_images(
        manifest,
        str(tmp_path / "run"),
        model=checkpoint,
        precision="float32",
        execution="work_pool",
        lanes=lanes,
        return_state=True,
    )
    with pytest.raises(RunError, match="not-there") as refused:
        state.result()
    assert "dgate up" in refused.value.next_step
