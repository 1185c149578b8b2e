"""A server with more than one device: each has a thread and models of its own, all take from one queue."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from dgate_core.api.contract import BatchRecord, NoTelemetry
from dgate_core.api.services import Parts
from dgate_core.api.settings import ApiSettings
from dgate_core.errors import ConfigError
from tests.api.conftest import Live, run_server


class DeviceNotebook(NoTelemetry):
    """Notes who made what."""

    def __init__(self) -> None:
        self.batches: list[BatchRecord] = []

    def on_batch(self, record: BatchRecord) -> None:
        self.batches.append(record)


@pytest.fixture(scope="module")
def pair(settings: ApiSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Live, DeviceNotebook]]:
    notebook = DeviceNotebook()
    own = replace(settings, folder=str(tmp_path_factory.mktemp("pair")), devices=2)
    with run_server(own, Parts(telemetry=notebook)) as live:
        yield live, notebook


def ask(live: Live, steps: int) -> str:
    answer = live.client().images.generate(prompt="a red boat", extra_body={"seed": 5, "num_inference_steps": steps})
    assert answer.data is not None
    return answer.data[0].b64_json or ""


def test_two_devices_work_side_by_side_and_make_the_same_pictures(
    pair: tuple[Live, DeviceNotebook], live: Live
) -> None:
    both, notebook = pair
    with ThreadPoolExecutor(2) as clients:
        # Once may be too few on a busy machine: a device that is done early takes the other request as well.
        for _ in range(20):
            made = list(clients.map(lambda steps: ask(both, steps), (12, 13)))
            if len({batch.device for batch in notebook.batches}) == 2:
                break
    assert {batch.device for batch in notebook.batches} == {"cpu:0", "cpu:1"}
    assert made == [ask(live, 12), ask(live, 13)]


def test_models_are_warm_on_every_device_and_draining_waits_for_all(own_settings: ApiSettings) -> None:
    with run_server(replace(own_settings, devices=2)) as live, ThreadPoolExecutor(2) as clients:
        assert all(len(worker.pool.describe()["models"]) == 1 for worker in live.services.engine.workers)
        asked = [clients.submit(ask, live, steps) for steps in (60, 61)]
        while live.services.engine.unfinished < 2:
            assert not any(each.done() for each in asked)
        live.server.drain()
        assert all(each.result() for each in asked)


def test_no_devices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="devices=0"):
        ApiSettings(folder=str(tmp_path), devices=0)
