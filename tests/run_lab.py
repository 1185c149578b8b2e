"""Runs in processes of their own, to be killed: drivers and lanes are forked from a process that has torch loaded.

They are real processes that get real signals; only the seconds that each would spend on importing torch are saved.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import psutil
import pyarrow.parquet as pq

from dgate_core.errors import DgateError
from dgate_core.storage import Storage

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.warm_imports"])


@dataclass(frozen=True)
class Order:
    """What a driver shall do."""

    out: str
    """The run's folder."""
    manifest: str = ""
    """Its manifest; empty for a retry."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of RunSettings."""
    retry: tuple[str, ...] = ()
    """Make the rows with these statuses again instead."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables on top of those of the tests."""
    batch_log: str = ""
    """File that gets a line when a batch begins and one when it is made."""
    fault: Callable[[str], None] | None = None
    """Called with the lane's name in every lane process before it begins; with one lane, in the driver."""
    command: tuple[str, ...] = ()
    """Run `dgate` with these arguments instead."""


@dataclass(frozen=True)
class Answer:
    """How a driver ended."""

    run: dict[str, Any]
    """run.json; empty after an error."""
    error: str
    """Code of the DgateError; empty if there was none."""
    message: str
    """Of the error."""


class Driver:
    """A driver that is running."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self._answers, theirs = _CONTEXT.Pipe(duplex=False)
        self.process = _CONTEXT.Process(target=drive, args=(order, theirs))
        self.process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def list_lanes(self) -> list[psutil.Process]:
        """The lane processes that are alive."""
        children = psutil.Process(self.pid).children() if self.process.is_alive() else []
        return [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = 120.0) -> Answer:
        """Its answer; AssertionError when it died without one."""
        answered = self._answers.poll(seconds)
        try:
            answer: Answer = self._answers.recv()
        except EOFError:
            answer = Answer({}, "died", f"exit {self.process.exitcode}")
        finally:
            if not answered:
                self.process.kill()
            self.process.join(10.0)
        return answer


def drive(order: Order, answers: Any) -> None:
    """The driver's process: what `dgate generate` and `dgate retry` do, without Prefect and the gallery."""
    from dgate_core.engine import fleet

    os.environ.update(order.environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    fleet.subprocess = SimpleNamespace(  # type: ignore[attr-defined]
        Popen=lambda *given, **named: ForkedLane(order, *given, **named),
        DEVNULL=subprocess.DEVNULL,
        TimeoutExpired=subprocess.TimeoutExpired,
    )
    observe_batches(order.batch_log)
    if order.fault is not None and order.settings.get("lanes", 1) == 1:
        order.fault("lane-0")
    if order.command:
        answers.send(run_command(order.command))
        return
    try:
        answers.send(Answer(carry_out(order), "", ""))
    except DgateError as error:
        answers.send(Answer({}, error.code, str(error)))


def run_command(arguments: Sequence[str]) -> Answer:
    """`dgate` with its exit code as the error and its stdout as the message."""
    from flows.cli import main

    said = io.StringIO()
    with redirect_stdout(said):
        try:
            main(list(arguments))
        except SystemExit as ended:
            return Answer({}, str(ended.code), said.getvalue())
    raise AssertionError("main() always exits")


def carry_out(order: Order) -> dict[str, Any]:
    """Returns run.json."""
    from dgate_core.engine.begin import open_run
    from dgate_core.engine.local import execute_lanes, finish_run, hold_run
    from dgate_core.engine.retry import retry_rows
    from dgate_core.engine.stopping import StopSignal
    from dgate_core.runs.settings import RunSettings
    from dgate_core.runs.store import RunStore
    from dgate_core.storage import open_storage

    settings, store, stop = RunSettings(**order.settings), RunStore(open_storage(order.out)), StopSignal()
    with hold_run(store, settings.lease_seconds):
        if order.retry:
            return retry_rows(store, order.retry, settings, stop, lambda _: None)
        open_run([order.manifest], order.out, settings)
        execute_lanes(store, settings, stop, lambda _: None)
        return finish_run(store)


class ForkedLane:
    """In the place of `subprocess.Popen`: the same process without the imports."""

    def __init__(
        self, order: Order, command: Sequence[str], env: Mapping[str, str], stdout: IO[bytes], **_: Any
    ) -> None:
        assert command[1:3] == ["-m", "dgate_core.engine.lane_process"]
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(self._live(order, command[3:], env, stdout))

    @staticmethod
    def _live(order: Order, arguments: Sequence[str], env: Mapping[str, str], stdout: IO[bytes]) -> int:
        from dgate_core.engine import lane_process

        os.setsid()
        os.environ.update(env)
        os.dup2(stdout.fileno(), 1)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        try:
            if order.fault is not None:
                order.fault(json.loads(arguments[1])["name"])
            return lane_process.main(list(arguments))
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return 1
        finally:
            sys.stdout.flush()

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (1e9 if timeout is None else timeout)
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("lane", timeout or 0.0)
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def observe_batches(log: str) -> None:
    """Has every forward of this process and its children told in an append-only file."""
    if not log:
        return
    from dgate_core.engine.generate import Generator

    forward = Generator._forward

    def tell(event: str, rows: Sequence[Mapping[str, Any]]) -> None:
        line = json.dumps({"event": event, "pid": os.getpid(), "ordinals": [row["ordinal"] for row in rows]}) + "\n"
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, line.encode())
        os.close(descriptor)

    def observed(self: Generator, rows: Sequence[Mapping[str, Any]], *arguments: Any) -> Any:
        tell("begun", rows)
        batch = forward(self, rows, *arguments)
        tell("made", rows)
        return batch

    Generator._forward = observed  # type: ignore[method-assign]


