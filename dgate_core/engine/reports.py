"""What a lane says of itself while it works: a small object per lane, read by whoever shows progress."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from dgate_core.errors import ObjectNotFoundError, StorageError
from dgate_core.storage import Storage

logger = logging.getLogger(__name__)

REPORT_EVERY_SECONDS = 1.0
LANES_PREFIX = "lanes/"


@dataclass(slots=True)
class LaneReport:
    """Figures of one lane since its process started; what a run made in all stands in its shards."""

    lane: str
    state: str = "starting"
    """starting | working | waiting | finished | stopped | failed"""
    device: str = ""
    shard: int | None = None
    shards_done: int = 0
    ok: int = 0
    failed: int = 0
    seconds: float = 0.0
    """Since the lane began; loading the model counts."""
    stages: dict[str, float] = field(default_factory=dict)
    batch_size: int = 0
    serving: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What computes each model: a `Serving` as plain data."""
    updated_at: float = 0.0
    error: str = ""

    def add_stages(self, stages: Mapping[str, float]) -> None:
        """Adds seconds by stage."""
        self.stages = dict(Counter(self.stages) + Counter(stages))


class Reporter:
    """Writes a lane's report, throttled; a storage that is slow or down does not stop the lane."""

    def __init__(self, storage: Storage, report: LaneReport) -> None:
        self._storage, self.report = storage, report
        self._last = 0.0

    def tell(self, *, now: bool = False) -> None:
        """Writes the report unless one was written a moment ago."""
        if not now and time.monotonic() - self._last < REPORT_EVERY_SECONDS:
            return
        self._last = time.monotonic()
        self.report.updated_at = time.time()
        data = json.dumps(asdict(self.report)).encode()
        try:
            self._storage.write_bytes(name_report(self.report.lane), data, durable=False)
        except StorageError as error:
            logger.warning("the lane's report could not be written: %s", error)


def read_reports(storage: Storage) -> list[LaneReport]:
    """Reports of all lanes of the current attempt."""
    reports = []
    for item in storage.list_objects(LANES_PREFIX):
        # A run that begins again clears the reports of the attempt before, perhaps between listing and reading.
        with suppress(ObjectNotFoundError):
            reports.append(report_from_dict(json.loads(storage.read_bytes(item.key))))
    return reports


def report_from_dict(data: Mapping[str, Any]) -> LaneReport:
    """The inverse of `asdict`; a lane of another version may tell more."""
    return LaneReport(**{field.name: data[field.name] for field in fields(LaneReport) if field.name in data})


def name_report(lane: str) -> str:
    """Key of a lane's report."""
    return f"{LANES_PREFIX}{lane}.json"
