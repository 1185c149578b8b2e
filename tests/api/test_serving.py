"""What a server promises under load: places, deadlines, hang-ups, draining, moving aliases, lost requests: none."""

from __future__ import annotations

import base64
import io
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from dgate_core.api.contract import (
    Admission,
    Inspection,
    NoTelemetry,
    OpenDoor,
    PictureRecord,
    RequestFacts,
    RequestRecord,
)
from dgate_core.api.server import open_listener
from dgate_core.api.services import Parts
from dgate_core.api.settings import ApiSettings
from dgate_core.errors import UsageError
from dgate_core.models.aliases import Promotion, promote_model
from dgate_core.models.catalog import find_checkpoint
from tests.api.conftest import Live, run_server
from tests.run_lab import wait_for

SLOW = {"num_inference_steps": 60}


class Notebook(NoTelemetry):
    """Telemetry that keeps what it is told."""

    def __init__(self) -> None:
        self.requests: list[RequestRecord] = []
        self.pictures = 0

    def on_request(self, record: RequestRecord) -> None:
        self.requests.append(record)

    def on_picture(self, record: PictureRecord) -> None:
        self.pictures += 1


def post(live: Live, **body: Any) -> httpx.Response:
    return httpx.post(f"{live.url}/v1/images/generations", json={"prompt": "a boat", **body}, timeout=60)


