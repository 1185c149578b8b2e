"""`dgate retry` makes the rows that failed, and nothing else."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path

import pytest

from dgate_core.engine.retry import check_options, check_statuses
from dgate_core.errors import UsageError
from dgate_core.runs.settings import RunSettings
from dgate_core.storage import open_storage
from tests.faults import FailingSeeds
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

BAD_SEEDS = frozenset({1002, 1009, 1010, 1017, 1023})


@pytest.fixture
def failed(checkpoint: str, tmp_path: Path) -> Order:
    """A run of 24 rows of which 5 failed, one of these given twice, and one more that is wrong in the manifest."""
    rows = [{**row, "seed": 1000 + number} for number, row in enumerate(list_prompts(24))]
    manifest = write_manifest(tmp_path / "m.jsonl", [*rows, {**rows[9], "id": "again"}, {"id": "bad", "prompt": ""}])
    settings = {"model": checkpoint, "precision": "float32", "lanes": 1, "rows_per_shard": 8, "batch_size": 4}
    out = str(tmp_path / "run")
    answer = Driver(Order(out, manifest, settings, fault=FailingSeeds(BAD_SEEDS))).wait()
    assert not answer.error, answer.message
    assert answer.run["state"] == "completed_with_errors"
    rows_made = check_run_is_whole(open_storage(out), {"ok": 19, "error": 7})
    codes = Counter(row["error_code"] for row in rows_made if row["status"] == "error")
    assert codes == {"generation_failed": 6, "missing_prompt": 1}
    return Order(out, manifest, settings)


def retry(order: Order, log: Path, *statuses: str, fault: FailingSeeds | None = None) -> dict[str, object]:
    settings = {"lanes": 1, "batch_size": 4}
    answer = Driver(Order(order.out, "", settings, statuses, batch_log=str(log), fault=fault)).wait()
    assert not answer.error, answer.message
    return answer.run


def test_only_the_failed_rows_are_made(failed: Order, tmp_path: Path) -> None:
    storage, before = open_storage(failed.out), snapshot(Path(failed.out))
    first = retry(failed, tmp_path / "one", "error", fault=FailingSeeds(frozenset({1010, 1017})))
    made = {ordinal for batch in read_batches(tmp_path / "one", "begun") for ordinal in batch}
    assert made == {2, 9, 10, 17, 23}
    assert first["state"] == "completed_with_errors"
    rows = check_run_is_whole(storage, {"ok": 22, "duplicate": 1, "error": 3})
    assert [rows[number]["status"] for number in (2, 9, 10, 17, 23, 24, 25)] == [
        *("ok", "ok", "error", "error", "ok", "duplicate", "error")
    ]
    assert rows[24]["path"] == rows[9]["path"]

    second = retry(failed, tmp_path / "two", "error")
    made = {ordinal for batch in read_batches(tmp_path / "two", "begun") for ordinal in batch}
    assert made == {10, 17}
    assert second["attempt"] == 3
    assert second["made"] == 24
    rows = check_run_is_whole(storage, {"ok": 24, "duplicate": 1, "error": 1})
    assert rows[25]["error_code"] == "missing_prompt"
    assert snapshot(Path(failed.out)).items() >= before.items()

    third = retry(failed, tmp_path / "three", "error")
    assert not (tmp_path / "three").exists(), "nothing is left to make"
    assert third["state"] == "completed_with_errors"


def test_a_retry_that_was_killed_goes_on(failed: Order, tmp_path: Path) -> None:
    order = Order(failed.out, "", {"lanes": 1, "batch_size": 1}, ("error",), batch_log=str(tmp_path / "log"))
    driver = Driver(order)
    wait_for(lambda: len(read_batches(tmp_path / "log", "begun")) >= 2)
    driver.send(signal.SIGKILL)
    driver.process.join()
    answer = Driver(order).wait()
    assert not answer.error, answer.message
    assert answer.run["attempt"] == 2
    check_run_is_whole(open_storage(failed.out), {"ok": 24, "duplicate": 1, "error": 1})


def test_the_command(failed: Order, tmp_path: Path) -> None:
    done = Driver(Order(failed.out, command=("retry", failed.out, "--lanes", "1", "--json"))).wait()
    assert done.error == "3", done.message
    outcome = json.loads(done.message)
    assert {name: outcome["counts"][name] for name in ("ok", "error", "duplicate")} == {
        "ok": 24,
        "error": 1,
        "duplicate": 1,
    }
    assert Path(outcome["gallery"]).is_file()
    wrong = Driver(Order(failed.out, command=("retry", failed.out, "--set", "seed=5"))).wait()
    assert wrong.error == "2"


def test_skipped_rows_are_made_where_they_wait(checkpoint: str, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.jsonl", list_prompts(32, num_inference_steps=6))
    settings = {"model": checkpoint, "precision": "float32", "lanes": 1, "rows_per_shard": 8, "batch_size": 4}
    driver = Driver(Order(str(tmp_path / "run"), manifest, settings))
    wait_for(lambda: list(tmp_path.glob("run/shards/*/_COMMIT")))
    driver.send(signal.SIGTERM)
    assert driver.wait().run["state"] == "cancelled"
    storage = open_storage(tmp_path / "run")
    skipped = {number for number, row in enumerate(read_results(storage)) if row["status"] == "skipped"}
    run = retry(Order(str(tmp_path / "run")), tmp_path / "log", "skipped")
    assert {ordinal for batch in read_batches(tmp_path / "log", "begun") for ordinal in batch} == skipped
    assert run["state"] == "completed"
    check_run_is_whole(storage, {"ok": 32})


def test_wrong_requests_are_named() -> None:
    with pytest.raises(UsageError, match="--where duplicate"):
        check_statuses(["error", "duplicate"])
    with pytest.raises(UsageError, match="guidance_scale"):
        check_options(RunSettings(guidance_scale=2.0))
    assert check_options(RunSettings(lanes=2, batch_size=1)).lanes == 2
