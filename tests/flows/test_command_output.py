"""What commands print besides pictures' figures: mistakes as JSON, failures by code, and a next step that can help."""

from __future__ import annotations

import json
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dgate_core.engine.begin import open_run
from dgate_core.engine.local import finish_run
from dgate_core.engine.outcome import read_outcome
from dgate_core.errors import UsageError
from dgate_core.runs.settings import RunSettings
from flows.commands.api_session import show_own_messages
from flows.commands.outcome import print_outcome, suggest_after_errors
from flows.commands.progress_bar import LOOK_EVERY_SECONDS, show_progress
from flows.commands.reproduce import escape_controls
from tasks import checkout
from tasks.plan import warn_of_manifest
from tests.flows.conftest import Done, list_prompts, write_manifest
from tests.prefect_server import wait_for

Call = Callable[..., Done]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "code", "said"),
    [
        (["generate", "m.jsonl", "--json"], 2, "usage", "--out"),
        (["generate", "m.jsonl", "--out", "run", "--set", "stepz=3", "--json"], 2, "config", "stepz"),
        (["plan", "no.jsonl", "--json"], 1, "manifest", "no.jsonl"),
        (["plan", "m.jsonl", "--model", "nobody", "--json"], 1, "model", "nobody"),
        (["retry", "none", "--json"], 1, "run", "none"),
        (["runs", "show", "none", "--json"], 1, "run", "none"),
    ],
)
def test_a_mistake_is_one_object_where_json_was_asked_for(
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    exit_code: int,
    code: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_manifest(tmp_path / "m.jsonl", [{"prompt": "a boat"}])
    done = call(*arguments)
    outcome = json.loads(done.out)
    assert (done.code, outcome["state"], outcome["error"]["code"]) == (exit_code, "failed", code)
    assert said in outcome["error"]["message"]
    assert said in done.err
    plain = call(*arguments[:-1])
    assert (plain.code, plain.out, plain.err) == (exit_code, "", done.err)


def test_a_run_of_bad_rows_names_their_codes_and_sends_nobody_to_retry(
    tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        {"prompt": "", "steps": 3},
        {"prompt": 5},
        {"prompt": "a boat", "seed": -1},
        {"prompt": "a boat", "seed": "1"},
    ]
    manifest, run = write_manifest(tmp_path / "m.jsonl", rows), str(tmp_path / "run")
    opened = open_run([manifest], run, RunSettings(precision="float32"))
    with caplog.at_level(logging.WARNING, "tasks.plan"):
        warn_of_manifest(opened)
    assert "`steps` is carried along and not used" in caplog.messages[0]
    assert "4 of 4 rows are bad and will not be made (bad_type 2, missing_prompt 1, seed_out" in caplog.messages[1]
    finish_run(opened.store)
    outcome = read_outcome(opened.store)
    assert outcome["failures"] == {"bad_type": 2, "missing_prompt": 1, "seed_out_of_range": 1}
    assert "`steps`" in outcome["warnings"][0]
    capsys.readouterr()
    print_outcome(outcome)
    said = capsys.readouterr().out
    assert "failed   bad_type 2, missing_prompt 1, seed_out_of_range 1\n" in said
    assert "next     mend the bad rows" in said
    assert "retry" not in said + call("runs", "show", run).out
    assert suggest_after_errors(run, outcome["counts"] | {"error": 5}) == f"dgate retry {run}"


def test_prefects_internal_log_stays_off_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    handlers = logging.getLogger().handlers
    try:
        show_own_messages()
        logging.getLogger("prefect._internal.concurrency").error("Service 'EventsWorker' failed")
        logging.getLogger("dgate_core.engine").warning("the lane was lost")
    finally:
        logging.getLogger().handlers = handlers
    assert capsys.readouterr().err == "warning: the lane was lost\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_run_is_planned_says_how_to_go_on(
    api: str, call: Call, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    manifest, run = write_manifest(tmp_path / "m.jsonl", list_prompts(50_000)), tmp_path / "run"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]

    def send() -> None:
        wait_for(lambda: bool(list(tmp_path.glob("dgate-plan-*"))), 60)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    stopped = call("generate", manifest, "--out", str(run), "--model", checkpoint, "--json")
    thread.join()
    assert stopped.code == 128 + number, stopped.err
    assert json.loads(stopped.out) == {"state": "cancelled", "run": str(run), "stopped_by": number.name}
    assert f"stopped  by {number.name}; give the same command again" in stopped.err
    assert "Traceback" not in stopped.err
    assert not list(tmp_path.glob("dgate-plan-*"))
    assert not list(run.glob("_run_claim*"))
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_files_own_words_cannot_steer_the_terminal() -> None:
    assert escape_controls("a \x1b[31mboat\r\n🚤 أحمر\x9b") == "a \\x1b[31mboat\\r\\n🚤 أحمر\\x9b"


def test_flow_runs_work_in_a_folder_of_the_users_and_never_among_installed_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # and back, afterwards
    monkeypatch.delenv("DGATE_HOME", raising=False)
    assert Path(checkout.enter_checkout()["directory"]).joinpath("prefect.yaml").is_file()
    monkeypatch.setattr(checkout, "CHECKOUT", tmp_path)
    with pytest.raises(UsageError, match="DGATE_HOME is not set"):
        checkout.enter_checkout()
    monkeypatch.setenv("DGATE_HOME", str(tmp_path))
    assert checkout.enter_checkout() == {"directory": str(tmp_path)}
    assert Path.cwd() == tmp_path


def test_a_storage_without_an_answer_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("[]")
    with show_progress(str(tmp_path / "run")):
        time.sleep(3.5 * LOOK_EVERY_SECONDS)
    assert capsys.readouterr().err.count("progress is not known just now") == 1
