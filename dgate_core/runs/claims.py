"""Claims: who works on a shard. They avoid waste; that a shard is right and committed once does not rest on them.

A claim is an object `PREFIX-0001` made by conditional create; the highest number holds. Its holder renews it by writing it
again before its lease ends. Another lane takes over with the next number when the lease has ended, or at once when the
holder was a process of this machine that is gone. Nothing but conditional create is asked of the storage.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import TracebackType

import psutil

from dgate_core.errors import ObjectNotFoundError, StorageError
from dgate_core.storage import Storage

logger = logging.getLogger(__name__)

LEASE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that may hold claims."""

    lane: str
    """Name of the lane, as it stands in the results."""
    host: str
    """Host name and boot id: the same string means the same machine since the same boot."""
    pid: int
    """Process id on that host."""
    started: float
    """Start time of the process, because pids are used again."""


@dataclass(frozen=True, slots=True)
class ClaimState:
    """What a claim object says."""

    number: int
    token: str
    holder: Holder
    expires_at: float

    def is_held(self) -> bool:
        """False when the lease has ended or the holder is known to be dead."""
        return time.time() < self.expires_at and not is_known_dead(self.holder)


@cache
def identify_host() -> str:
    """Host name and boot id."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    boot_id = boot.read_text().strip() if boot.exists() else str(int(psutil.boot_time()))
    return f"{socket.gethostname()}/{boot_id}"


def identify_holder(lane: str) -> Holder:
    """This process, working as a lane."""
    pid = os.getpid()
    return Holder(lane, identify_host(), pid, psutil.Process(pid).create_time())


def is_known_dead(holder: Holder) -> bool:
    """True only for a process of this machine that is gone; of other machines nothing is known."""
    if holder.host != identify_host():
        return False
    try:
        process = psutil.Process(holder.pid)
        return abs(process.create_time() - holder.started) > 1.0 or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Claim:
    """A claim in hand, renewed by a thread of its own until it is released.

    `is_valid` turns False when somebody else took over or when the lease could not be renewed in time; the holder then stops.
    """

    def __init__(self, storage: Storage, prefix: str, state: ClaimState, lease_seconds: float) -> None:
        self.storage, self.prefix, self.state, self.lease_seconds = storage, prefix, state, lease_seconds
        self._deadline = time.monotonic() + lease_seconds * 0.9
        self._stopped = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._keep_renewing, name=f"claim {prefix}", daemon=True)
        self._thread.start()

    @property
    def token(self) -> str:
        """Unique to this claim."""
        return self.state.token

    def is_valid(self) -> bool:
        """Whether the work may go on; asked before every batch and every commit."""
        return not self._lost and time.monotonic() < self._deadline

    def release(self) -> None:
        """Gives the claim back, so that the next lane need not wait."""
        self._stopped.set()
        self._thread.join()
        if self.is_valid():
            self.storage.delete(_name_claim(self.prefix, self.state.number))

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    def _keep_renewing(self) -> None:
        while not self._stopped.wait(self.lease_seconds / 3):
            try:
                self._renew()
            except StorageError as error:
                # No answer now is no verdict: the deadline decides.
                logger.warning("the claim %s could not be renewed just now: %s", self.prefix, error)

    def _renew(self) -> None:
        if self.storage.exists(_name_claim(self.prefix, self.state.number + 1)):
            self._lost = True
            return
        asked = time.monotonic()
        self.storage.write_bytes(_name_claim(self.prefix, self.state.number), _state_to_bytes(self.state, self.lease_seconds))
        self._deadline = asked + self.lease_seconds * 0.9


def take_claim(storage: Storage, prefix: str, holder: Holder, lease_seconds: float = LEASE_SECONDS) -> Claim | None:
    """Claims `prefix`, or returns None when somebody holds it."""
    highest = read_claim(storage, prefix)
    if highest is not None and highest.is_held():
        return None
    number = highest.number + 1 if highest else 1
    state = ClaimState(number, secrets.token_hex(4), holder, time.time() + lease_seconds)
    made = storage.create_bytes(_name_claim(prefix, number), _state_to_bytes(state, lease_seconds))
    return Claim(storage, prefix, state, lease_seconds) if made else None


def read_claim(storage: Storage, prefix: str) -> ClaimState | None:
    """The claim with the highest number, held or not."""
    keys = [item.key for item in storage.list_objects(f"{prefix}-")]
    for key in reversed(keys):
        try:
            return _bytes_to_state(int(key.rpartition("-")[2]), storage.read_bytes(key))
        except ObjectNotFoundError:
            continue  # released between the listing and the reading: look at the one below
    return None


def _name_claim(prefix: str, number: int) -> str:
    return f"{prefix}-{number:04d}"


def _state_to_bytes(state: ClaimState, lease_seconds: float) -> bytes:
    data = {"token": state.token, "holder": asdict(state.holder), "expires_at": time.time() + lease_seconds}
    return json.dumps(data).encode()


def _bytes_to_state(number: int, data: bytes) -> ClaimState:
    fields = json.loads(data)
    return ClaimState(number, fields["token"], Holder(**fields["holder"]), float(fields["expires_at"]))
