"""Output and error files of a batch, from those that its run wrote: addresses become ones that clients can open."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from dgate_core.api.batch_store import BatchJob, BatchStore
from dgate_core.api.errors import ApiError
from dgate_core.api.file_store import FileStore
from dgate_core.runs import layout
from dgate_core.runs.pictures import read_picture
from dgate_core.runs.store import RunStore


@dataclass(frozen=True, slots=True)
class BatchFiles:
    """What a batch leaves."""

    output_file_id: str | None
    """None when no request succeeded."""
    error_file_id: str | None
    """None when none failed."""
    counts: dict[str, int]
    """Requests: total, completed, failed."""


def register_output(run: RunStore, files: FileStore, store: BatchStore, job: BatchJob) -> BatchFiles:
    """Puts results.jsonl and errors.jsonl of a finished run among the files of the batch's owner."""
    ids, lines = [], []
    for key, name in ((layout.BATCH_OUTPUT_FILE, "output"), (layout.BATCH_ERRORS_FILE, "errors")):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            lines.append(_write_lines(path, _read_lines(run, key), store, job))
            filename = f"{job.id}_{name}.jsonl"
            ids.append(files.add(path, filename, "batch_output", job.owner).id if lines[-1] else None)
    done, failed = lines
    return BatchFiles(ids[0], ids[1], {"total": done + failed, "completed": done, "failed": failed})


def read_batch_picture(run: RunStore, row_id: str) -> tuple[bytes, str]:
    """A picture of a batch by its row id, and the end of its file's name.

    Raises:
        ApiError: 404, the run has no such picture.
    """
    if run.storage.exists(layout.RESULTS_FILE):
        with run.storage.open_read(layout.RESULTS_FILE) as stream:
            table = pq.read_table(stream, columns=["row_id", "path"], filters=pc.field("row_id") == row_id)
        paths = table.column("path").filter(pc.is_valid(table.column("path"))).to_pylist()
        if paths:
            return read_picture(run.storage, paths[0]), paths[0].rpartition(".")[2]
    raise ApiError(404, "no such picture", "picture_not_found")


def _read_lines(run: RunStore, key: str) -> Iterator[dict[str, Any]]:
    if run.storage.exists(key):
        with run.storage.open_read(key) as stream:
            yield from (json.loads(line) for line in stream)


def _write_lines(path: Path, lines: Iterator[dict[str, Any]], store: BatchStore, job: BatchJob) -> int:
    """How many there were."""
    count = 0
    with path.open("w", encoding="utf-8") as sink:
        for line in lines:
            for image in ((line.get("response") or {}).get("body") or {}).get("data", ()):
                image.pop("path", None)  # of the server's storage: nothing for clients
                if "url" in image:
                    image["url"] = f"{job.base_url}/pictures/{job.id}/{image['id']}"
            if error := line.get("error"):
                error["message"] = store.hide_places(job, error["message"])
            sink.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += 1
    return count
