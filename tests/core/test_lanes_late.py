"""Lanes at the worst moment: asleep beyond their lease and then awake again, or dead between two writes."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from dgate_core.storage import open_storage
from tests.faults import SignalBefore
from tests.run_lab import Driver, Order, check_run_is_whole, list_prompts, read_batches, wait_for, write_manifest

ROWS, SHARDS = 24, 4


def give_order(checkpoint: str, folder: Path, fault: SignalBefore, container: str = "files") -> Order:
    manifest = write_manifest(folder / "m.jsonl", list_prompts(ROWS))
    settings = {"model": checkpoint, "precision": "float32", "lanes": 2, "rows_per_shard": 6, "batch_size": 2}
    settings |= {"lease_seconds": 2.0 if fault.number == signal.SIGSTOP else 60.0, "container": container}
    return Order(str(folder / "run"), manifest, settings, fault=fault, batch_log=str(folder / "batches"))


@pytest.mark.parametrize(
    ("method", "call", "container"),
    [
        ("write_part", 2, "files"),
        ("commit_shard", 1, "files"),
        ("conclude_commit", 1, "files"),
        ("write_part", 2, "webdataset"),
    ],
)
def test_a_lane_that_sleeps_beyond_its_lease(
    checkpoint: str, tmp_path: Path, method: str, call: int, container: str
) -> None:
    """Another lane has finished its shard meanwhile; what the late one still writes does no harm and does not stay."""
    fault = SignalBefore(method, call, signal.SIGSTOP, tmp_path / "mark")
    driver = Driver(give_order(checkpoint, tmp_path, fault, container))
    pid = int(wait_for(lambda: fault.mark.exists() and fault.mark.read_text()))
    wait_for(lambda: len(list(tmp_path.glob("run/shards/*/_COMMIT"))) == SHARDS)
    before = {path: path.read_bytes() for path in tmp_path.glob("run/shards/*/rows.parquet")}
    os.kill(pid, signal.SIGCONT)
    answer = driver.wait()
    assert not answer.error, answer.message
    assert {path: path.read_bytes() for path in before} == before
    if container == "files":
        check_run_is_whole(open_storage(tmp_path / "run"), {"ok": ROWS})


@pytest.mark.parametrize("method", ["write_part", "commit_shard", "conclude_commit"])
def test_a_lane_that_dies_between_two_writes(checkpoint: str, tmp_path: Path, method: str) -> None:
    fault = SignalBefore(method, 1, signal.SIGKILL, tmp_path / "mark")
    answer = Driver(give_order(checkpoint, tmp_path, fault)).wait()
    assert not answer.error, answer.message
    assert fault.mark.exists()
    check_run_is_whole(open_storage(tmp_path / "run"), {"ok": ROWS})
    made = Counter(ordinal for batch in read_batches(tmp_path / "batches", "made") for ordinal in batch)
    # Only a batch that was not recorded is made again: a shard that is decided, or recorded as a whole, is not.
    assert made.total() - ROWS <= (4 if method == "write_part" else 0)


def test_the_shard_of_a_dead_lane_is_taken_over_at_once(checkpoint: str, tmp_path: Path) -> None:
    """Its lease of a minute does not matter, for it was a process of this machine."""
    fault = SignalBefore("commit_shard", 1, signal.SIGKILL, tmp_path / "mark")
    driver = Driver(give_order(checkpoint, tmp_path, fault))
    wait_for(fault.mark.exists)
    died = time.monotonic()
    answer = driver.wait()
    assert time.monotonic() - died < 30, answer.message
    stats = [json.loads(path.read_text()) for path in (tmp_path / "run").glob("shards/*/_stats.json")]
    assert sum(each["ok"] for each in stats) == ROWS
