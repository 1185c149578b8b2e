"""How far a run is, read from its folder: whoever shows progress needs nothing but the folder's address."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dgate_core.engine.reports import LaneReport, read_reports
from dgate_core.errors import ObjectNotFoundError
from dgate_core.manifest.plan_files import read_shard_index
from dgate_core.manifest.shards import ShardInfo
from dgate_core.runs import layout
from dgate_core.runs.store import RunStore

WINDOW_SECONDS = 30.0
SHARDS_SHOWN = 500


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment of a run."""

    total: int
    """Images to make."""
    done: int
    """Images made or failed so far, earlier sessions of the run included."""
    failed: int
    """Of these, failed since somebody began to look."""
    rate: float
    """Images per second in the last half minute, or in the last batches when one takes longer; 0 until the first."""
    lanes: int
    """Lanes at work."""

    @property
    def percent(self) -> float:
        """0 to 100."""
        return 100.0 * self.done / self.total if self.total else 100.0

    @property
    def seconds_left(self) -> float | None:
        """At the present rate."""
        return (self.total - self.done) / self.rate if self.rate else None


class ProgressReader:
    """Adds up what the lanes report; a lane that is started again counts from zero, the sum does not.

    Args:
        store: The run, planned.
        clock: Seconds, monotonic.
    """

    def __init__(self, store: RunStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        shards = read_shard_index(store.storage)
        latest = max((shard.attempt for shard in shards), default=1)
        shards = [shard for shard in shards if shard.attempt == latest]
        self._total = sum(shard.rows for shard in shards)
        self._seen = {report.lane: report for report in read_reports(store.storage)}
        is_fresh = store.read_run()["state"] == "planned"
        self._done = 0 if is_fresh else sum(count_recorded(store, shard) for shard in shards)
        self._failed = 0
        self._changes: deque[tuple[float, int]] = deque()

    def read(self) -> Progress:
        """One listing and one small object per lane."""
        reports = read_reports(self._store.storage)
        for report in reports:
            before = self._seen.get(report.lane)
            if before is None or report.ok < before.ok or report.failed < before.failed:
                before = LaneReport(report.lane)
            self._done += report.ok - before.ok + report.failed - before.failed
            self._failed += report.failed - before.failed
        self._seen = {report.lane: report for report in reports}
        done = min(self._done, self._total)
        working = sum(report.state == "working" for report in reports)
        return Progress(self._total, done, self._failed, self._measure_rate(done), working)

    def _measure_rate(self, done: int) -> float:
        """Between two batches the last rate stands, however long one takes; of lanes that fell silent it sinks."""
        now, changes = self._clock(), self._changes
        if not changes or done != changes[-1][1]:
            changes.append((now, done))
        while len(changes) > 2 and now - changes[1][0] > WINDOW_SECONDS:
            changes.popleft()
        (since, before), (latest, _) = changes[0], changes[-1]
        elapsed = max(latest - since, (now - since) / 2)
        return (done - before) / elapsed if elapsed else 0.0


def count_recorded(store: RunStore, shard: ShardInfo) -> int:
    """Rows of a shard that will not be made again."""
    progress = store.read_progress(shard.shard)
    if progress.committed:
        return shard.rows
    try:
        return store.read_parts(progress.parts).num_rows
    except ObjectNotFoundError:
        return shard.rows  # its parts were folded into rows.parquet a moment ago


class ShardTable:
    """The first shards of a run as rows for people; what is committed is read once.

    Args:
        store: The run, planned.
        limit: Shards shown.
    """

    def __init__(self, store: RunStore, limit: int = SHARDS_SHOWN) -> None:
        self._store = store
        self._shards = read_shard_index(store.storage)[:limit]
        self._finished: dict[int, dict[str, Any]] = {}

    def read(self) -> list[dict[str, Any]]:
        """Shard, model, size, rows, state, lane, failures, in the order of the shards."""
        reports = read_reports(self._store.storage)
        return [self._describe(shard, reports) for shard in self._shards]

    def _describe(self, shard: ShardInfo, reports: Sequence[LaneReport]) -> dict[str, Any]:
        if shard.shard in self._finished:
            return self._finished[shard.shard]
        key = shard.batch_key
        row = {"shard": shard.shard, "model": key.model, "size": f"{key.width}x{key.height}", "rows": shard.rows}
        storage = self._store.storage
        if storage.exists(layout.name_commit(shard.shard)):
            stats = json.loads(storage.read_bytes(layout.name_stats(shard.shard)))
            row |= {"state": "committed", "lane": stats["lane"], "failed": stats["errors"]}
            self._finished[shard.shard] = row
            return row
        lane = next((report.lane for report in reports if report.shard == shard.shard), "")
        return row | {"state": "in work" if lane else "waiting", "lane": lane, "failed": 0}
