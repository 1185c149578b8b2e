"""A run goes on by the same command, whatever ended it; what is committed stays as it is."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from dgate_core.storage import open_storage
from tests.run_lab import (
    Driver,
    Order,
    check_run_is_whole,
    list_prompts,
    read_batches,
    read_results,
    snapshot,
    wait_for,
    write_manifest,
)

ROWS, BATCH = 40, 4


def give_order(checkpoint: str, folder: Path, lanes: int, steps: int = 10) -> Order:
    manifest = write_manifest(folder / "m.jsonl", list_prompts(ROWS, num_inference_steps=steps))
    settings = {"model": checkpoint, "precision": "float32", "lanes": lanes, "rows_per_shard": 8, "batch_size": BATCH}
    return Order(str(folder / "run"), manifest, settings, batch_log=str(folder / "batches"))


def count_commits(folder: Path) -> int:
    return len(list(folder.glob("run/shards/*/_COMMIT")))


def count_made(folder: Path) -> Counter[int]:
    return Counter(ordinal for batch in read_batches(folder / "batches", "made") for ordinal in batch)


def test_after_sigkill_of_the_driver(checkpoint: str, tmp_path: Path) -> None:
    order = give_order(checkpoint, tmp_path, lanes=2)
    driver = Driver(order)
    wait_for(lambda: count_commits(tmp_path) >= 2)
    lanes = driver.list_lanes()
    driver.send(signal.SIGKILL)
    driver.process.join()
    assert len(lanes) == 2
    # The old lanes may still have their last batch in hand: the new driver need not wait for them.
    before = snapshot(tmp_path / "run")
    answer = Driver(order).wait()
    assert not answer.error, answer.message
    assert snapshot(tmp_path / "run").items() >= before.items()
    _, alive = psutil.wait_procs(lanes, timeout=20)
    assert not alive, "lanes do not outlive their driver"
    check_run_is_whole(open_storage(tmp_path / "run"), {"ok": ROWS})
    assert count_made(tmp_path).total() == ROWS, "lanes that end by themselves lose nothing"
    assert answer.run["made"] == ROWS
    assert answer.run["wall_seconds"] > answer.run["finished_at"] - answer.run["updated_at"]
    assert answer.run["state"] == "completed"


@pytest.mark.parametrize("lanes", [1, 2])
def test_after_sigterm(checkpoint: str, tmp_path: Path, lanes: int) -> None:
    order = give_order(checkpoint, tmp_path, lanes)
    driver = Driver(order)
    wait_for(lambda: count_commits(tmp_path) >= 1)
    driver.send(signal.SIGTERM)
    stopped = driver.wait()
    assert (stopped.error, stopped.run["state"], stopped.run["stopped_by"]) == ("", "cancelled", "SIGTERM")
    storage = open_storage(tmp_path / "run")
    statuses = Counter(row["status"] for row in read_results(storage))
    assert statuses["ok"] == count_made(tmp_path).total() == stopped.run["made"], "the batch in hand is recorded"
    assert statuses["skipped"] == ROWS - statuses["ok"] > 0
    assert not list((tmp_path / "run").rglob("*_claim-*"))
    before = snapshot(tmp_path / "run")
    resumed = Driver(order).wait()
    assert (resumed.error, resumed.run["state"], resumed.run["stopped_by"]) == ("", "completed", None)
    assert snapshot(tmp_path / "run").items() >= before.items()
    check_run_is_whole(storage, {"ok": ROWS})
    assert count_made(tmp_path).total() == ROWS, "nothing is made twice"
    assert resumed.run["wall_seconds"] > stopped.run["wall_seconds"]
    rate = ROWS / resumed.run["wall_seconds"]
    assert resumed.run["pictures_per_second"] == pytest.approx(rate)


def test_a_second_sigint_stops_at_once(checkpoint: str, tmp_path: Path) -> None:
    """Though the batch in hand would take a minute; the run goes on from there all the same."""
    driver = Driver(give_order(checkpoint, tmp_path, lanes=2, steps=900))
    wait_for(lambda: len(read_batches(tmp_path / "batches", "begun")) == 2)
    lanes = driver.list_lanes()
    driver.send(signal.SIGINT)
    time.sleep(0.5)
    assert len(driver.list_lanes()) == 2, "the first waits for the batch in hand"
    driver.send(signal.SIGINT)
    driver.process.join(5.0)
    assert driver.process.exitcode == 128 + signal.SIGINT
    assert not psutil.wait_procs(lanes, timeout=5)[1]
    assert not count_made(tmp_path)


def test_a_torn_picture_or_record_is_made_again(checkpoint: str, tmp_path: Path) -> None:
    """What a power cut leaves of files that were not synced: recorded, but empty."""
    order = give_order(checkpoint, tmp_path, lanes=1)
    driver = Driver(order)
    parts = wait_for(lambda: list((tmp_path / "run").glob("shards/*/_parts/*.parquet")))
    driver.send(signal.SIGKILL)
    driver.process.join()
    parts = [path for path in parts if path.exists() and not (path.parents[1] / "_COMMIT").exists()]
    for part in parts:
        picture = next((part.parents[1] / "images").iterdir())
        os.truncate(picture, 0)
    answer = Driver(order).wait()
    assert not answer.error, answer.message
    check_run_is_whole(open_storage(tmp_path / "run"), {"ok": ROWS})
