"""How far a run is: counts over lanes that come and go, and a speed that holds between long batches."""

from __future__ import annotations

from pathlib import Path

import pytest

from dgate_core.engine.begin import open_run
from dgate_core.engine.progress import ProgressReader
from dgate_core.engine.reports import LaneReport, Reporter
from dgate_core.runs.settings import RunSettings
from dgate_core.runs.store import RunStore
from tests.manifest_samples import write_jsonl


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    """Planned, 100 images."""
    manifest = write_jsonl(tmp_path / "m.jsonl", [{"prompt": f"boat {number}"} for number in range(100)])
    return open_run([str(manifest)], str(tmp_path / "run"), RunSettings(precision="float32")).store


def report(store: RunStore, ok: int, failed: int = 0, lane: str = "lane-0") -> None:
    Reporter(store.storage, LaneReport(lane, "working", ok=ok, failed=failed)).tell(now=True)


def test_a_lane_that_starts_again_counts_on(store: RunStore) -> None:
    reader = ProgressReader(store)
    assert reader.read().done == 0
    report(store, 10, failed=2)
    assert (reader.read().done, reader.read().failed, reader.read().total) == (12, 2, 100)
    report(store, 3)
    report(store, 5, lane="lane-1")
    progress = reader.read()
    assert (progress.done, progress.failed, progress.lanes) == (20, 2, 2)


def test_the_speed_holds_between_batches_that_take_minutes_and_sinks_when_lanes_fall_silent(store: RunStore) -> None:
    clock = Clock()
    reader = ProgressReader(store, clock)
    assert reader.read().rate == 0.0
    for batch in range(1, 4):
        for second in range(1, 121):
            clock.now = 120.0 * (batch - 1) + second
            if second == 120:
                report(store, 12 * batch)
            progress = reader.read()
            if batch > 1:
                assert progress.rate == pytest.approx(0.1), f"{clock.now} s"
                assert progress.seconds_left == pytest.approx((100 - progress.done) / 0.1)
    clock.now += 1200.0
    assert reader.read().rate == pytest.approx(12 / 660)


def test_the_speed_of_quick_batches_is_that_of_the_last_half_minute(store: RunStore) -> None:
    clock = Clock()
    reader = ProgressReader(store, clock)
    for second in range(101):
        clock.now = float(second)
        report(store, second // 10 if second < 60 else second - 54)
        rate = reader.read().rate
    assert rate == pytest.approx(1.0)
