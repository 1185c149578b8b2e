"""results.jsonl and errors.jsonl: what the OpenAI Batch API gives back, one line per request, joined on custom_id."""

from __future__ import annotations

import base64
import json
import tarfile
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import pyarrow.parquet as pq

from dgate_core.runs import layout
from dgate_core.runs.store import RunStore


def write_batch_output(store: RunStore, created: int) -> None:
    """Writes both files; a request with any failed image stands in errors.jsonl.

    Args:
        store: A run with results.parquet.
        created: POSIX seconds, for the bodies.
    """
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder) / "results.jsonl", Path(folder) / "errors.jsonl"
        with output.open("w", encoding="utf-8") as good, errors.open("w", encoding="utf-8") as bad:
            for images in _read_requests(store):
                failed = [image for image in images if image["status"] not in {"ok", "duplicate"}]
                line = _describe_failure(images, failed[0]) if failed else _describe_success(store, images, created)
                (bad if failed else good).write(json.dumps(line, ensure_ascii=False) + "\n")
        store.storage.upload_file(output, layout.BATCH_OUTPUT_FILE)
        store.storage.upload_file(errors, layout.BATCH_ERRORS_FILE)


def _read_requests(store: RunStore) -> Iterator[list[dict[str, Any]]]:
    """The images of one request after another; rows of one request stand together."""
    with store.storage.open_read(layout.RESULTS_FILE) as stream:
        rows = (row for batch in pq.ParquetFile(stream).iter_batches(5_000) for row in batch.to_pylist())
        numbered = _number_requests(rows)
        for _, group in groupby(numbered, key=lambda pair: pair[0]):
            yield [row for _, row in group]


def _number_requests(rows: Iterator[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """An image 0 begins a new request, also where two bad lines share their id."""
    number = -1
    for row in rows:
        number += row["image_index"] in (0, None)
        yield number, row


def _describe_success(store: RunStore, images: list[dict[str, Any]], created: int) -> dict[str, Any]:
    first = images[0]
    body = {
        "created": created,
        "data": [_describe_image(store, image) for image in images],
        "size": f"{first['width']}x{first['height']}",
    }
    response = {"status_code": 200, "request_id": first["row_id"], "body": body}
    return {"id": f"batch_req_{first['row_id']}", "custom_id": first["id"], "response": response, "error": None}


def _describe_image(store: RunStore, image: dict[str, Any]) -> dict[str, Any]:
    described = {"revised_prompt": image["prompt"], "seed": image["seed"], "id": image["row_id"], "path": image["path"]}
    if image["safety_action"] is not None:
        described["safety"] = {name: image[f"safety_{name}"] for name in ("score", "label", "action")}
    if image.get("response_format") == "b64_json":
        return {"b64_json": base64.b64encode(_read_picture(store, image["path"])).decode(), **described}
    key, _, member = image["path"].partition("#")
    local = store.storage.local_path(key)
    uri = local.resolve().as_uri() if local is not None else store.storage.uri_of(key)
    return {"url": f"{uri}#{member}" if member else uri, **described}


def _read_picture(store: RunStore, path: str) -> bytes:
    """The bytes of a loose file, of a tar's member, or of a row of a Parquet file."""
    key, _, inner = path.partition("#")
    if not inner:
        return store.storage.read_bytes(key)
    with store.storage.open_read(key) as stream:
        return _read_member(stream, inner) if key.endswith(".tar") else _read_row(pq.ParquetFile(stream), int(inner))


def _read_member(stream: IO[bytes], name: str) -> bytes:
    with tarfile.open(fileobj=stream) as tar:
        member = tar.extractfile(name)
        assert member is not None  # only regular files are packed
        return member.read()


def _read_row(file: pq.ParquetFile, row: int) -> bytes:
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if row < rows:
            data: bytes = file.read_row_group(group, ["image"]).column(0)[row]["bytes"].as_py()
            return data
        row -= rows
    raise IndexError(row)


def _describe_failure(images: list[dict[str, Any]], failed: dict[str, Any]) -> dict[str, Any]:
    error = {"code": failed["error_code"] or failed["status"], "message": failed["error_message"] or "not made yet"}
    # A failed request may have no row id: its line could not be resolved.
    name = images[0]["row_id"] or f"{images[0]['id']}"
    return {"id": f"batch_req_{name}", "custom_id": images[0]["id"], "response": None, "error": error}
