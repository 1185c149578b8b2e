"""Metrics of a server: what it is told is what it shows, and no client can make it show more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import APIRouter, Response

from dgate_core.api.contract import Telemetry
from dgate_core.api.services import Parts
from dgate_core.api.settings import ApiSettings
from dgate_core.storage import open_storage
from dgate_core.telemetry.api_metrics import ApiMetrics
from dgate_core.telemetry.counts import count_engine_lookup, read_engine_lookups
from dgate_core.telemetry.gpus import GpuReading, read_gpus
from dgate_core.telemetry.server import ServerTelemetry
from tests.api.conftest import Live, run_server
from tests.telemetry.records import batch, fill_metrics, picture, read_families, request, value


@pytest.fixture(scope="module")
def watched(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A real server that shows its metrics."""
    telemetry = ServerTelemetry(ApiMetrics())
    hooks: Telemetry = telemetry
    router = APIRouter()

    @router.get("/metrics")
    def show_metrics() -> Response:
        body, media_type = telemetry.metrics.render()
        return Response(body, media_type=media_type)

    folder = str(tmp_path_factory.mktemp("api"))
    settings = ApiSettings((f"tiny={checkpoint}",), port=0, folder=folder, device="cpu", precision="float32")
    with run_server(settings, Parts(telemetry=hooks, routers=(router,))) as live:
        workers = live.services.engine.workers
        telemetry.metrics.watch_pools(
            lambda: {f"{each.device}:{each.number}": each.pool.describe() for each in workers}
        )
        yield live


def scrape(live: Live) -> str:
    answer = httpx.get(f"{live.url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return answer.text


def test_a_real_server_counts_what_it_made(watched: Live) -> None:
    body = {"prompt": "a boat", "n": 2, "num_inference_steps": 2}
    assert httpx.post(f"{watched.url}/v1/images/generations", json=body, timeout=60).status_code == 200
    assert httpx.post(f"{watched.url}/v1/images/generations", json={"prompt": ""}).status_code == 400
    assert httpx.get(f"{watched.url}/nowhere/{'x' * 50}").status_code == 404
    told = scrape(watched)
    route = "/v1/images/generations"
    assert value(told, "dgate_requests_total", route=route, method="POST", status="200", model="tiny") == 1
    assert value(told, "dgate_requests_total", route="unmatched", method="GET", status="404", model="") == 1
    assert value(told, "dgate_request_seconds_count", route=route) == 2
    assert sum(sample.value for sample in read_families(told)["dgate_pictures"].samples if "total" in sample.name) == 2
    stages = {sample.labels["stage"] for sample in read_families(told)["dgate_stage_seconds"].samples}
    assert {"prompts", "denoise", "decode", "encode"} <= stages
    assert value(told, "dgate_queue_waiting") == 0
    assert value(told, "dgate_queue_limit") == watched.services.settings.queue_limit
    assert value(told, "dgate_model_loads_total", device="cpu:0") == 1
    assert value(told, "dgate_model_swaps_total", device="cpu:0") == 0


def test_what_is_told_is_shown() -> None:
    told = fill_metrics().render()[0].decode()
    assert value(told, "dgate_errors_total", code="out_of_memory") == 1
    assert value(told, "dgate_batch_rows_sum", model="boats") == 6
    assert value(told, "dgate_batch_retries_total", model="boats") == 1
    assert value(told, "dgate_batch_errors_total", model="boats", code="nan_picture") == 1
    assert value(told, "dgate_queue_seconds_bucket", model="boats", le="0.005") == 1
    assert value(told, "dgate_queue_seconds_bucket", model="boats", le="0.0025") == 0
    assert value(told, "dgate_picture_bytes_total", model="boats") == 5000
    assert value(told, "dgate_model_swaps_total", device="cuda:0") == 2
    assert value(told, "dgate_gpu_memory_used_bytes", gpu="0", name="a GPU") == 30 << 30
    assert value(told, "dgate_gpu_utilisation_ratio", gpu="0", name="a GPU") == 0.75


def test_what_cannot_be_measured_is_absent_and_not_zero() -> None:
    names = read_families(fill_metrics(gpus=()).render()[0].decode())
    assert not [name for name in names if name.startswith("dgate_gpu")]
    names = read_families(fill_metrics(gpus=[GpuReading(0, "a slice", 1, 2)]).render()[0].decode())
    assert "dgate_gpu_memory_used_bytes" in names
    assert "dgate_gpu_utilisation_ratio" not in names


def test_this_machine_is_asked_for_its_gpus() -> None:
    has_gpu = Path("/proc/driver/nvidia/version").exists()
    readings = read_gpus()
    assert bool(readings) == has_gpu
    assert all(0 <= each.used_bytes <= each.total_bytes for each in readings)


def test_a_client_cannot_make_new_lines() -> None:
    metrics = ApiMetrics(list)
    for number in range(50):
        metrics.on_request(request(405, "method_not_allowed", method=f"METHOD{number}"))
    samples = read_families(metrics.render()[0].decode())["dgate_requests"].samples
    counted = [sample for sample in samples if sample.name == "dgate_requests_total"]
    assert [(sample.labels["method"], sample.value) for sample in counted] == [("OTHER", 50)]


def test_servers_of_one_process_do_not_count_together() -> None:
    first, second = ApiMetrics(list), ApiMetrics(list)
    first.on_picture(picture())
    second.on_batch(batch())
    assert value(first.render()[0].decode(), "dgate_pictures_total", model="boats") == 1
    assert value(second.render()[0].decode(), "dgate_pictures_total", model="boats") is None


def test_engine_lookups_are_counted_for_the_process() -> None:
    before = read_engine_lookups()["hit"]
    count_engine_lookup("hit")
    told = ApiMetrics(list).render()[0].decode()
    assert value(told, "dgate_engine_cache_lookups_total", result="hit") == before + 1
    assert value(told, "dgate_engine_cache_lookups_total", result="built") is not None


def test_the_engine_cache_tells_what_came_of_each_look(tmp_path: Path) -> None:
    from dgate_core.backends.contract import ShapeBucket  # loads torch
    from dgate_core.backends.engine_cache import EngineCache, EngineKey

    before = read_engine_lookups()
    key = EngineKey("onnx", "5" * 64, "StableDiffusionPipeline", ShapeBucket(32, 32, 1), "float32")
    first, second = (EngineCache(tmp_path / name, open_storage(tmp_path / "shared")) for name in ("a", "b"))
    for cache in (first, first, second):
        cache.obtain(key, lambda folder: (folder / "engine").write_bytes(b"engine"))
    after = read_engine_lookups()
    assert {name: after[name] - before[name] for name in after} == {"hit": 1, "fetched": 1, "built": 1}
