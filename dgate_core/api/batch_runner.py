"""Who carries a batch out: by default a process of its own beside the server; flows/ has one for Prefect."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from typing import IO, Literal, Protocol

from dgate_core.runs.settings import RunSettings

PROCESS_MODULE = "dgate_core.api.batch_process"
LEAVE_SECONDS = 60.0
"""For the batch in hand of a run, when the server goes."""


@dataclass(frozen=True, slots=True)
class BatchOrder:
    """A run to make, or to go on with."""

    manifest: str
    """Address of the requests, OpenAI Batch JSONL."""
    out: str
    """Address of the run's folder."""
    settings: RunSettings
    attempt: int = 0
    """How often it was started before; the same attempt asked for twice is one run."""


@dataclass(frozen=True, slots=True)
class BatchEnd:
    """How a runner ended."""

    state: Literal["finished", "failed"]
    """`finished`: run.json says what came of it, a stop included."""
    message: str = ""
    """Why it failed."""
    may_retry: bool = False
    """Whether starting it again may help: it was killed, not refused."""


class BatchHandle(Protocol):
    """A run on its way."""

    def poll(self) -> BatchEnd | None:
        """None while it works."""
        ...

    def stop(self) -> None:
        """Asks it to end after what is in hand; may be called again."""
        ...

    def leave(self) -> None:
        """The server is going: what cannot outlive it ends; what can goes on, and is found again by its order."""
        ...


class BatchRunner(Protocol):
    """Starts runs; a run that was begun before goes on."""

    def submit(self, order: BatchOrder) -> BatchHandle: ...


class ProcessRunner:
    """A process per batch, at low priority on the CPU, that ends with the server."""

    def submit(self, order: BatchOrder) -> BatchHandle:
        """See `BatchRunner`."""
        return ProcessHandle(order)


class ProcessHandle:
    """A batch's process."""

    def __init__(self, order: BatchOrder) -> None:
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the process has ended
        arguments = [order.manifest, order.out, json.dumps(asdict(order.settings)), str(os.getpid())]
        self._process = subprocess.Popen(
            [sys.executable, "-m", PROCESS_MODULE, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            start_new_session=True,  # Ctrl-C is for the server, which then stops its batches in order
        )

    def poll(self) -> BatchEnd | None:
        """See `BatchHandle`."""
        code = self._process.poll()
        if code is None:
            return None
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip().splitlines()
        if code == 0:
            return BatchEnd("finished")
        if code == 1 and said:
            return BatchEnd("failed", said[-1])
        return BatchEnd("failed", f"its process ended with {code}", may_retry=True)

    def stop(self) -> None:
        """See `BatchHandle`."""
        if self._process.poll() is None:
            self._process.terminate()

    def leave(self) -> None:
        """See `BatchHandle`."""
        self.stop()
        try:
            self._process.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()  # what is recorded stays, and the next start goes on from there
