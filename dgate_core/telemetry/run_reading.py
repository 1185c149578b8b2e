"""What a bulk run's folder says of it at one moment: exact, also for lanes that lived and ended between two looks."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from dgate_core.errors import ObjectNotFoundError
from dgate_core.manifest.plan_files import has_plan, read_shard_index
from dgate_core.manifest.shards import ShardInfo
from dgate_core.runs import layout
from dgate_core.runs.store import RunStore

LANES_PREFIX: Final = "lanes/"
GATE_FILE: Final = "evaluation/gate.json"
WINDOW_SECONDS: Final = 120.0
"""The rate is over so long, or since somebody began to look."""


@dataclass(frozen=True, slots=True)
class RowCount:
    """Rows that are recorded, so that no restart makes them again."""

    done: int = 0
    """Made or failed."""
    failed: int = 0


@dataclass(frozen=True, slots=True)
class RunReading:
    """A run at one moment."""

    run: str
    """Its address."""
    state: str
    """Of run.json."""
    rows: int
    """To make in the latest attempt: all of a plan, or the rows of a retry."""
    counted: RowCount
    """Of these."""
    rate: float | None
    """Rows per second; None when the run does not work or nothing is known yet."""
    lanes: Sequence[Mapping[str, Any]] = ()
    """Reports of its lanes."""
    verdict: Mapping[str, Any] | None = None
    """gate.json; None before a gate."""

    @property
    def seconds_left(self) -> float | None:
        """At the present rate."""
        return (self.rows - self.counted.done) / self.rate if self.rate else None


class RunReader:
    """Reads one run again and again; what is committed is read once.

    Args:
        store: A run, planned or not yet.
    """

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._shards: list[ShardInfo] = []
        self._committed: dict[int, RowCount] = {}
        self._begun: dict[int, RowCount] = {}
        self._in_work: set[int] = set()
        """Shards in the hands of lanes at the last look: they may have grown since."""
        self._shards_done = -1
        self._window: deque[tuple[float, int]] = deque()

    def read(self) -> RunReading:
        """The run now.

        Raises:
            RunError: there is no run.
            StorageError: storage does not answer.
        """
        run = self._store.read_run()
        lanes = self._read_lanes()
        self._follow_plan()
        self._look_at_shards(lanes)
        counted = self._count(lanes)
        verdict = self._read_json(GATE_FILE)
        rows = sum(shard.rows for shard in self._shards)
        rate = self._measure_rate(counted.done, lanes) if run["state"] == "running" else None
        return RunReading(self._store.uri, run["state"], rows, counted, rate, lanes, verdict)

    def _follow_plan(self) -> None:
        """A retry adds shards; they are the latest attempt then."""
        shards = read_shard_index(self._store.storage) if has_plan(self._store.storage) else []
        latest = max((shard.attempt for shard in shards), default=1)
        shards = [shard for shard in shards if shard.attempt == latest]
        if [shard.shard for shard in shards] != [shard.shard for shard in self._shards]:
            self._shards, self._shards_done = shards, -1
            self._begun.clear()
            self._window.clear()

    def _look_at_shards(self, lanes: Sequence[Mapping[str, Any]]) -> None:
        """All that are not known to be committed, whenever a lane has finished one since the last look."""
        shards_done = sum(lane["shards_done"] for lane in lanes)
        if shards_done == self._shards_done:
            return
        for shard in self._shards:
            if shard.shard not in self._committed and (stats := self._read_stats(shard.shard)) is not None:
                self._committed[shard.shard] = RowCount(shard.rows, stats["errors"])
        self._shards_done = shards_done

    def _count(self, lanes: Sequence[Mapping[str, Any]]) -> RowCount:
        """Committed shards by their statistics, begun ones by their parts."""
        in_work = {lane["shard"] for lane in lanes if lane["shard"] is not None}
        for shard in self._shards:
            is_known = shard.shard in self._begun and shard.shard not in in_work | self._in_work
            if shard.shard not in self._committed and not is_known:
                self._begun[shard.shard] = self._count_parts(shard)
        self._in_work = in_work
        counts = [self._committed.get(shard.shard) or self._begun[shard.shard] for shard in self._shards]
        return RowCount(sum(count.done for count in counts), sum(count.failed for count in counts))

    def _count_parts(self, shard: ShardInfo) -> RowCount:
        statuses = None
        with suppress(ObjectNotFoundError):
            parts = self._store.read_progress(shard.shard).parts
            statuses = self._store.read_parts(parts).column("status").to_pylist()
        # Parts are folded into rows.parquet and deleted after it: looked for last, it tells whether any was missing.
        if self._store.is_decided(shard.shard) or statuses is None:
            statuses = self._store.read_rows(shard.shard).column("status").to_pylist()
        return RowCount(len(statuses), statuses.count("error"))

    def _read_stats(self, shard: int) -> dict[str, Any] | None:
        if not self._store.storage.exists(layout.name_commit(shard)):
            return None
        return self._read_json(layout.name_stats(shard))

    def _read_lanes(self) -> list[dict[str, Any]]:
        reports = [self._read_json(item.key) for item in self._store.storage.list_objects(LANES_PREFIX)]
        return [report for report in reports if report is not None]

    def _read_json(self, key: str) -> dict[str, Any] | None:
        with suppress(ObjectNotFoundError):
            found: dict[str, Any] = json.loads(self._store.storage.read_bytes(key))
            return found
        return None

    def _measure_rate(self, done: int, lanes: Sequence[Mapping[str, Any]]) -> float | None:
        """Over the window; at the first look, what the lanes tell of their whole life."""
        now = time.monotonic()
        self._window.append((now, done))
        while now - self._window[0][0] > WINDOW_SECONDS:
            self._window.popleft()
        since, before = self._window[0]
        if now - since >= 1.0:
            return (done - before) / (now - since)
        rates = [(lane["ok"] + lane["failed"]) / lane["seconds"] for lane in lanes if lane["seconds"] > 0]
        return sum(rates) or None
