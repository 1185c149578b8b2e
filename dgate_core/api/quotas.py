"""How much a key may use: counted by the library `limits`, in memory or in a Redis that all servers share."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter, RateLimiter, SlidingWindowCounterRateLimiter
from limits.errors import StorageError

from dgate_core.api.contract import release_nothing
from dgate_core.api.errors import ApiError
from dgate_core.api.keys import ApiKey
from dgate_core.errors import MissingExtraError

logger = logging.getLogger(__name__)

T = TypeVar("T")
REDIS_VARIABLE = "DGATE_REDIS_URL"
PREFIX = "dgate"
REDIS_SECONDS = 2.0
"""For an answer of Redis."""
LEASE_SECONDS = 900.0
"""After which the place of a request is free again though nobody gave it back: its server was killed."""
BUSY_SECONDS = 1.0
"""Retry-After where only another request has to end."""

# Places are members of a sorted set whose scores are when they lapse; one script, so that two servers cannot both
# take the last one. Redis's own clock, for those of servers differ.
_ENTER = """
local now = redis.call('TIME')
now = tonumber(now[1]) + tonumber(now[2]) / 1000000
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[3])
redis.call('EXPIRE', KEYS[1], math.ceil(tonumber(ARGV[2])))
return 1
"""


class Places(Protocol):
    """Requests in hand by key."""

    async def enter(self, key_id: str, limit: int) -> Callable[[], None] | None:
        """What gives the place back, to be called in the event loop; None when all are taken."""
        ...


class MemoryPlaces:
    """Those of one server."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()

    async def enter(self, key_id: str, limit: int) -> Callable[[], None] | None:
        """See `Places`."""
        if self._taken[key_id] >= limit:
            return None
        self._taken[key_id] += 1
        return lambda: self._leave(key_id)

    def _leave(self, key_id: str) -> None:
        self._taken[key_id] -= 1
        if not self._taken[key_id]:
            del self._taken[key_id]


class RedisPlaces:
    """Those of all servers at one Redis.

    Args:
        client: Of redis.asyncio.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._enter = client.register_script(_ENTER)
        self._leaving: set[asyncio.Task[None]] = set()

    async def enter(self, key_id: str, limit: int) -> Callable[[], None] | None:
        """See `Places`; raises StorageError."""
        from redis.exceptions import RedisError

        name, place = f"{PREFIX}:places:{key_id}", secrets.token_hex(8)
        try:
            is_in = await self._enter(keys=[name], args=[limit, LEASE_SECONDS, place])
        except RedisError as error:
            raise StorageError(error) from error
        if not is_in:
            return None
        return lambda: self._start_leaving(name, place)

    def _start_leaving(self, name: str, place: str) -> None:
        task = asyncio.get_running_loop().create_task(self._leave(name, place))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _leave(self, name: str, place: str) -> None:
        from redis.exceptions import RedisError

        try:
            await self._client.zrem(name, place)
        except (RedisError, OSError) as error:
            logger.warning("a place could not be given back and lapses by itself: %s", type(error).__name__)


class Quotas:
    """Counts what keys use.

    Args:
        redis_url: `redis://…`, shared by all servers; empty counts in this process's memory.

    Raises:
        MissingExtraError: the package redis is not installed.
    """

    def __init__(self, redis_url: str = "") -> None:
        storage: MemoryStorage | RedisStorage = _open_redis(redis_url) if redis_url else MemoryStorage()
        self._requests: RateLimiter = MovingWindowRateLimiter(storage)
        # A window of a day with an entry for every picture would be long; two counters are not.
        self._pictures: RateLimiter = SlidingWindowCounterRateLimiter(storage)
        self._places: Places = RedisPlaces(_open_client(redis_url)) if redis_url else MemoryPlaces()

    async def take_request(self, key: ApiKey) -> None:
        """Raises ApiError 429 when the minute's requests are used up, 503 when Redis does not answer."""
        if (most := key.limits.requests_per_minute) is None:
            return
        item = RateLimitItemPerMinute(most, namespace=PREFIX)
        if not await _ask(self._requests.hit(item, "requests", key.id)):
            wait = await self._measure_wait(self._requests, item, "requests", key.id)
            raise _refuse(f"this key may send {most:,} requests a minute", "requests_per_minute", wait)

    async def take_pictures(self, key: ApiKey, count: int) -> None:
        """Raises ApiError 429 when these pictures are more than the day has left, 503 when Redis does not answer."""
        if (most := key.limits.pictures_per_day) is None:
            return
        item = RateLimitItemPerDay(most, namespace=PREFIX)
        if not await _ask(self._pictures.hit(item, "pictures", key.id, cost=count)):
            wait = await self._measure_wait(self._pictures, item, "pictures", key.id)
            raise _refuse(f"this key may make {most:,} pictures a day", "pictures_per_day", wait)

    async def enter(self, key: ApiKey) -> Callable[[], None]:
        """Takes a place; what comes back gives it back. Raises ApiError 429 when there is none, 503 as above."""
        if (most := key.limits.concurrent) is None:
            return release_nothing
        release = await _ask(self._places.enter(key.id, most))
        if release is None:
            raise _refuse(f"this key may have {most:,} requests in hand", "concurrent_requests", BUSY_SECONDS)
        return release

    @staticmethod
    async def _measure_wait(limiter: RateLimiter, item: RateLimitItem, *names: str) -> float:
        stats = await _ask(limiter.get_window_stats(item, *names))
        return max(1.0, stats.reset_time - time.time())


def open_quotas() -> Quotas:
    """At the Redis of $DGATE_REDIS_URL where it is set, else in memory."""
    return Quotas(os.environ.get(REDIS_VARIABLE, ""))


async def _ask(answer: Awaitable[T]) -> T:
    """Without its counts the server does not know who may what, so it lets nobody in rather than everybody."""
    try:
        return await answer
    except (StorageError, OSError) as error:
        logger.error("Redis does not answer: %s", type(error.__cause__ or error).__name__)
        raise ApiError(503, "the count of requests cannot be had; try again", "quota_unavailable", None, 2.0) from error


def _refuse(what: str, code: str, wait: float) -> ApiError:
    return ApiError(429, f"{what}; try again in {wait:.0f} s", code, retry_after=wait)


def _open_redis(url: str) -> RedisStorage:
    _check_redis()
    return RedisStorage(
        f"async+{url}",
        wrap_exceptions=True,
        implementation="redispy",
        key_prefix=PREFIX,
        socket_timeout=REDIS_SECONDS,
        socket_connect_timeout=REDIS_SECONDS,
    )


def _open_client(url: str) -> Any:
    from redis.asyncio import Redis

    return Redis.from_url(url, socket_timeout=REDIS_SECONDS, socket_connect_timeout=REDIS_SECONDS)


def _check_redis() -> None:
    try:
        import redis  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("redis", "redis") from error