def read_batches(log: Path, event: str) -> list[list[int]]:
    """Ordinals of every batch that had begun, or was made."""
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [line["ordinals"] for line in lines if line["event"] == event]


def make_checkpoint(folder: Path, seed: int = 0) -> str:
    """A toy checkpoint, made where diffusers is loaded."""
    process = _CONTEXT.Process(target=_make_checkpoint, args=(folder, seed))
    process.start()
    process.join()
    assert process.exitcode == 0
    return str(folder / "model")


def _make_checkpoint(folder: Path, seed: int) -> None:
    from tests.tiny import make_sd

    make_sd(folder, seed)


def write_manifest(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def list_prompts(count: int, **columns: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"a red boat {number}", "num_inference_steps": 1, **columns} for number in range(count)]


def read_results(storage: Storage) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(storage.read_bytes("results.parquet"))).to_pylist()
    return rows


def check_run_is_whole(storage: Storage, statuses: Mapping[str, int]) -> list[dict[str, Any]]:
    """Every row once, every file as its row says, every shard committed, and nothing left over; returns the rows."""
    rows = read_results(storage)
    assert Counter(row["status"] for row in rows) == statuses
    assert len({(row["id"], row["image_index"]) for row in rows}) == len(rows)
    for row in rows:
        if row["path"]:
            assert hashlib.sha256(storage.read_bytes(row["path"])).hexdigest() == row["sha256"]
    check_nothing_is_left_over(storage)
    return rows


def check_nothing_is_left_over(storage: Storage) -> None:
    """A committed shard holds what its rows.parquet names and three files beside; no drafts, no claims."""
    shards: dict[str, set[str]] = {}
    for item in storage.list_objects("shards/"):
        _, shard, name = item.key.split("/", 2)
        shards.setdefault(shard, set()).add(name)
    for shard, names in shards.items():
        rows = pq.read_table(io.BytesIO(storage.read_bytes(f"shards/{shard}/rows.parquet")))
        paths = {path.removeprefix(f"shards/{shard}/") for path in rows.column("path").to_pylist() if path}
        assert names == paths | {"rows.parquet", "_stats.json", "_COMMIT"}, shard
    assert not [item.key for item in storage.list_objects("_run_claim")]
    root = storage.local_path("x")
    assert root is None or not list(root.parent.rglob(".dgate-draft-*"))


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What the condition gives once it gives anything."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)
    return found


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time and bytes of every file of the committed shards; a claim goes after the commit."""
    shards = [commit.parent for commit in folder.glob("shards/*/_COMMIT")]
    files = [
        path for shard in shards for path in shard.rglob("*") if path.is_file() and not path.name.startswith("_claim")
    ]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
