"""`dgate generate`: exit codes, what it prints, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from dgate_core.engine.reports import read_reports
from dgate_core.storage import open_storage
from tests.flows.conftest import Done, list_prompts, write_manifest
from tests.flows.run_checks import check_every_row_once
from tests.prefect_server import COMMAND, wait_for

Call = Callable[..., Done]


def test_bad_rows_end_with_3_and_json_stands_alone(
    environment: dict[str, str], checkpoint: str, tmp_path: Path
) -> None:
    """The one test with a private API: nothing of it may be left, and the home of a user stays untouched."""
    rows = [*list_prompts(5, seed=1), {"prompt": ""}, *list_prompts(1, seed=1)]
    manifest = write_manifest(tmp_path / "m.jsonl", rows)
    arguments = ["generate", manifest, "--out", "run", "--model", checkpoint, "--set", "precision=float32", "--json"]
    done = subprocess.run(
        [*COMMAND, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["state"] == "completed_with_errors"
    counts = {name: outcome["counts"][name] for name in ("ok", "error", "duplicate")}
    assert counts == {"ok": 5, "error": 1, "duplicate": 1}
    assert Path(outcome["gallery"]).is_file()
    assert Path(outcome["results"]).is_file()
    assert "Traceback" not in done.stderr
    assert "Flow run" not in done.stderr, "Prefect's own log"
    assert not list(Path(environment["TMPDIR"]).glob("dgate-*"))
    assert not list(Path(environment["HOME"]).glob(".prefect/*"))


def test_figures_and_the_refusal_of_another_manifest(api: str, call: Call, checkpoint: str, tmp_path: Path) -> None:
    one, two = (write_manifest(tmp_path / f"{count}.jsonl", list_prompts(count)) for count in (1, 2))
    arguments = ["--out", str(tmp_path / "run"), "--model", checkpoint, "--set", "precision=float32"]
    first = call("generate", one, *arguments)
    assert first.code == 0, first.err
    assert f"gallery  {tmp_path / 'run/report/index.html'}" in first.out
    assert "1 pictures, 0 failed" in first.out
    second = call("generate", two, *arguments)
    assert second.code == 1
    assert "manifest" in second.err
    assert second.err.count("error:") == 1
    assert "Traceback" not in second.err
    third = call("generate", two, *arguments, "--json")
    assert third.code == 1
    assert json.loads(third.out)["error"]["code"] == "run_mismatch"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "m.jsonl"], "--out"),
        (["generate", "no.jsonl", "--out", "run"], "no.jsonl"),
        (["generate", "m.jsonl", "--out", "run", "--set", "stepz=3"], "stepz"),
        (["generate", "m.jsonl", "--out", "run", "--lanes", "0"], "lanes"),
    ],
)
def test_wrong_commands_end_with_2_before_anything_starts(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_manifest(tmp_path / "m.jsonl", list_prompts(1))
    done = call(*arguments)
    assert done.code == 2
    assert said in done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_finishes_the_batch_and_the_same_command_goes_on(
    api: str, call: Call, checkpoint: str, tmp_path: Path, number: signal.Signals
) -> None:
    manifest, run = write_manifest(tmp_path / "m.jsonl", list_prompts(20, num_inference_steps=60)), tmp_path / "run"
    arguments = ["generate", manifest, "--out", str(run), "--model", checkpoint]
    arguments += ["--set", "precision=float32", "--set", "batch_size=2", "--set", "rows_per_shard=10"]
    with send_signal_once_at_work(run, number):
        stopped = call(*arguments)
    assert stopped.code == 128 + number, stopped.err
    record = json.loads((run / "run.json").read_text())
    assert (record["state"], record["stopped_by"]) == ("cancelled", number.name)
    assert 0 < record["counts"]["ok"] < 20
    assert not list(run.glob("**/*_claim-*"))
    assert "same command again" in stopped.out
    assert "Traceback" not in stopped.err
    kept = {path: path.stat().st_mtime_ns for path in run.glob("shards/*/images/*")}
    done = call(*arguments)
    assert done.code == 0, done.err
    check_every_row_once(run, 20)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_second_ctrl_c_stops_at_once(environment: dict[str, str], checkpoint: str, tmp_path: Path) -> None:
    """In the middle of a long batch; no process stays behind, and nothing half-made is called done."""
    manifest, run = write_manifest(tmp_path / "m.jsonl", list_prompts(32, num_inference_steps=900)), tmp_path / "run"
    command = [*COMMAND, "generate", manifest, "--out", str(run), "--model", checkpoint]
    with subprocess.Popen(
        [*command, "--set", "precision=float32"], env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for(lambda: has_loaded_the_model(run), 120)
        time.sleep(0.5)  # the batch begins right after
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        wait_for(lambda: "once more stops at once" in (process.stderr.readline() if process.stderr else ""), 60)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 128 + signal.SIGINT
    wait_for(lambda: not any(child.is_running() for child in children), 30)
    assert not list(run.glob("shards/*/_COMMIT"))
    assert json.loads((run / "run.json").read_text())["state"] == "running"


def has_loaded_the_model(run: Path) -> bool:
    """As the lane's report says."""
    return any("load" in report.stages for report in read_reports(open_storage(str(run))))


@contextmanager
def send_signal_once_at_work(run: Path, number: int) -> Iterator[None]:
    """This process gets the signal when the first rows are recorded, as it would from a terminal."""

    def send() -> None:
        wait_for(lambda: bool(list(run.glob("shards/*/_parts/*"))), 120)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    yield
    thread.join()
