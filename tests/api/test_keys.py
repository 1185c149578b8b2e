"""API keys: made, kept, shown once, listed, revoked, expired; and what a door with keys answers."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from click.testing import CliRunner

from dgate_core.api.admission import KeyDoor, open_gatekeeper
from dgate_core.api.contract import RequestFacts
from dgate_core.api.errors import ApiError
from dgate_core.api.key_store import KeyStore
from dgate_core.api.keys import KeyLimits, find_key, hash_key, make_key
from dgate_core.api.metrics_routes import make_metrics_router
from dgate_core.api.quotas import Quotas
from dgate_core.api.server import make_server
from dgate_core.api.services import Parts, open_services
from dgate_core.api.settings import ApiSettings
from dgate_core.errors import ConfigError, UsageError
from dgate_core.telemetry.api_metrics import ApiMetrics
from flows.commands.keys import command, parse_expiry
from tests.api.batch_lab import ThreadRunner, make_line, start_batch, write_lines
from tests.api.conftest import Live, run_server

ONE_STEP: dict[str, Any] = {"size": "64x64", "extra_body": {"num_inference_steps": 1}}


def run_command(*arguments: str) -> Any:
    return CliRunner().invoke(command, list(arguments), catch_exceptions=False)


def create(path: Path, name: str, *options: str) -> str:
    return run_command("create", name, "--file", str(path), *options).stdout.splitlines()[0]


def test_key_is_shown_once_and_kept_as_its_hash_only(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "keys.json"
    secret = create(path, "night", "--requests-per-minute", "60", "--expires", "90d")
    kept = path.read_text()
    assert secret.startswith("dgate_")
    assert len(secret.rpartition("_")[2]) * 4 == 256
    assert secret not in kept
    assert secret.rpartition("_")[2] not in kept
    assert hash_key(secret) in kept
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    listed = run_command("list", "--json", "--file", str(path)).stdout
    assert secret.rpartition("_")[2] not in listed
    assert hash_key(secret) not in listed
    (key,) = json.loads(listed)
    assert (key["name"], key["scopes"], key["state"]) == ("night", ["generate", "batch"], "active")
    assert key["limits"] == {"requests_per_minute": 60, "pictures_per_day": None, "concurrent": None}
    assert "night" in run_command("list", "--file", str(path)).stdout


def test_revoked_keys_stay_listed_and_their_name_is_free_again(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    create(path, "a")
    with pytest.raises(UsageError, match="a new name"):
        create(path, "a")
    run_command("revoke", "a", "--file", str(path))
    with pytest.raises(UsageError, match="no key 'a' to revoke"):
        run_command("revoke", "a", "--file", str(path))
    create(path, "a")
    states = [key["state"] for key in json.loads(run_command("list", "--json", "--file", str(path)).stdout)]
    assert states == ["revoked", "active"]


def test_command_line_says_what_is_wrong(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "keys", "revoke", "nobody", "--file", str(tmp_path / "keys.json")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no key 'nobody' to revoke" in done.stderr
    assert "Traceback" not in done.stderr


def test_expiries() -> None:
    assert parse_expiry("90d", 0.0) == 90 * 86_400
    assert parse_expiry("30m", 5.0) == 1805.0
    assert parse_expiry("1970-01-02", 0.0) == 86_400
    assert parse_expiry("1970-01-01T01:00+01:00", -1.0) == 0.0
    for text in ("soon", "1969-01-01", "0d", "-3d", "9999999d"):
        with pytest.raises(UsageError):
            parse_expiry(text, 10.0)


def test_files_that_others_may_write_or_that_are_broken_let_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    create(path, "a")
    path.chmod(0o662)
    with pytest.raises(ConfigError, match="chmod 600"):
        KeyStore(path).read()
    path.chmod(0o600)
    assert len(KeyStore(path).read()) == 1
    for text in ("", "[]", '{"format": 2, "keys": []}', '{"format": 1, "keys": [{"id": "x"}]}', "\x00"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="cannot be read as API keys"):
            KeyStore(path).read()


def test_many_processes_may_make_keys_at_once(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"

    def add(number: int) -> None:
        KeyStore(path).add(make_key(f"key {number}", ("generate",), time.time())[1])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(40)))
    assert len(KeyStore(path).read()) == 40
    assert [name for name in os.listdir(tmp_path) if name.startswith(".keys-")] == []  # noqa: PTH208


def test_wrong_keys_are_told_apart_from_right_ones_by_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with a key, one hash is made and compared with one in a time that its bytes do not change."""
    made = [make_key(f"key {number}", ("generate",), 0.0) for number in range(1000)]
    keys = {key.id: key for _, key in made}
    secret, key = made[500]
    wrong_secret = secret[:-1] + ("0" if secret[-1] != "0" else "1")
    wrong_id = "dgate_" + "0" * 12 + secret[18:]
    compared: list[tuple[str, str]] = []
    real = hmac.compare_digest
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    assert find_key(secret, keys) is key
    for wrong in (wrong_secret, wrong_id, "", "dgate_", secret + "0", secret.upper(), "é\udcff", "x" * 100_000):
        assert find_key(wrong, keys) is None
    assert len(compared) == 9
    assert {len(each) for pair in compared for each in pair} == {64}
    assert [shown for shown, _ in compared[:3]] == [hash_key(each) for each in (secret, wrong_secret, wrong_id)]


