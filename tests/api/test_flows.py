"""The flows serve_images and generate_one through a real Prefect server, in this process."""

from __future__ import annotations

import threading
from contextvars import copy_context
from pathlib import Path

import httpx
from openai import OpenAI
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from dgate_core.api.batch_runner import BatchOrder
from dgate_core.runs.settings import RunSettings
from flows.generate_one import generate_one
from flows.serve_images import serve_images
from tests.run_lab import wait_for


def read_artifact(key: str) -> str | None:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
    return str(found[0].data) if found else None


def test_a_server_is_used_and_stops_when_nobody_asks(api: str, checkpoint: str, tmp_path: Path) -> None:
    asked: list[str] = []

    def ask() -> None:
        text = wait_for(lambda: read_artifact("dgate-api"))
        url = text.partition("OPENAI_BASE_URL=")[2].partition("`")[0]
        wait_for(lambda: httpx.get(url.removesuffix("v1") + "readyz").status_code == 200)
        answer = OpenAI(base_url=url, api_key="none").images.generate(prompt="a boat")
        asked.extend(entry.b64_json or "" for entry in answer.data or ())

    client = threading.Thread(target=copy_context().run, args=(ask,))
    client.start()
    settings = {"folder": str(tmp_path / "api"), "precision": "float32"}
    reason = serve_images([f"tiny={checkpoint}"], minutes=2.0, idle_minutes=0.05, device="cpu", settings=settings)
    client.join()
    assert reason == "idle"
    assert asked


def test_one_picture_from_the_form(api: str, checkpoint: str, tmp_path: Path) -> None:
    files = generate_one("a red boat", str(tmp_path), checkpoint, n=2, num_inference_steps=1, seed=3, device="cpu")
    assert [Image.open(file).size for file in files] == [(32, 32), (32, 32)]
    text = read_artifact("dgate-picture")
    assert text is not None
    assert "a red boat" in text


def test_a_batch_on_the_work_pool_is_one_flow_run(api: str, tmp_path: Path) -> None:
    from tasks.serve import PoolHandle, PoolRunner

    settings = RunSettings(model="no such model")
    handle = PoolRunner().submit(BatchOrder(str(tmp_path / "in.jsonl"), str(tmp_path / "run"), settings))
    assert isinstance(handle, PoolHandle)
    again = PoolRunner().submit(BatchOrder(str(tmp_path / "in.jsonl"), str(tmp_path / "run"), settings))
    assert handle.run_id == again.run_id  # type: ignore[attr-defined]
    end = wait_for(handle.poll, 120)
    assert end.state == "failed"
