"""Seams of the API: who lets requests in, who counts, who looks at pictures before they leave."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np

Scope = Literal["read", "generate", "batch", "metrics", "admin"]
"""What a route needs: `read` is any key."""


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What is known of a request before its body is read."""

    request_id: str
    method: str
    path: str
    scope: Scope
    authorization: str
    """The header as it came, empty for none; never logged."""
    host: str
    """Address of the client."""


async def spend_freely(pictures: int) -> None:
    """A quota without limit."""


def release_nothing() -> None:
    """Of an admission that holds nothing."""


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that was let in."""

    client: str
    """Whose turn it takes: requests of one client share, different clients alternate; owner of files and batches."""
    key_id: str | None = None
    """Of the API key, for logs; None without keys."""
    scopes: frozenset[str] = frozenset({"generate", "batch", "metrics", "admin"})
    """What the key may do."""
    spend: Callable[[int], Coroutine[Any, Any, None]] = spend_freely
    """Called with the number of pictures before they are queued; raises ApiError(429)."""
    release: Callable[[], None] = release_nothing
    """Called once, when the answer is out or given up."""


class Gatekeeper(Protocol):
    """Decides who gets in."""

    is_open: bool
    """Whether it asks for no keys: then only loopback may be bound."""

    async def admit(self, facts: RequestFacts) -> Admission:
        """Raises ApiError 401 (no key, wrong key), 403 (no such scope), 429 (too many requests)."""
        ...


class OpenDoor:
    """No keys: everybody on this machine may do everything."""

    is_open = True

    async def admit(self, facts: RequestFacts) -> Admission:
        """See `Gatekeeper`."""
        return Admission(facts.host)


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """A request that was answered."""

    request_id: str
    route: str
    """The route's template, such as /v1/files/{file_id}; "unmatched" where no route fits."""
    method: str
    status: int
    """Of HTTP; 499 when the client hung up first."""
    model: str
    """Asked for, if one is served under that name; else empty."""
    code: str
    """Of the error; empty for none."""
    seconds: float
    key_id: str | None = None


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch that came back from the device."""

    model: str
    device: str
    """Such as cuda:1."""
    rows: int
    stages: Mapping[str, float]
    """Seconds by stage: prompts, denoise, decode, copy."""
    attempts: int
    error_code: str = ""
    batch_id: str = ""
    """Unique in the server's life."""
    request_ids: tuple[str, ...] = ()
    """Of its rows."""


@dataclass(frozen=True, slots=True)
class PictureRecord:
    """A picture that was made."""

    request_id: str
    model: str
    queue_seconds: float
    encode_seconds: float
    size_bytes: int
    batch_id: str = ""
    """Of the batch that it was made in."""
    row_id: str = ""


class Telemetry(Protocol):
    """Told what happens; called from the event loop and from device threads, so quick and thread-safe."""

    def on_request(self, record: RequestRecord) -> None: ...

    def on_batch(self, record: BatchRecord) -> None: ...

    def on_picture(self, record: PictureRecord) -> None: ...

    def on_queue(self, waiting: int, limit: int) -> None: ...


class NoTelemetry:
    """Tells nobody."""

    def on_request(self, record: RequestRecord) -> None:
        """See `Telemetry`."""

    def on_batch(self, record: BatchRecord) -> None:
        """See `Telemetry`."""

    def on_picture(self, record: PictureRecord) -> None:
        """See `Telemetry`."""

    def on_queue(self, waiting: int, limit: int) -> None:
        """See `Telemetry`."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What came of looking at a picture."""

    pixels: np.ndarray | None
    """uint8 (height, width, 3), as it may leave; None withholds it."""
    verdict: Mapping[str, Any] | None
    """Score, label, action: the answer's `safety`; None when nothing was asked."""


class PictureInspector(Protocol):
    """Looks at every picture before it is encoded; called from several threads."""

    def inspect(self, pixels: np.ndarray) -> Inspection: ...
