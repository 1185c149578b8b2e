"""Claims: who works on a shard. They avoid waste; that a shard is right and committed once does not rest on them.

A claim is an object `PREFIX-0001` made by conditional create; the highest number holds. Its holder renews it by writing
it again before its lease ends. Another lane takes over with the next number when the lease has ended, or at once when
the holder was a process of this machine that is gone. Nothing but conditional create is asked of the storage.
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

    `is_valid` turns False for good when somebody else took over or when the lease was not renewed in time; the holder
    then stops.

    Args:
        storage: Holds the claim.
        prefix: Of its key.
        state: As it was written.
        lease_seconds: How long it lasts without a renewal.
        asked: `time.monotonic()` before it was written; the lease counts from there.
    """

    def __init__(self, storage: Storage, prefix: str, state: ClaimState, lease_seconds: float, asked: float) -> None:
        self.storage, self.prefix, self.state, self.lease_seconds = storage, prefix, state, lease_seconds
        self._deadline = self._find_deadline(asked)
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
        # A deadline that has passed stays passed: somebody may have come and gone since.
        self._lost = self._lost or time.monotonic() >= self._deadline
        return not self._lost

    def release(self) -> None:
        """Gives the claim back, so that the next lane need not wait."""
        self._stopped.set()
        self._thread.join()
        if self._is_highest():
            # Older ones go too, so that a holder who was given up and wakes up late finds its own gone.
            own = _name_claim(self.prefix, self.state.number)
            self.storage.delete_many([key for key in _list_claims(self.storage, self.prefix) if key <= own])

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.release()
        except StorageError as failure:
            logger.warning("the claim %s could not be given back and ends with its lease: %s", self.prefix, failure)

    def _keep_renewing(self) -> None:
        while self.is_valid() and not self._stopped.wait(self.lease_seconds / 3):
            try:
                self._renew()
            except StorageError as error:
                # No answer now is no verdict: the deadline decides.
                logger.warning("the claim %s could not be renewed just now: %s", self.prefix, error)

    def _renew(self) -> None:
        asked = time.monotonic()
        self._lost = self._lost or not self._is_highest()
        if self.is_valid():
            data = _state_to_bytes(self.state, self.lease_seconds)
            self.storage.write_bytes(_name_claim(self.prefix, self.state.number), data)
            self._deadline = self._find_deadline(asked)

    def _is_highest(self) -> bool:
        highest = read_claim(self.storage, self.prefix)
        return highest is not None and highest.token == self.token

    def _find_deadline(self, asked: float) -> float:
        """Somewhat before others may take over."""
        return asked + self.lease_seconds * 0.9


def take_claim(storage: Storage, prefix: str, holder: Holder, lease_seconds: float = LEASE_SECONDS) -> Claim | None:
    """Claims `prefix`, or returns None when somebody holds it."""
    highest = read_claim(storage, prefix)
    if highest is not None and highest.is_held():
        return None
    number = highest.number + 1 if highest else 1
    asked = time.monotonic()
    state = ClaimState(number, secrets.token_hex(4), holder, time.time() + lease_seconds)
    made = storage.create_bytes(_name_claim(prefix, number), _state_to_bytes(state, lease_seconds))
    return Claim(storage, prefix, state, lease_seconds, asked) if made else None


def read_claim(storage: Storage, prefix: str) -> ClaimState | None:
    """The claim with the highest number, held or not."""
    for key in reversed(_list_claims(storage, prefix)):
        try:
            return _bytes_to_state(int(key.rpartition("-")[2]), storage.read_bytes(key))
        except ObjectNotFoundError:
            continue  # released between the listing and the reading: look at the one below
    return None


def _list_claims(storage: Storage, prefix: str) -> list[str]:
    """Keys of the claims, the highest number last."""
    return [item.key for item in storage.list_objects(f"{prefix}-")]


def _name_claim(prefix: str, number: int) -> str:
    return f"{prefix}-{number:04d}"


def _state_to_bytes(state: ClaimState, lease_seconds: float) -> bytes:
    data = {"token": state.token, "holder": asdict(state.holder), "expires_at": time.time() + lease_seconds}
    return json.dumps(data).encode()


def _bytes_to_state(number: int, data: bytes) -> ClaimState:
    fields = json.loads(data)
    return ClaimState(number, fields["token"], Holder(**fields["holder"]), float(fields["expires_at"]))
