"""The boto3 client: one for each process and set of AWS settings, with patience that suits long runs."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import lru_cache
from threading import Lock
from time import sleep
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectTimeoutError, EndpointConnectionError, HTTPClientError, SSLError
from botocore.exceptions import ConnectionError as BotocoreConnectionError

from dgate_core.errors import StorageError
from dgate_core.storage.s3_errors import CHECK_SERVER, S3_ERRORS, error_code, s3_errors

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_Result = TypeVar("_Result")

ATTEMPTS = 8
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 0.25, 16.0
_RETRIED_STATUS = frozenset({429, 500, 502, 503, 504})
RETRIED_CODES = frozenset({"SlowDown", "InternalError", "RequestTimeout", "Throttling", "ThrottlingException"})

_Settings = tuple[int, int]
_clients: dict[_Settings, S3Client] = {}
_locks: dict[int, Lock] = {}


def s3_client() -> S3Client:
    """Return the client of this process for the AWS settings of its environment; safe to share between threads."""
    process = os.getpid()
    settings = process, hash(frozenset(item for item in os.environ.items() if item[0].startswith("AWS_")))
    # Both tables go by process: a forked child must share neither sockets nor a lock that its parent held.
    with _locks.setdefault(process, Lock()):
        if settings not in _clients:
            _clients[settings] = _make_client()
        return _clients[settings]


@lru_cache(maxsize=256)
def confirm_bucket(client: S3Client, bucket: str) -> None:
    """Raise StorageError if there is no such bucket: a HEAD for a key cannot tell that from a missing key."""
    with s3_errors(f"s3://{bucket}"):
        try:
            client.head_bucket(Bucket=bucket)
        except ClientError as error:
            if error_code(error) in ("404", "NoSuchBucket"):
                raise ClientError({"Error": {"Code": "NoSuchBucket"}}, "HeadBucket") from error
            # A right to objects without a right to look at the bucket is usual, and says that there is one.
            if error_code(error) not in ("403", "AccessDenied"):
                raise


def retry_while(is_passing: Callable[[Exception], bool], action: Callable[[], _Result]) -> _Result:
    """Repeat an action while its failure is a passing one, ATTEMPTS times at most, waiting longer and longer."""
    for attempt in range(1, ATTEMPTS):
        try:
            return action()
        except S3_ERRORS as error:
            if not is_passing(error):
                raise
        sleep(retry_delay(attempt))
    return action()


def retry_delay(attempt: int) -> float:
    """Return the seconds to wait after the given failed attempt (1 is the first): exponential, with jitter."""
    return random.uniform(0.5, 1.0) * min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2 ** (attempt - 1))


class RetryPolicy:
    """Decides which requests botocore sends again, and when.

    Botocore's own modes share one small quota of retries between all threads, so a server that restarts under sixteen
    uploads would fail them at once; this policy waits up to half a minute for it. But a server that has
    never answered is a wrong address: it gets two attempts.
    """

    def __init__(self) -> None:
        self._answered = False

    def __call__(
        self,
        attempts: int,
        response: tuple[Any, dict[str, Any]] | None,
        caught_exception: Exception | None,
        **_: object,
    ) -> float | None:
        """Handle botocore's `needs-retry` event: return seconds to wait, or None to let the answer stand."""
        self._answered = self._answered or response is not None
        if attempts >= ATTEMPTS or not _is_passing(response, caught_exception):
            return None
        wrong_address = isinstance(caught_exception, (EndpointConnectionError, ConnectTimeoutError))
        if wrong_address and not self._answered and attempts >= 2:
            return None
        return retry_delay(attempts)


def _is_passing(response: tuple[Any, dict[str, Any]] | None, error: Exception | None) -> bool:
    """Say whether a failure may be gone at the next attempt."""
    if response is None:
        return isinstance(error, (BotocoreConnectionError, HTTPClientError)) and not isinstance(error, SSLError)
    http_response, parsed = response
    code = parsed.get("Error", {}).get("Code", "") if isinstance(parsed, dict) else ""
    return http_response.status_code in _RETRIED_STATUS or code in RETRIED_CODES


def _make_client() -> S3Client:
    config = Config(
        retries={"mode": "standard", "total_max_attempts": 1},
        connect_timeout=4,
        read_timeout=30,
        max_pool_connections=64,
        tcp_keepalive=True,
    )
    # A session of its own, for boto3's default one is not safe to use from several threads.
    try:
        client = boto3.session.Session().client("s3", config=config)
    except ValueError:
        raise StorageError("the S3 endpoint is not a URL", "such as http://127.0.0.1:9000", CHECK_SERVER) from None
    policy: Any = RetryPolicy()
    client.meta.events.register("needs-retry.s3", policy)
    return client
