"""The requests of a batch before its run: whether the models that they name are served, and what these names mean.

A run takes any model that the operator's disk holds, so what stands here is a border: no line may mean another thing to
the run than it means here. Lines are therefore cut by the run's own reader, a line that cannot be read here is written
so that it cannot be read there either, and a file of plain rows, which name their models elsewhere, is refused.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from dgate_core.api.served_models import ServedModels
from dgate_core.manifest.batch_lines import is_batch_line, request_to_row
from dgate_core.manifest.json_lines import BOM, MAX_LINE_BYTES, number_lines
from dgate_core.storage import Storage

ERRORS_KEPT = 100


def check_lines(stream: BinaryIO, models: ServedModels) -> list[dict[str, Any]]:
    """What makes the whole file useless, as a batch's `errors.data` has it; other bad lines fail alone later."""
    errors: list[dict[str, Any]] = []
    is_seen = is_batch = False
    for number, text in number_lines(stream):
        is_seen, request = True, _read_request(text)
        if request and not is_batch:
            if not is_batch_line(request):
                expected = 'an object with "custom_id", "method", "url" and "body"'
                return [describe_problem("no_batch_request", f"got no request, expected {expected}", None, number)]
            is_batch = True
        model = _find_model(request)
        if model is not None and not models.is_served(model) and len(errors) < ERRORS_KEPT:
            message = f"model: got {model[:100]!r}, which is not served here"
            errors.append(describe_problem("model_not_found", message, "body.model", number))
    return errors if is_seen else [describe_problem("empty_file", "the file holds no requests")]


def count_pictures(stream: BinaryIO) -> int:
    """How many a file asks for; a line that cannot be read asks for one."""
    return sum(_count_images(_read_request(text)) for _, text in number_lines(stream))


def write_manifest(stream: BinaryIO, models: ServedModels, storage: Storage, key: str) -> None:
    """The same requests with every served name replaced by what it is served from."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.jsonl"
        with path.open("wb") as sink:
            sink.writelines(_translate(text, models) + b"\n" for _, text in number_lines(stream))
        storage.upload_file(path, key)


def describe_problem(code: str, message: str, param: str | None = None, line: int | None = None) -> dict[str, Any]:
    """An entry of a batch's `errors.data`."""
    return {"code": code, "message": message, "param": param, "line": line}


def _translate(text: bytes, models: ServedModels) -> bytes:
    request = _read_request(text)
    if request is None:
        return _keep_broken(text)
    model = _find_model(request)
    if model is None or (source := models.find_source(model)) == model:
        return text.strip()
    request["body"]["model"] = source
    return orjson.dumps(request)


def _keep_broken(text: bytes) -> bytes:
    """A line that is no JSON object, so that the run's reader neither takes a mark off its start nor cuts its end."""
    if len(text) >= MAX_LINE_BYTES - 1:
        return b"(a line of %d bytes or more)" % (MAX_LINE_BYTES - 1)
    return b" " + text.rstrip(b"\r\n") if text.startswith(BOM) else text.rstrip(b"\r\n")


def _count_images(request: dict[str, Any] | None) -> int:
    """As the run counts: `n`, else the manifest's own `num_images`; also a whole number with a point."""
    count = request_to_row(0, request or {})[0].get("num_images")
    return max(int(count), 1) if isinstance(count, int | float) else 1


def _read_request(text: bytes) -> dict[str, Any] | None:
    """None for a line that is no JSON object: it is told in the error file, with the reason."""
    try:
        request = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return request if isinstance(request, dict) else None


def _find_model(request: dict[str, Any] | None) -> str | None:
    """None where a line names none, or no text: that is told in the error file."""
    body = (request or {}).get("body")
    model = body.get("model") if isinstance(body, dict) else None
    return model if isinstance(model, str) else None