def read_pixels(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"]))))


@pytest.fixture(scope="module")
def small(settings: ApiSettings, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server with room for four."""
    notebook, folder = Notebook(), str(tmp_path_factory.mktemp("small"))
    own = replace(settings, folder=folder, queue_limit=4, batch_size=1, timeout_seconds=5.0)
    with run_server(own, Parts(telemetry=notebook)) as live:
        yield live, notebook


def test_requests_that_come_together_are_made_together(live: Live) -> None:
    post(live, **SLOW)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda seed: post(live, seed=seed, **SLOW), range(6)))
    assert max(answer.json()["usage"]["batch_size"] for answer in answers) >= 3
    alone = read_pixels(post(live, seed=3, **SLOW)).astype(int)
    assert np.abs(alone - read_pixels(answers[3]).astype(int)).max() <= 2


def test_a_full_queue_refuses_with_retry_after(small: tuple[Live, Notebook]) -> None:
    live, _ = small
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda seed: post(live, seed=seed, num_inference_steps=20), range(10)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert all(answer.status_code in {200, 429} for answer in answers)
    assert int(refused[0].headers["retry-after"]) >= 1
    assert refused[0].json()["error"]["code"] == "queue_full"


class CountingDoor(OpenDoor):
    """Notes how many pictures were paid for."""

    def __init__(self) -> None:
        self.spent = 0

    async def admit(self, facts: RequestFacts) -> Admission:
        return replace(await super().admit(facts), spend=self.spend)

    async def spend(self, pictures: int) -> None:
        self.spent += pictures


def test_what_a_full_queue_refuses_is_not_paid_for(own_settings: ApiSettings) -> None:
    door = CountingDoor()
    with run_server(replace(own_settings, queue_limit=4), Parts(gatekeeper=door), warm=False) as live:
        assert post(live, n=5).json()["error"]["code"] == "too_many_images"
        assert door.spent == 0
        assert post(live, n=4, num_inference_steps=1).status_code == 200
        assert door.spent == 4


def test_a_deadline_ends_the_wait_and_frees_the_place(own_settings: ApiSettings) -> None:
    with run_server(replace(own_settings, batch_size=1, timeout_seconds=0.5)) as live:
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(lambda _: post(live, num_inference_steps=200), range(2))
        assert {first.status_code, second.status_code} == {504}
        assert first.json()["error"]["code"] == "deadline_exceeded"
        assert len(live.services.engine.room) == 0
        # A stream says so too, in its last event, instead of breaking off.
        with ThreadPoolExecutor(2) as pool:
            streams = list(pool.map(lambda _: post(live, num_inference_steps=200, stream=True), range(2)))
        for stream in streams:
            assert "deadline_exceeded" in stream.text.strip().splitlines()[-1]


def test_a_client_that_hangs_up_frees_its_place_before_its_batch(small: tuple[Live, Notebook]) -> None:
    live, notebook = small
    busy = threading.Thread(target=post, args=(live,), kwargs={"num_inference_steps": 250})
    made = notebook.pictures
    busy.start()
    wait_for(lambda: live.services.engine.unfinished == 1 and not len(live.services.engine.room))
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{live.url}/v1/images/generations",
            json={"prompt": "a boat", "n": 4, "num_inference_steps": 100},
            timeout=0.3,
        )
    wait_for(lambda: len(live.services.engine.room) == 0, 2)
    busy.join()
    wait_for(lambda: live.services.engine.unfinished == 0)
    assert notebook.pictures - made == 1
    wait_for(lambda: any(record.status == 499 for record in notebook.requests))


def test_the_sdk_times_out_and_the_server_goes_on(small: tuple[Live, Notebook]) -> None:
    live, _ = small
    with pytest.raises(openai.APITimeoutError):
        live.client(timeout=0.2).images.generate(prompt="a boat", extra_body={"num_inference_steps": 60})
    wait_for(lambda: not live.services.engine.unfinished, 30)
    assert post(live, num_inference_steps=1).status_code == 200


def test_draining_finishes_what_was_accepted_and_nothing_else(own_settings: ApiSettings) -> None:
    with run_server(replace(own_settings, notice_seconds=0.5)) as live:
        assert httpx.get(f"{live.url}/readyz").status_code == 200
        with ThreadPoolExecutor(3) as pool:
            accepted = [pool.submit(post, live, seed=seed, **SLOW) for seed in range(3)]
            wait_for(lambda: live.services.engine.unfinished == 3)
            live.server.drain()
            assert httpx.get(f"{live.url}/readyz").json()["status"] == "draining"
            assert httpx.get(f"{live.url}/healthz").status_code == 200
            refused = post(live)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "shutting_down"
            assert [answer.result().status_code for answer in accepted] == [200, 200, 200]
        live.thread.join(20)
        assert not live.thread.is_alive()


def test_an_alias_moves_under_load_and_no_request_is_lost(
    own_settings: ApiSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.tiny import make_sd

    monkeypatch.setenv("DGATE_MODEL_REGISTRY", str(tmp_path / "models.json"))
    models = [str(make_sd(tmp_path / str(seed), seed)) for seed in (1, 2)]

    def promote(model: str) -> None:
        promote_model("production", Promotion(model, find_checkpoint(model).weights_hash, time.time()))

    promote(models[0])
    with run_server(replace(own_settings, models=("production",), follow_seconds=0.1)) as live:
        before, stop, statuses = post(live, seed=5, num_inference_steps=2), threading.Event(), []

        def ask() -> None:
            while not stop.is_set():
                statuses.append(post(live, num_inference_steps=2).status_code)

        clients = [threading.Thread(target=ask) for _ in range(3)]
        for client in clients:
            client.start()
        promote(models[1])
        wait_for(lambda: live.services.models.find("production").model == models[1])
        stop.set()
        for client in clients:
            client.join()
        after = post(live, seed=5, num_inference_steps=2)
    assert set(statuses) == {200}
    assert before.json()["data"][0]["id"] != after.json()["data"][0]["id"]
    assert not np.array_equal(read_pixels(before), read_pixels(after))


def test_every_error_has_the_envelope_and_an_id(live: Live) -> None:
    for method, path, status in (
        ("GET", "/v1/nothing", 404),
        ("GET", "/nothing", 404),
        ("GET", "/v1/images/generations", 405),
        ("POST", "/v1/images/generations", 400),
        ("GET", "/v1/files/file-0", 404),
        ("GET", "/pictures/none.png", 404),
    ):
        answer = httpx.request(method, f"{live.url}{path}")
        assert answer.status_code == status, path
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert answer.headers["x-request-id"].startswith("req_")
    broken = httpx.post(
        f"{live.url}/v1/images/generations", content=b'{"prompt": ', headers={"content-type": "application/json"}
    )
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_parameter")


def test_a_fault_inside_is_a_500_that_tells_nothing(own_settings: ApiSettings) -> None:
    class Faulty:
        def inspect(self, pixels: np.ndarray) -> Inspection:
            raise ZeroDivisionError("a secret of the inside")

    with run_server(own_settings, Parts(inspector=Faulty())) as live:
        answer = post(live, num_inference_steps=1)
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "internal_error"
        assert "secret" not in answer.text


def test_what_the_disk_says_is_for_the_log_alone(own_settings: ApiSettings, caplog: pytest.LogCaptureFixture) -> None:
    folder = Path(own_settings.folder)
    folder.mkdir()
    (folder / "files").write_text("a file in the place of the folder")
    with run_server(own_settings, warm=False) as live:
        upload = {"file": ("in.jsonl", b"{}")}
        answer = httpx.post(f"{live.url}/v1/files", data={"purpose": "batch"}, files=upload, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage")
    assert str(folder) not in answer.text
    assert str(folder) in caplog.text


def test_a_withheld_picture_is_told_and_not_shown(own_settings: ApiSettings) -> None:
    class Strict:
        def inspect(self, pixels: np.ndarray) -> Inspection:
            return Inspection(None, {"label": "nsfw", "score": 0.9, "action": "drop"})

    with run_server(own_settings, Parts(inspector=Strict())) as live:
        entry = post(live, num_inference_steps=1).json()["data"][0]
    assert entry["b64_json"] is None
    assert entry["safety"]["action"] == "drop"


def test_without_keys_only_loopback_is_bound(settings: ApiSettings) -> None:
    with (
        pytest.raises(UsageError, match="without API keys"),
        run_server(replace(settings, host="0.0.0.0"), warm=False),
    ):
        pass


def test_an_address_is_taken_before_anything_is_loaded(settings: ApiSettings) -> None:
    with open_listener(settings) as listener:
        address = listener.getsockname()
        with pytest.raises(UsageError, match="cannot listen on"):
            open_listener(replace(settings, port=address[1]))
        socket.create_connection(address, 5).close()


def test_answers_do_not_wait_for_acknowledgements(live: Live) -> None:
    seconds = []
    with httpx.Client() as client:
        for _ in range(21):
            started = time.perf_counter()
            client.get(f"{live.url}/healthz")
            seconds.append(time.perf_counter() - started)
    assert sorted(seconds)[10] < 0.03, "Nagle's algorithm holds every answer back for 40 ms"
