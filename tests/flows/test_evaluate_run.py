"""The flow `evaluate_run`, and runs that are scored as they are made, through a real Prefect server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import State

from dgate_core.errors import UsageError
from dgate_core.storage import open_storage
from flows.evaluate_run import evaluate_run
from flows.generate_images import generate_images
from tests.flows.conftest import Done, list_prompts, write_manifest
from tests.postcard_run import draw_postcards, write_run


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGATE_CACHE", str(tmp_path / "cache"))


def read_artifacts(state: State[Any]) -> dict[str | None, Any]:
    run_id = state.state_details.flow_run_id
    assert run_id is not None
    with get_client(sync_client=True) as client:
        wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        return {artifact.key: artifact.data for artifact in client.read_artifacts(artifact_filter=wanted)}


def test_flow_shows_the_metrics_with_their_intervals(api: str, tmp_path: Path) -> None:
    write_run(open_storage(tmp_path / "run"), draw_postcards(8))
    state = evaluate_run(str(tmp_path / "run"), metrics=["sanity", "attribute_accuracy", "ssim"], return_state=True)
    assert isinstance(state, State)
    with pytest.raises(UsageError, match="--baseline"):
        state.result()
    state = evaluate_run(str(tmp_path / "run"), metrics=["sanity", "attribute_accuracy"], return_state=True)  # type: ignore[assignment]
    found = state.result()
    assert [metric["value"] for metric in found["metrics"]] == [1.0, 1.0]
    assert found["page"] == str(tmp_path / "run" / "report" / "evaluation.html")
    assert Path(found["page"]).is_file()
    shown = read_artifacts(state)
    rows = json.loads(shown["dgate-table"])
    assert [row["metric"] for row in rows] == ["sanity", "attribute_accuracy"]
    assert rows[0]["95 %"] == "0.67559 to 1", "eight of eight are no proof that all would be"
    assert "accuracy" in shown["dgate-markdown"]


def test_a_run_is_scored_as_it_is_made(api: str, checkpoint: str, call: Callable[..., Done], tmp_path: Path) -> None:
    manifest, out = write_manifest(tmp_path / "m.jsonl", list_prompts(3)), tmp_path / "run"
    done = call("generate", manifest, "--out", str(out), "--model", checkpoint, "--score", "sanity", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["evaluation"] == str(out / "evaluation" / "evaluation.json")
    evaluation = json.loads((out / "evaluation" / "evaluation.json").read_text())
    assert [(metric["name"], metric["n_used"]) for metric in evaluation["metrics"]] == [("sanity", 3)]
    assert evaluation["seconds"]["decode"] == 0, "the pictures were seen while they were made"


def test_what_cannot_be_scored_is_told_before_anything_is_made(api: str, checkpoint: str, tmp_path: Path) -> None:
    manifest, out = write_manifest(tmp_path / "m.jsonl", list_prompts(1)), tmp_path / "run"
    state = generate_images(manifest, str(out), model=checkpoint, settings={"score": ["fid"]}, return_state=True)
    with pytest.raises(UsageError, match="--reference"):
        state.result()  # type: ignore[union-attr]
    assert not out.exists()


@pytest.mark.parametrize("name", ["run", "reference", "baseline", "metrics", "device"])
def test_every_field_of_the_form_is_described(name: str) -> None:
    assert evaluate_run.parameters.properties[name].get("description")
