"""Sends a run's records in the background, within a time limit; what does not arrive costs the run nothing.

A process per tracker: one that hangs is ended with everything that it started, one that dies is named, and what was
missed waits in the run's folder for `dgate track sync`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from tempfile import TemporaryFile
from typing import IO

import psutil

from dgate_core.storage import Storage, open_storage
from dgate_core.tracking.contract import check_tracker
from dgate_core.tracking.local_json import LocalLog, name_tracker

LIMIT_SECONDS = 20.0
OWN_TIMER_SECONDS = 10.0
ERROR_LENGTH = 300


@dataclass(frozen=True, slots=True)
class TrackerOutcome:
    """What came of a sending."""

    tracker: str
    """Its name."""
    arrived: int
    """Batches of records that it has."""
    missing: int
    """Batches that it does not have."""
    error: str
    """Why, in one line; empty when nothing is missing."""

    def describe(self, run_uri: str) -> str:
        """A line for a summary."""
        whole = self.arrived + self.missing
        if not self.missing:
            return f"{self.tracker}: all {whole} records sent"
        told = f"{self.tracker}: {self.missing} of {whole} records not sent ({self.error})"
        return f"{told}; next: dgate track sync {run_uri}"


class Sending:
    """Processes that are sending; `wait` must be called, it ends them at the latest at the limit.

    Args:
        run_uri: The run's folder.
        trackers: Names.
        limit_seconds: From now.
    """

    def __init__(self, run_uri: str, trackers: Sequence[str], limit_seconds: float) -> None:
        self._storage = open_storage(run_uri)
        self._limit_seconds = limit_seconds
        self._deadline = time.monotonic() + limit_seconds
        self._couriers = [_Courier(self._storage.uri, name, limit_seconds) for name in trackers]

    def wait(self) -> tuple[TrackerOutcome, ...]:
        """Waits for the processes, at most until the limit, and keeps what came of each in the run's folder."""
        try:
            errors = [courier.wait(self._deadline) for courier in self._couriers]
        finally:
            for courier in self._couriers:
                courier.end()
        names = [courier.tracker for courier in self._couriers]
        outcomes = [self._conclude(name, error) for name, error in zip(names, errors, strict=True)]
        for outcome in outcomes:
            self._storage.write_bytes(name_tracker(outcome.tracker) + ".json", json.dumps(asdict(outcome)).encode())
        return tuple(outcomes)

    def _conclude(self, tracker: str, error: str | None) -> TrackerOutcome:
        log = LocalLog(self._storage)
        whole, missing = len(log.list_numbers()), len(log.list_missing(tracker))
        why = f"not within {self._limit_seconds:g} s" if error is None else error
        return TrackerOutcome(tracker, whole - missing, missing, (why or "not sent") if missing else "")


def start_sending(run_uri: str, trackers: Sequence[str], limit_seconds: float = LIMIT_SECONDS) -> Sending:
    """Begins to send what the trackers lack, and returns at once.

    Raises:
        UsageError: there is no such tracker.
    """
    for tracker in trackers:
        check_tracker(tracker)
    return Sending(run_uri, trackers, limit_seconds)


def read_outcomes(storage: Storage) -> tuple[TrackerOutcome, ...]:
    """What came of the last sending to each tracker."""
    keys = [item.key for item in storage.list_objects("tracking/") if _is_outcome(item.key)]
    names = [field.name for field in fields(TrackerOutcome)]
    found = [json.loads(storage.read_bytes(key)) for key in keys]
    return tuple(TrackerOutcome(**{name: entry[name] for name in names}) for entry in found)


def _is_outcome(key: str) -> bool:
    return key.count("/") == 1 and key.endswith(".json") and key != "tracking/identity.json"


class _Courier:
    """The process of one tracker; what it says goes to files, since a pipe that nobody reads would hold it up."""

    def __init__(self, run_uri: str, tracker: str, limit_seconds: float) -> None:
        self.tracker = tracker
        self._said, self._complained = TemporaryFile(), TemporaryFile()  # noqa: SIM115 - closed by `end`
        # Its own timer is for the case that this process is killed; here the wait ends first.
        arguments = [run_uri, tracker, f"{limit_seconds + OWN_TIMER_SECONDS:g}"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dgate_core.tracking.delivery_process", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._complained,
            start_new_session=True,  # Ctrl-C is for the run
        )

    def wait(self, deadline: float) -> str | None:
        """What went wrong, empty when nothing did, None when it did not end in time."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None
        said = _read_lines(self._said)
        if said and said[-1].startswith('{"error"'):
            return str(json.loads(said[-1])["error"])[:ERROR_LENGTH]
        complaint = _read_lines(self._complained)
        return (complaint[-1] if complaint else f"exit {self._process.returncode}")[:ERROR_LENGTH]

    def end(self) -> None:
        """Ends it with everything that it started; one that has ended already is fine."""
        if self._process.poll() is None:
            _kill_tree(self._process.pid)
            self._process.wait()
        self._said.close()
        self._complained.close()


def _kill_tree(pid: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for each in [*process.children(recursive=True), process]:
            with suppress(psutil.NoSuchProcess):
                each.kill()


def _read_lines(stream: IO[bytes]) -> list[str]:
    stream.seek(0)
    return [line for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
