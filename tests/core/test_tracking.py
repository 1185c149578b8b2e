"""Records are kept first; a tracker that is slow, dead or wrong costs the run nothing and is named."""

from __future__ import annotations

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from dgate_core.errors import MissingExtraError, UsageError
from dgate_core.registry import Registry
from dgate_core.runs.claims import identify_holder, take_claim
from dgate_core.storage import Storage, open_storage
from dgate_core.tracking.contract import load_tracker
from dgate_core.tracking.local_json import MAX_BATCH_RECORDS, LocalLog
from dgate_core.tracking.record import PictureTable, TrackingRecord, line_to_record, record_to_line
from dgate_core.tracking.sending import read_outcomes, start_sending
from flows.commands.track import command
from tests.reports.sample_run import BARE_RUN
from tests.run_lab import wait_for
from tests.tracker_samples import read_notes

SAMPLES = "tests.tracker_samples"
PATIENT = 60.0


def make_record(number: int) -> TrackingRecord:
    return TrackingRecord("evaluation", created=1000.0 + number, metrics={"clip_score": number / 8})


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    """A run's folder with two batches of records."""
    storage = open_storage(tmp_path / "run")
    storage.write_bytes("run.json", json.dumps({**BARE_RUN, "trackers": [f"{SAMPLES}:deliver_well"]}).encode())
    log = LocalLog(storage)
    assert [*log.append([make_record(1)]), *log.append([make_record(2)])] == [1, 2]
    return storage


def test_a_record_is_the_same_after_its_line() -> None:
    table = PictureTable("worst", ("prompt", "picture"), ("picture",), (("a boat | red\n", "a.png"), ("", "")))
    record = TrackingRecord(
        "training",
        12.5,
        7,
        {"steps": 20, "name": "é"},
        {"loss": 0.5},
        {"verdict": "pass"},
        (table,),
        {"all": {"a": []}},
    )
    assert line_to_record(record_to_line(record)) == record
    assert "\n" not in record_to_line(record)


def test_numbers_that_json_has_not_survive() -> None:
    record = TrackingRecord("training", 0.0, metrics={"a": math.nan, "b": math.inf, "c": -math.inf})
    found = line_to_record(record_to_line(record)).metrics
    assert math.isnan(found["a"])
    assert (found["b"], found["c"]) == (math.inf, -math.inf)


def test_many_writers_lose_no_record(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda number: LocalLog(storage).append([make_record(number)])[0], range(24)))
    assert sorted(numbers) == list(range(1, 25))
    found = sorted(record.created for record in LocalLog(storage).read_records())
    assert found == [1000.0 + number for number in range(24)]
    assert len({LocalLog(storage).read_id() for _ in range(3)}) == 1


def test_a_long_list_becomes_several_batches(tmp_path: Path) -> None:
    log = LocalLog(open_storage(tmp_path))
    assert log.append([make_record(0)] * (MAX_BATCH_RECORDS + 1)) == [1, 2]
    assert len(log.read_batch(2).records) == 1


def test_what_was_sent_is_not_sent_again(run: Storage) -> None:
    tracker = f"{SAMPLES}:deliver_well"
    (outcome,) = start_sending(run.uri, [tracker], PATIENT).wait()
    assert (outcome.arrived, outcome.missing, outcome.error) == (2, 0, "")
    LocalLog(run).append([make_record(3)])
    result = CliRunner().invoke(command, ["sync", run.uri], standalone_mode=False)
    assert (result.return_value, result.output) == (0, f"{tracker}: all 3 records sent\n")
    assert CliRunner().invoke(command, ["sync", run.uri], standalone_mode=False).return_value == 0
    assert read_notes(Path(run.uri)) == ["1", "2", "3"]


def test_a_tracker_that_fails_half_way_gets_the_rest_once(run: Storage) -> None:
    tracker = f"{SAMPLES}:deliver_half"
    (outcome,) = start_sending(run.uri, [tracker], PATIENT).wait()
    assert (outcome.arrived, outcome.missing) == (1, 1)
    assert outcome.error == "ConnectionResetError: the tracker went away"
    assert outcome.describe(run.uri).endswith(f"next: dgate track sync {run.uri}")
    assert read_outcomes(run) == (outcome,)
    run.write_bytes("mended", b"")
    (outcome,) = start_sending(run.uri, [tracker], PATIENT).wait()
    assert (outcome.arrived, outcome.missing) == (2, 0)
    assert read_notes(Path(run.uri)) == ["1", "2"]


def test_a_tracker_that_hangs_is_ended_at_the_limit_with_its_children(run: Storage) -> None:
    started = time.monotonic()
    sending = start_sending(run.uri, [f"{SAMPLES}:deliver_never"], 5.0)
    assert time.monotonic() - started < 1.0
    (outcome,) = sending.wait()
    assert 4.0 < time.monotonic() - started < 8.0
    assert outcome.error == "not within 5 s"
    assert outcome.missing == 2
    pids = [int(pid) for pid in read_notes(Path(run.uri))[0].split()]
    wait_for(lambda: not any(is_alive(pid) for pid in pids), 5.0)


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_one_bad_tracker_does_not_keep_another_from_its_records(run: Storage) -> None:
    dying, well = start_sending(run.uri, [f"{SAMPLES}:deliver_dying", f"{SAMPLES}:deliver_well"], PATIENT).wait()
    assert (dying.missing, dying.error) == (2, "libtracker: assertion failed")
    assert (well.missing, well.error) == (0, "")


def test_two_senders_do_not_send_twice(run: Storage) -> None:
    claim = take_claim(run, f"tracking/{SAMPLES}-deliver_well/_claim", identify_holder("tracker"))
    assert claim is not None
    with claim:
        (outcome,) = start_sending(run.uri, [f"{SAMPLES}:deliver_well"], PATIENT).wait()
    assert outcome.error.startswith("another process is sending to")
    assert not run.exists("told.txt")


def test_a_wrong_name_is_told_before_anything_starts(run: Storage) -> None:
    with pytest.raises(UsageError, match="did you mean 'mlflow'"):
        start_sending(run.uri, ["mlfow"])
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_tracker("tests.tracker_samples:nothing")
    (outcome,) = start_sending(run.uri, ["nowhere:deliver"], PATIENT).wait()
    assert "No module named 'nowhere'" in outcome.error


def test_a_missing_package_names_the_command_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "to_absent.py").write_text("import absent_tracker\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("tracker", {"absent": "to_absent:deliver"}, extras={"absent_tracker": "mlflow"})
    with pytest.raises(MissingExtraError, match=r"pip install 'd-gate\[mlflow\]'"):
        registry.load("absent")


def test_a_run_without_trackers_says_what_to_do(run: Storage) -> None:
    run.write_bytes("run.json", json.dumps(BARE_RUN).encode())
    result = CliRunner().invoke(command, ["sync", run.uri], standalone_mode=False)
    assert isinstance(result.exception, UsageError)
    assert "--tracker mlflow" in str(result.exception)
    shown = CliRunner().invoke(command, ["show", run.uri], standalone_mode=False).output
    assert shown == "00001  evaluation  1 metrics, 0 tables\n00002  evaluation  1 metrics, 0 tables\n"
