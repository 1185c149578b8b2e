"""What a model pool keeps of each model, its limits, its figures, and its threads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, Literal

from dgate_core.models.model_loading import Candidate, Held

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """Limits of a pool."""

    budget_bytes: int
    """Of the device's memory, for all models together; a single larger one is still loaded, alone."""
    host_bytes: int = 0
    """Of the host's memory for models that were put out, so that coming back is a copy; 0 drops them."""
    leases_at_once: int = 1
    """Users of one model at a time; above 1 only for what several threads may use at once."""
    wait_seconds: float = 600.0
    """How long a lease waits for its turn, for a load, or for room."""


@dataclass(slots=True)
class PoolFigures:
    """What a pool has done since it was made."""

    loads: int = 0
    load_seconds: float = 0.0
    returns: int = 0
    """From the host's memory."""
    evictions: int = 0
    swaps: int = 0
    failures: int = 0


@dataclass(slots=True)
class Slot(Generic[Held]):
    """One model; `busy` while it is loaded or moved, and then nobody else touches it."""

    candidate: Candidate
    state: Literal["busy", "warm", "host"] = "busy"
    held: Held | None = None
    device_bytes: int = 0
    users: list[int] = field(default_factory=list)
    """Threads that have a lease."""
    last_used: int = 0


def run_in_background(what: str, action: Callable[[], bool]) -> Future[bool]:
    """A thread of its own; an error is logged in one line and kept in the future."""
    future: Future[bool] = Future()

    def run() -> None:
        future.set_running_or_notify_cancel()
        try:
            future.set_result(action())
        except Exception as error:
            logger.error("%s failed: %s", what, " ".join(str(error).split()))
            future.set_exception(error)

    threading.Thread(target=run, name=what).start()
    return future
