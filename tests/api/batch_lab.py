"""Batches in tests: files of requests, and a runner that needs no new process."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openai import OpenAI
from openai.types import Batch

from dgate_core.api.batch_process import carry_out
from dgate_core.api.batch_runner import BatchEnd, BatchOrder
from dgate_core.engine.stopping import StopSignal
from dgate_core.errors import DgateError

ENDPOINT = "/v1/images/generations"


class ThreadRunner:
    """Carries a run out in a thread of the server's process, where torch is loaded already."""

    def submit(self, order: BatchOrder) -> ThreadHandle:
        return ThreadHandle(order)


class ThreadHandle:
    def __init__(self, order: BatchOrder) -> None:
        self._signal, self._end = StopSignal(), BatchEnd("finished")
        self._thread = threading.Thread(target=self._carry_out, args=(order,))
        self._thread.start()

    def _carry_out(self, order: BatchOrder) -> None:
        try:
            carry_out(order, self._signal)
        except DgateError as error:
            self._end = BatchEnd("failed", str(error))

    def poll(self) -> BatchEnd | None:
        return None if self._thread.is_alive() else self._end

    def stop(self) -> None:
        self._signal.set()

    def leave(self) -> None:
        self.stop()
        self._thread.join()


def make_line(number: int, **body: Any) -> dict[str, Any]:
    body = {"prompt": f"a red boat {number}", "num_inference_steps": 1, "response_format": "b64_json", **body}
    return {"custom_id": f"row-{number}", "method": "POST", "url": ENDPOINT, "body": body}


def write_lines(path: Path, lines: list[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def start_batch(client: OpenAI, path: Path) -> Batch:
    with path.open("rb") as stream:
        file = client.files.create(file=stream, purpose="batch")
    return client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/images/generations",
        completion_window="24h",
        metadata={"night": "1"},
    )


def wait_for_batch(client: OpenAI, batch_id: str, seconds: float = 60.0) -> Batch:
    deadline = time.monotonic() + seconds
    while (batch := client.batches.retrieve(batch_id)).status in {
        "validating",
        "in_progress",
        "finalizing",
        "cancelling",
    }:
        assert time.monotonic() < deadline, batch
        time.sleep(0.1)
    return batch


def read_lines(client: OpenAI, file_id: str | None) -> dict[str, Any]:
    """Lines of an output or error file by their custom_id."""
    assert file_id is not None
    lines = [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
    return {line["custom_id"]: line for line in lines}
