"""Metrics of bulk runs: read from the folder, exact, whoever died in between."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner

from dgate_core.engine.reports import LANES_PREFIX
from dgate_core.errors import UsageError
from dgate_core.evaluation.results import GATE_FILE
from dgate_core.runs.store import RunStore
from dgate_core.storage import open_storage
from dgate_core.telemetry import run_reading
from dgate_core.telemetry.run_metrics import render_runs, serve_runs
from dgate_core.telemetry.run_reading import RowCount, RunReader
from flows.cli import command
from tests.run_lab import Driver, Order, wait_for
from tests.telemetry.conftest import SETTINGS
from tests.telemetry.records import read_families, value


def test_keys_are_those_that_the_engine_writes() -> None:
    assert run_reading.LANES_PREFIX == LANES_PREFIX
    assert run_reading.GATE_FILE == GATE_FILE


def test_a_lane_that_lived_briefly_is_told_of_for_ever(finished_run: str) -> None:
    told = render_runs([finished_run]).decode()
    assert value(told, "dgate_run_readable", run=finished_run) == 1
    assert value(told, "dgate_run_state", run=finished_run, state="completed_with_errors") == 1
    assert value(told, "dgate_run_rows", run=finished_run) == 20
    assert value(told, "dgate_run_rows_done", run=finished_run) == 20
    assert value(told, "dgate_run_rows_failed", run=finished_run) == 2
    assert value(told, "dgate_lane_rows", run=finished_run, lane="lane-0", status="ok") == 18
    assert value(told, "dgate_lane_state", run=finished_run, lane="lane-0", state="finished") == 1
    assert (value(told, "dgate_lane_heartbeat_timestamp_seconds", run=finished_run, lane="lane-0") or 0) > 1.6e9
    assert "dgate_run_rows_per_second" not in [name for name, each in read_families(told).items() if each.samples]


def test_rows_are_counted_exactly_through_a_kill_and_a_new_start(
    checkpoint: str, manifest: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    order = Order(str(out), manifest, {"model": checkpoint, **SETTINGS})
    driver, reader = Driver(order), RunReader(RunStore(open_storage(out)))
    wait_for(lambda: RunStore(open_storage(out)).exists(), 30)
    seen = [0]

    def has_begun() -> bool:
        seen.append(reader.read().counted.done)
        return seen[-1] >= 10

    wait_for(has_begun, 60)
    reading = reader.read()
    driver.send(signal.SIGKILL)
    driver.process.join()
    assert reading.state == "running"
    assert reading.rate is not None
    assert reading.rate > 0
    assert reading.seconds_left is not None
    killed_at = RunReader(RunStore(open_storage(out))).read().counted.done
    assert 10 <= killed_at < 40
    assert reader.read().counted.done == killed_at
    again = Driver(order)

    def has_ended() -> bool:
        seen.append(reader.read().counted.done)
        return not again.process.is_alive()

    wait_for(has_ended, 60)
    assert not again.wait().error
    assert seen == sorted(seen), "the count went back"
    assert reader.read().counted == RowCount(40, 0)


def test_a_verdict_is_a_metric(finished_run: str, tmp_path: Path) -> None:
    storage = open_storage(finished_run)
    checks = [{"decision": decision} for decision in ("pass", "fail", "pass")]
    storage.write_bytes(GATE_FILE, json.dumps({"decision": "fail", "checks": checks}).encode())
    told = render_runs([finished_run]).decode()
    storage.delete(GATE_FILE)
    assert value(told, "dgate_gate_verdict", run=finished_run, decision="fail") == 1
    assert value(told, "dgate_gate_checks", run=finished_run, decision="pass") == 2
    assert value(told, "dgate_gate_checks", run=finished_run, decision="undecided") == 0


def test_one_unreadable_run_spoils_no_other(finished_run: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "not-yet")
    told = render_runs([missing, finished_run]).decode()
    assert value(told, "dgate_run_readable", run=missing) == 0
    assert value(told, "dgate_run_rows", run=missing) is None
    assert value(told, "dgate_run_readable", run=finished_run) == 1


def test_the_exporter_answers_scrapes(finished_run: str) -> None:
    port, thread, server = serve_runs([finished_run], "127.0.0.1", 0)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        told = answer.read().decode()
    with pytest.raises(UsageError, match="free port"):
        serve_runs([finished_run], "127.0.0.1", port)
    server.shutdown()
    thread.join(10)
    assert value(told, "dgate_run_rows_done", run=finished_run) == 20


def test_the_command_prints_once_or_serves(finished_run: str) -> None:
    done = CliRunner().invoke(command, ["runs", "metrics", finished_run, "--once"])
    assert value(done.output, "dgate_run_rows_failed", run=finished_run) == 2
    arguments = [sys.executable, "-m", "flows.cli", "runs", "metrics", finished_run, "--port", "0"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        found = re.search(r"http://\S+/metrics", process.stdout.readline())
        assert found is not None
        with urllib.request.urlopen(found.group()) as answer:
            assert "dgate_run_rows_done" in answer.read().decode()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
