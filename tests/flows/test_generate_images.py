"""The flow through a real Prefect server, in this process."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State

from dgate_core.errors import ConfigError, RunMismatchError
from dgate_core.runs.settings import RunSettings
from flows.generate_images import generate_images
from flows.generate_lane import generate_lane
from tests.flows.conftest import list_prompts, write_manifest
from tests.flows.run_checks import check_every_row_once

FLOW_ONLY = {"manifest", "out", "execution", "settings"}


def run_flow(*arguments: Any, **parameters: Any) -> State[Any]:
    state = generate_images(*arguments, **parameters, return_state=True)
    assert isinstance(state, State)
    return state


def test_flow_makes_a_run_with_few_api_objects(api: str, checkpoint: str, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.jsonl", [*list_prompts(24), {"prompt": ""}])
    out = tmp_path / "run"
    state = run_flow(
        manifest, str(out), model=checkpoint, precision="float32", settings={"rows_per_shard": 8, "png_level": 2}
    )
    outcome = state.result()
    assert outcome["state"] == "completed_with_errors"
    assert (outcome["counts"]["ok"], outcome["counts"]["error"]) == (24, 1)
    assert Path(outcome["gallery"]).is_file()
    with get_client(sync_client=True) as client:
        run_id = state.state_details.flow_run_id
        assert run_id is not None
        artifacts = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        )
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])))
    shown = {artifact.key: artifact for artifact in artifacts}
    assert set(shown) == {"dgate-progress", "dgate-table", "dgate-markdown"}
    assert len(artifacts) == 3
    assert shown["dgate-progress"].data == 100.0
    assert str(shown["dgate-table"].data).count('"committed"') == 3
    assert "prompt" in str(shown["dgate-markdown"].data)
    assert outcome["gallery"] in str(shown["dgate-markdown"].data)
    assert sorted(task.name.rpartition("-")[0] for task in tasks) == ["finish", "gallery", "plan", "run lanes"]


def test_same_parameters_again_make_nothing_anew(api: str, checkpoint: str, tmp_path: Path) -> None:
    manifest, out = write_manifest(tmp_path / "m.jsonl", list_prompts(4)), tmp_path / "run"
    first = run_flow(manifest, str(out), model=checkpoint, precision="float32").result()
    times = {path: path.stat().st_mtime_ns for path in out.glob("shards/**/*") if path.is_file()}
    second = run_flow([manifest], str(out), model=checkpoint, precision="float32").result()
    assert {path: path.stat().st_mtime_ns for path in out.glob("shards/**/*") if path.is_file()} == times
    assert first["counts"] == second["counts"]
    check_every_row_once(out, 4)


def test_mistakes_end_the_flow_with_their_own_error(api: str, checkpoint: str, tmp_path: Path) -> None:
    manifest, out = write_manifest(tmp_path / "m.jsonl", list_prompts(2)), tmp_path / "run"
    unknown = run_flow(manifest, str(out), model=checkpoint, settings={"rows_per_sharf": 8})
    with pytest.raises(ConfigError, match="rows_per_shard"):
        unknown.result()
    run_flow(manifest, str(out), model=checkpoint, precision="float32")
    other = run_flow(manifest, str(out), model=checkpoint, precision="float32", seed=7)
    with pytest.raises(RunMismatchError, match="seed"):
        other.result()


def test_form_agrees_with_the_settings() -> None:
    parameters = inspect.signature(generate_images.fn).parameters
    settings = {field.name: field.default for field in fields(RunSettings)}
    assert set(parameters) - FLOW_ONLY <= set(settings)
    assert {name: parameters[name].default for name in parameters if name in settings} == {
        name: settings[name] for name in parameters if name in settings
    }


@pytest.mark.parametrize("flow", [generate_images, generate_lane], ids=["generate_images", "generate_lane"])
def test_every_field_of_the_form_is_described(flow: Any) -> None:
    described = {name: field.get("description") for name, field in flow.parameters.properties.items()}
    assert [name for name, text in described.items() if not text] == []
