"""Trackers that misbehave: plug-ins as a user would write them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from dgate_core.tracking.contract import TrackedRun
from dgate_core.tracking.local_json import RecordBatch


def note(run: TrackedRun, text: str) -> None:
    with Path(run.storage.uri, "told.txt").open("a") as file:
        file.write(text + "\n")


def read_notes(folder: Path) -> list[str]:
    return (folder / "told.txt").read_text().splitlines()


def deliver_well(run: TrackedRun, batches: Sequence[RecordBatch]) -> Iterator[int]:
    """Writes each batch's number into told.txt."""
    for batch in batches:
        note(run, str(batch.number))
        yield batch.number


def deliver_half(run: TrackedRun, batches: Sequence[RecordBatch]) -> Iterator[int]:
    """Fails in the middle, until a file `mended` is there."""
    for batch in batches:
        if batch.number > 1 and not Path(run.storage.uri, "mended").exists():
            raise ConnectionResetError("the tracker\nwent away")
        note(run, str(batch.number))
        yield batch.number


def deliver_never(run: TrackedRun, batches: Sequence[RecordBatch]) -> Iterator[int]:
    """Hangs, with a process of its own that hangs too, and talks more than a pipe holds."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    note(run, f"{os.getpid()} {child.pid}")
    print("x" * 200_000)
    time.sleep(600)
    yield batches[0].number


def deliver_dying(run: TrackedRun, batches: Sequence[RecordBatch]) -> Iterator[int]:
    """Takes its process down."""
    print("libtracker: assertion failed", file=sys.stderr, flush=True)
    os._exit(134)
    yield batches[0].number