def test_the_door_is_open_until_there_is_a_key_and_never_again(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    door = open_gatekeeper(str(path))
    facts = RequestFacts("req_0", "GET", "/v1/models", "read", "", "127.0.0.1")
    assert door.is_open
    assert asyncio.run(door.admit(facts)).client == "127.0.0.1"
    secret = create(path, "a")
    with pytest.raises(ApiError, match="no API key"):
        asyncio.run(door.admit(facts))
    assert asyncio.run(door.admit(replace(facts, authorization=f"Bearer {secret}"))).key_id == secret[6:18]
    run_command("revoke", "a", "--file", str(path))
    assert not open_gatekeeper(str(path)).is_open
    path.unlink()
    with pytest.raises(ApiError, match="no API key"):
        asyncio.run(door.admit(facts))


def test_a_key_file_that_breaks_lets_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    door = open_gatekeeper(str(path))
    path.write_text("nothing")
    with pytest.raises(ApiError, match="cannot be read"):
        asyncio.run(door.admit(RequestFacts("req_0", "GET", "/v1/models", "read", "Bearer x", "127.0.0.1")))


def test_network_is_refused_without_keys(own_settings: ApiSettings, tmp_path: Path) -> None:
    settings = replace(own_settings, host="0.0.0.0")
    with pytest.raises(UsageError, match="without API keys would let everybody in"):
        make_server(settings, open_services(settings, Parts(gatekeeper=open_gatekeeper(str(tmp_path / "none.json")))))


class Door:
    """A server with keys, and the secrets to it."""

    def __init__(self, live: Live, store: KeyStore) -> None:
        self.live, self.store = live, store

    def make(self, name: str, *scopes: Any, **facts: Any) -> str:
        secret, key = make_key(name, scopes or ("generate",), time.time())
        self.store.add(replace(key, **facts))
        return secret

    def client(self, secret: str) -> openai.OpenAI:
        return self.live.client(api_key=secret)

    def ask(self, secret: str | None, path: str = "/v1/models", **options: Any) -> httpx.Response:
        headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
        return httpx.get(f"{self.live.url}{path}", headers=headers | options.pop("headers", {}), **options)


@pytest.fixture(scope="module")
def door(settings: ApiSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("door")
    store = KeyStore(folder / "keys.json")
    own = replace(settings, folder=str(folder / "api"))
    metrics = ApiMetrics()
    router = make_metrics_router(metrics)
    with run_server(own, Parts(KeyDoor(store, Quotas()), metrics, runner=ThreadRunner(), routers=(router,))) as live:
        yield Door(live, store)


def test_right_key_gets_in_and_wrong_ones_do_not(door: Door) -> None:
    secret = door.make("right")
    assert door.client(secret).images.generate(prompt="a red boat", **ONE_STEP).data
    for wrong, code in ((None, "missing_api_key"), ("x", "invalid_api_key"), (secret[:-1], "invalid_api_key")):
        answer = door.ask(wrong)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == code
        assert answer.json()["error"]["type"] == "authentication_error"
        assert answer.headers["x-request-id"].startswith("req_")
    assert door.ask(None, headers={"authorization": f"Basic {secret}"}).status_code == 401
    assert door.ask(None, "/healthz").status_code == 200
    with pytest.raises(openai.AuthenticationError):
        door.client("dgate_wrong").models.list()


def test_scopes(door: Door) -> None:
    painter, clerk, head = door.make("painter"), door.make("clerk", "batch"), door.make("head", "admin")
    for secret, path, status in (
        (painter, "/v1/models", 200), (painter, "/v1/files", 403), (painter, "/v1/batches", 403),
        (clerk, "/v1/files", 200), (clerk, "/v1/models", 200), (head, "/v1/files", 200),
    ):  # fmt: skip
        assert door.ask(secret, path).status_code == status, (path, status)
    with pytest.raises(openai.PermissionDeniedError, match="generate is needed here"):
        door.client(clerk).images.generate(prompt="a red boat", **ONE_STEP)


def test_metrics_need_a_key_that_may_see_them(door: Door) -> None:
    watcher, painter, head = door.make("watcher", "metrics"), door.make("not a watcher"), door.make("chief", "admin")
    answers = [door.ask(secret, "/metrics") for secret in (None, painter, watcher, head)]
    assert [answer.status_code for answer in answers] == [401, 403, 200, 200]
    assert "dgate_requests_total" in answers[2].text
    with pytest.raises(openai.PermissionDeniedError, match="generate is needed here"):
        door.client(watcher).images.generate(prompt="a red boat", **ONE_STEP)


def test_metrics_may_be_left_open(own_settings: ApiSettings, tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.json")
    parts = Parts(gatekeeper=KeyDoor(store, Quotas()), routers=(make_metrics_router(ApiMetrics()),))
    with run_server(replace(own_settings, metrics_open=True), parts, warm=False) as live:
        assert [httpx.get(f"{live.url}{path}").status_code for path in ("/metrics", "/v1/models")] == [200, 401]


def test_revoked_and_expired_keys_end_while_the_server_runs(door: Door) -> None:
    secret = door.make("for a while")
    assert door.ask(secret).status_code == 200
    door.store.revoke("for a while", time.time())
    assert door.ask(secret).json()["error"]["code"] == "revoked_api_key"
    late = door.make("late", expires_at=time.time() - 1)
    assert door.ask(late).json()["error"]["code"] == "expired_api_key"


def test_clients_do_not_see_each_others_files(door: Door, tmp_path: Path) -> None:
    one, other = door.client(door.make("one", "batch")), door.client(door.make("other", "batch"))
    path = write_lines(tmp_path / "b.jsonl", [make_line(0)])
    with path.open("rb") as stream:
        file = one.files.create(file=stream, purpose="batch")
    assert [each.id for each in one.files.list()] == [file.id]
    assert list(other.files.list()) == []
    for ask in (other.files.retrieve, other.files.delete, other.files.content):
        with pytest.raises(openai.NotFoundError):
            ask(file.id)


def test_limits_of_a_key(door: Door, tmp_path: Path) -> None:
    hasty = door.make("hasty", limits=KeyLimits(requests_per_minute=3))
    answers = [door.ask(hasty) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    assert answers[-1].json()["error"]["type"] == "rate_limit_error"
    assert answers[-1].json()["error"]["code"] == "requests_per_minute"

    painter = door.client(door.make("daily", "generate", "batch", limits=KeyLimits(pictures_per_day=3)))
    painter.images.generate(prompt="a red boat", n=2, **ONE_STEP)
    with pytest.raises(openai.RateLimitError) as caught:
        painter.images.generate(prompt="a red boat", n=2, **ONE_STEP)
    assert int(caught.value.response.headers["retry-after"]) > 60
    # Batches pay too, when they are accepted.
    with pytest.raises(openai.RateLimitError, match="3 pictures a day"):
        start_batch(painter, write_lines(tmp_path / "b.jsonl", [make_line(0, n=2)]))
    painter.images.generate(prompt="a red boat", **ONE_STEP)


def test_concurrent_requests_of_a_key(door: Door) -> None:
    secret = door.make("crowd", limits=KeyLimits(concurrent=2))
    body = {"prompt": "a red boat", "size": "64x64", "num_inference_steps": 80}

    def ask(_: int) -> int:
        url, headers = f"{door.live.url}/v1/images/generations", {"authorization": f"Bearer {secret}"}
        return httpx.post(url, json=body, headers=headers, timeout=60).status_code

    with ThreadPoolExecutor(6) as pool:
        statuses = sorted(pool.map(ask, range(6)))
    assert statuses[:2] == [200, 200]
    assert statuses[-1] == 429
    assert door.ask(secret).status_code == 200


def test_thousand_wrong_keys(door: Door) -> None:
    secret = door.make("searched")
    keys = [make_key("wrong", ("generate",), 0.0)[0] for _ in range(500)]
    keys += [secret[:19] + make_key("wrong", ("generate",), 0.0)[0][19:] for _ in range(500)]
    with httpx.Client(base_url=door.live.url) as client:
        for key in keys:
            answer = client.get("/v1/models", headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == 401
            assert key not in answer.text
        assert client.get("/v1/models", headers={"authorization": f"Bearer {secret}"}).status_code == 200


def test_secrets_stand_in_no_log(
    door: Door, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = door.make("silent", limits=KeyLimits(requests_per_minute=4))
    own_loggers = [logging.getLogger(name) for name in ("dgate_core", "uvicorn", "uvicorn.error", "uvicorn.access")]
    with caplog.at_level(logging.DEBUG):
        for logger in own_loggers:
            logger.setLevel(logging.DEBUG)
        for path in ("/v1/models", "/v1/files", "/v1/none", f"/v1/models?key={secret}", "/v1/models", "/v1/models"):
            door.ask(secret, path)
        httpx.post(f"{door.live.url}/v1/images/generations", content=b"{", headers={
            "authorization": f"Bearer {secret}", "content-type": "application/json"})  # fmt: skip
    said = caplog.text + "".join(capfd.readouterr())
    ours = "\n".join(line for line in said.splitlines() if "httpx" not in line and "httpcore" not in line)
    for part in (secret, secret.rpartition("_")[2], hash_key(secret)):
        assert part not in ours


def test_broken_key_file_lets_nobody_in(door: Door) -> None:
    secret, path = door.make("before"), door.store.path
    whole = path.read_bytes()
    try:
        path.write_text("{")
        answer = door.ask(secret)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "keys_unavailable")
        assert str(path) not in answer.text
    finally:
        path.write_bytes(whole)
    assert door.ask(secret).status_code == 200
