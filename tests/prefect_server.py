"""One Prefect server for all tests of a process, `dgate up` with two lane workers, in a home of its own."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.groups import find_group

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-m", "flows.cli"]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """No Prefect server set, an empty home, one cache for all tests, one thread per process."""
    base = tmp_path_factory.mktemp("home")
    (base / "tmp").mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    own = {"HOME": str(base), "XDG_CACHE_HOME": str(base / "cache"), "TMPDIR": str(base / "tmp")}
    return {**kept, **own, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@dataclass
class Up:
    """`dgate up` with two lane workers."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    is_stopped: bool = False

    def stop(self) -> None:
        """Ctrl-C, once: it ends well and leaves nothing behind."""
        if self.is_stopped:
            return
        self.is_stopped = True
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(timeout=120)
        left = [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        for child in left:
            child.kill()
        assert code == 0, self.log.read_text()
        assert len(family) >= 4, "the server and three workers"
        assert not left, "dgate up left processes behind"


_RUNNING: list[Up] = []


@pytest.fixture(scope="session")
def up(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    base = tmp_path_factory.mktemp("up")
    lay_database(Path(environment["XDG_CACHE_HOME"]), base / "prefect")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    arguments = ["up", "--port", str(port), "--home", str(base / "prefect"), "--workers", "2"]
    with (base / "up.log").open("wb") as log:
        process = subprocess.Popen([*COMMAND, *arguments], env=environment, cwd=base, stdout=log, stderr=log)
    up = Up(f"http://127.0.0.1:{port}/api", process, base / "up.log")
    _RUNNING.append(up)
    try:
        wait_for(lambda: b"Prefect is up" in up.log.read_bytes() or process.poll() is not None, 180)
        assert process.poll() is None, up.log.read_text()
        yield up
    finally:
        up.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:  # type: ignore[misc]
    """The server ends with the last test that has it: idle, it would take a tenth of a processor from all others."""
    yield
    if nextitem is not None and find_group(item.nodeid) != find_group(nextitem.nodeid):
        for up in _RUNNING:
            up.stop()


def lay_database(cache: Path, home: Path) -> None:
    """Prefect's empty tables, where an earlier test has made them: it saves several seconds."""
    home.mkdir()
    for template in cache.glob("dgate/prefect-*.db"):
        shutil.copyfile(template, home / "prefect.db")


@pytest.fixture
def api(up: Up, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The server, for flows and commands called in this process."""
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    monkeypatch.setenv("PREFECT_API_URL", up.url)
    handlers = logging.getLogger().handlers
    with temporary_settings({PREFECT_API_URL: up.url, PREFECT_HOME: tmp_path / "prefect"}):
        yield up.url
    logging.getLogger().handlers = handlers


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)
