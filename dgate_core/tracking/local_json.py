"""The run's own memory: JSON lines in its folder, written before any tracker hears of them.

tracking/identity.json      the name under which every tracker knows this run
tracking/00001.jsonl        a batch of records, whole or not at all; the next is 00002.jsonl
tracking/mlflow/00001       the mark that this batch has arrived there
tracking/mlflow.json        what came of the last sending
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dgate_core.storage import Storage
from dgate_core.tracking.record import TrackingRecord, line_to_record, record_to_line

TRACKING_PREFIX = "tracking/"
IDENTITY_FILE = "tracking/identity.json"
MAX_BATCH_RECORDS = 1000

_BATCH = re.compile(r"tracking/(\d{5,})\.jsonl")


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """Records that were written together."""

    number: int
    """From 1, in the order of writing."""
    records: tuple[TrackingRecord, ...]
    """At least one."""


class LocalLog:
    """Appends and reads a run's records; any number of processes may append.

    Args:
        storage: The run's folder.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def append(self, records: Sequence[TrackingRecord]) -> list[int]:
        """Writes the records, durably, and returns the numbers of their batches.

        Raises:
            StorageError: the run's folder cannot be written.
        """
        starts = range(0, len(records), MAX_BATCH_RECORDS)
        return [self._append_batch(records[start : start + MAX_BATCH_RECORDS]) for start in starts]

    def list_numbers(self) -> list[int]:
        """Numbers of all batches, ascending."""
        keys = (item.key for item in self.storage.list_objects(TRACKING_PREFIX))
        return sorted(int(match[1]) for match in map(_BATCH.fullmatch, keys) if match)

    def read_batch(self, number: int) -> RecordBatch:
        """One batch."""
        lines = self.storage.read_bytes(_name_batch(number)).decode().splitlines()
        return RecordBatch(number, tuple(line_to_record(line) for line in lines))

    def read_records(self) -> list[TrackingRecord]:
        """Every record, in the order of writing."""
        return [record for number in self.list_numbers() for record in self.read_batch(number).records]

    def read_id(self) -> str:
        """The run's name in every tracker: 16 hex digits, chosen once and kept."""
        if not self.storage.exists(IDENTITY_FILE):
            self.storage.create_bytes(IDENTITY_FILE, json.dumps({"id": secrets.token_hex(8)}).encode())
        return str(json.loads(self.storage.read_bytes(IDENTITY_FILE))["id"])

    def list_missing(self, tracker: str) -> list[int]:
        """Batches that have not arrived at a tracker."""
        prefix = name_tracker(tracker) + "/"
        arrived = {item.key.removeprefix(prefix) for item in self.storage.list_objects(prefix)}
        return [number for number in self.list_numbers() if f"{number:05d}" not in arrived]

    def mark_arrived(self, tracker: str, numbers: Iterable[int]) -> None:
        """Notes that batches have arrived at a tracker; they are never sent there again."""
        for number in numbers:
            self.storage.write_bytes(f"{name_tracker(tracker)}/{number:05d}", f"{time.time():.3f}\n".encode())

    def _append_batch(self, records: Sequence[TrackingRecord]) -> int:
        data = "".join(record_to_line(record) + "\n" for record in records).encode()
        number = max(self.list_numbers(), default=0) + 1
        while not self.storage.create_bytes(_name_batch(number), data):
            number += 1
        return number


def name_tracker(tracker: str) -> str:
    """Where the marks of a tracker stand: `tracking/mlflow`; a plug-in's colon becomes a dash."""
    return TRACKING_PREFIX + tracker.replace(":", "-")


def _name_batch(number: int) -> str:
    return f"{TRACKING_PREFIX}{number:05d}.jsonl"
