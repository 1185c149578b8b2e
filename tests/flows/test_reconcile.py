"""Lost lanes: what the reconciler does with what a scheduler tells it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dgate_core.engine import reconcile
from dgate_core.engine.begin import open_run
from dgate_core.engine.lane import LaneOptions
from dgate_core.engine.reconcile import MAX_LOSSES_WITHOUT_PROGRESS, LaneRun, Reconciler
from dgate_core.engine.stopping import StopSignal
from dgate_core.errors import RunError
from dgate_core.runs.layout import name_commit
from dgate_core.runs.settings import RunSettings
from dgate_core.runs.store import RunStore
from tests.flows.conftest import list_prompts, write_manifest

LANES = [LaneOptions("lane-0", 0), LaneOptions("lane-1", 1)]


class Scheduler:
    """Tells of every lane what the test says."""

    def __init__(self, tell: Callable[[str, int], LaneRun | None]) -> None:
        self._tell = tell
        self.submitted = {options.name: 0 for options in LANES}
        self.cancelled: list[str] = []
        self.looks = 0

    def look(self) -> dict[str, LaneRun] | None:
        self.looks += 1
        runs = [self._tell(name, self.looks) for name, times in self.submitted.items() if times]
        return {run.lane: run for run in runs if run} if None not in runs else None

    def submit(self, options: LaneOptions) -> None:
        self.submitted[options.name] += 1

    def cancel(self, lane: str) -> None:
        self.cancelled.append(lane)


@pytest.fixture
def store(checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    monkeypatch.setattr(reconcile, "POLL_SECONDS", 0.01)
    manifest = write_manifest(tmp_path / "m.jsonl", list_prompts(4))
    settings = RunSettings(model=checkpoint, precision="float32", rows_per_shard=2)
    return open_run([manifest], str(tmp_path / "run"), settings).store


def begin(store: RunStore, scheduler: Scheduler) -> Reconciler:
    reconciler = Reconciler(store, LANES, scheduler, StopSignal())
    reconciler.begin()
    assert scheduler.submitted == {"lane-0": 1, "lane-1": 1}
    return reconciler


def commit(store: RunStore, shard: int) -> None:
    store.storage.create_bytes(name_commit(shard), json.dumps({"rows": 2}).encode())


def test_lanes_that_keep_dying_without_a_row_end_the_run(store: RunStore) -> None:
    scheduler = Scheduler(lambda lane, _: LaneRun(lane, "ended", "Crashed: exit -9"))
    with pytest.raises(RunError, match="exit -9"):
        begin(store, scheduler).work()
    assert scheduler.submitted["lane-0"] == 1 + MAX_LOSSES_WITHOUT_PROGRESS


def test_refused_lane_ends_the_run_at_once(store: RunStore) -> None:
    scheduler = Scheduler(lambda lane, _: LaneRun(lane, "refused", "the disk is full"))
    with pytest.raises(RunError, match="the disk is full"):
        begin(store, scheduler).work()
    assert scheduler.submitted == {"lane-0": 1, "lane-1": 1}


def test_store_decides_when_the_work_is_done(store: RunStore) -> None:
    def tell(lane: str, looks: int) -> LaneRun | None:
        if looks == 3:
            commit(store, 0)
            commit(store, 1)
        # First no answer at all; then one lane runs, and one never got a worker.
        return None if looks < 3 else LaneRun(lane, "running" if lane == "lane-0" else "waiting")

    scheduler = Scheduler(tell)
    begin(store, scheduler).work()
    assert scheduler.submitted == {"lane-0": 1, "lane-1": 1}
    assert scheduler.cancelled == ["lane-1"]


def test_silent_lane_is_replaced(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "BEGIN_WITHIN_SECONDS", 0.05)

    def tell(lane: str, _looks: int) -> LaneRun:
        if scheduler.submitted["lane-0"] == 2:
            commit(store, 0)
            commit(store, 1)
        return LaneRun(lane, "running")

    scheduler = Scheduler(tell)
    begin(store, scheduler).work()
    assert scheduler.submitted["lane-0"] == 2
    assert "lane-0" in scheduler.cancelled
