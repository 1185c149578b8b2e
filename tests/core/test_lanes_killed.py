"""Lanes that are killed: every row is made once, and what was recorded is never made again."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from pathlib import Path

from dgate_core.engine.writer import BATCHES_IN_FLIGHT
from dgate_core.storage import open_storage
from tests.run_lab import Driver, Order, check_run_is_whole, list_prompts, read_batches, write_manifest

ROWS, BATCH, KILLS = 360, 4, 10


def test_ten_kills_at_random_moments(checkpoint: str, tmp_path: Path) -> None:
    """The bar: every row exactly once, files match their hashes, at most one batch redone per kill."""
    manifest = write_manifest(tmp_path / "m.jsonl", list_prompts(ROWS, num_inference_steps=8))
    settings = {"model": checkpoint, "precision": "float32", "lanes": 3, "rows_per_shard": 30, "batch_size": BATCH}
    log, out = tmp_path / "batches", tmp_path / "run"
    driver = Driver(Order(str(out), manifest, settings, batch_log=str(log)))
    killed = kill_lanes(driver, log, random.Random(7))
    answer = driver.wait()
    assert not answer.error, answer.message
    assert len(killed) == KILLS
    check_run_is_whole(open_storage(out), {"ok": ROWS})
    made = Counter(ordinal for batch in read_batches(log, "made") for ordinal in batch)
    assert set(made) == set(range(ROWS))
    redone = made.total() - ROWS
    begun = sum(map(len, read_batches(log, "begun"))) - ROWS
    print(f"\n{KILLS} kills: {redone} rows made twice, {begun} begun twice; a batch has {BATCH}")
    assert redone <= KILLS * BATCH
    # The batch in hand and those on their way to storage.
    assert begun <= KILLS * BATCH * (1 + BATCHES_IN_FLIGHT)
    assert answer.run["state"] == "completed"
    assert answer.run["made"] == ROWS


def kill_lanes(driver: Driver, log: Path, draw: random.Random) -> list[int]:
    """Kills lanes that have begun a batch since they were started; returns their pids."""
    killed: list[int] = []
    end = time.monotonic() + 90
    while len(killed) < KILLS and time.monotonic() < end and driver.process.is_alive():
        time.sleep(draw.uniform(0.05, 0.5))
        text = log.read_text() if log.exists() else ""
        at_work = [lane for lane in driver.list_lanes() if f'"pid": {lane.pid},' in text]
        if at_work:
            lane = draw.choice(at_work)
            lane.send_signal(signal.SIGKILL)
            killed.append(lane.pid)
    return killed
