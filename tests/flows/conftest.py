"""A tiny checkpoint, manifests, `dgate` as a process with a home of its own, and one Prefect server for all tests."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from flows.cli import main

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "flows.cli"]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tests.tiny import make_sd

    return str(make_sd(tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """No Prefect server set, an empty home, one cache for all tests, one thread per process."""
    base = tmp_path_factory.mktemp("home")
    (base / "tmp").mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    own = {"HOME": str(base), "XDG_CACHE_HOME": str(base / "cache"), "TMPDIR": str(base / "tmp")}
    return {**kept, **own, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True)
class Up:
    """`dgate up` with two lane workers."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path


@pytest.fixture(scope="session")
def up(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    base = tmp_path_factory.mktemp("up")
    lay_database(Path(environment["XDG_CACHE_HOME"]), base / "prefect")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    arguments = ["up", "--port", str(port), "--home", str(base / "prefect"), "--workers", "2"]
    with (base / "up.log").open("wb") as log:
        process = subprocess.Popen([*COMMAND, *arguments], env=environment, cwd=base, stdout=log, stderr=log)
    try:
        wait_for(lambda: b"Prefect is up" in (base / "up.log").read_bytes() or process.poll() is not None, 180)
        assert process.poll() is None, (base / "up.log").read_text()
        yield Up(f"http://127.0.0.1:{port}/api", process, base / "up.log")
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=120)
        left = [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        for child in left:
            child.kill()
    assert code == 0, (base / "up.log").read_text()
    assert len(family) >= 4, "the server and three workers"
    assert not left, "dgate up left processes behind"


def lay_database(cache: Path, home: Path) -> None:
    """Prefect's empty tables, where an earlier test has made them: it saves several seconds."""
    home.mkdir()
    for template in cache.glob("dgate/prefect-*.db"):
        shutil.copyfile(template, home / "prefect.db")


@pytest.fixture
def api(up: Up, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The server, for flows and commands called in this process."""
    monkeypatch.setenv("PREFECT_API_URL", up.url)
    handlers = logging.getLogger().handlers
    with temporary_settings({PREFECT_API_URL: up.url, PREFECT_HOME: tmp_path / "prefect"}):
        yield up.url
    logging.getLogger().handlers = handlers


@dataclass(frozen=True)
class Done:
    """What a command said."""

    code: int
    out: str
    err: str


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """`dgate` in this process, which has torch and Prefect loaded already."""

    def call_main(*arguments: str) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        assert isinstance(ended.value.code, int)
        said = capsys.readouterr()
        return Done(ended.value.code, said.out, said.err)

    return call_main


def write_manifest(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def list_prompts(count: int, **columns: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"a red boat {number}", "num_inference_steps": 2, **columns} for number in range(count)]


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)
