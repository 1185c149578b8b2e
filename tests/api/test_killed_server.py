"""`dgate serve` as a process: killed in the middle of a batch, started again, told to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest
from openai import OpenAI

from tests.api.batch_lab import make_line, read_lines, start_batch, wait_for_batch, write_lines
from tests.run_lab import wait_for

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def run_command(folder: Path, checkpoint: str) -> Iterator[tuple[psutil.Process, OpenAI]]:
    """`dgate serve`; nothing that it started is left afterwards."""
    arguments = ["--model", f"tiny={checkpoint}", "--port", "0", "--folder", str(folder / "api")]
    arguments += ["--set", "precision=float32", "--set", "device=cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    log = folder / "serve.log"
    with log.open("wb") as sink:
        command = [sys.executable, "-m", "flows.cli", "serve", *arguments]
        process = psutil.Popen(command, env=environment, cwd=folder, stdout=sink, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: " at http://" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        url = log.read_text().partition(" at ")[2].split()[0]
        wait_until_ready(url)
        yield process, OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    finally:
        for each in [*process.children(recursive=True), process] if process.is_running() else []:
            each.kill()
        process.wait()


def wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + 120
    with httpx.Client() as client:
        while True:
            with suppress(httpx.TransportError):
                if client.get(f"{url}/readyz").status_code == 200:
                    return
            assert time.monotonic() < deadline, "the server does not get ready"
            time.sleep(0.2)


@pytest.mark.slow  # four processes that load torch, one after another
def test_a_killed_server_loses_no_batch(tmp_path: Path, checkpoint: str) -> None:
    lines = [make_line(number, seed=number, num_inference_steps=40) for number in range(24)]
    path = write_lines(tmp_path / "in.jsonl", lines)
    with run_command(tmp_path, checkpoint) as (process, client):
        first, second = start_batch(client, path), start_batch(client, path)
        parts = tmp_path / "api" / "runs" / first.id / "shards"
        wait_for(lambda: list(parts.glob("*/_parts/*.parquet")))
        children = process.children(recursive=True)
        process.kill()
        process.wait()
        psutil.wait_procs(children, 30)
        assert not any(child.is_running() for child in children), "a batch outlived its server"
    with run_command(tmp_path, checkpoint) as (process, client):
        for batch in (first, second):
            done = wait_for_batch(client, batch.id, 120)
            assert done.status == "completed", done.errors
            assert set(read_lines(client, done.output_file_id)) == {f"row-{number}" for number in range(24)}
            assert done.error_file_id is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
