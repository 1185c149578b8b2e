"""The requests of a batch before its run: whether the models that they name are served, and what these names mean."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from dgate_core.api.served_models import ServedModels
from dgate_core.storage import Storage

ERRORS_KEPT = 100


def check_lines(stream: BinaryIO, models: ServedModels) -> list[dict[str, Any]]:
    """What makes the whole file useless, as a batch's `errors.data` has it; other bad lines fail alone later."""
    errors: list[dict[str, Any]] = []
    seen = False
    for number, line in enumerate(stream, 1):
        seen = seen or bool(line.strip())
        model = _read_model(line)
        if model is not None and not models.is_served(model) and len(errors) < ERRORS_KEPT:
            message = f"model: got {model[:100]!r}, which is not served here"
            errors.append(describe_problem("model_not_found", message, "body.model", number))
    return errors if seen else [describe_problem("empty_file", "the file holds no requests")]


def count_pictures(stream: BinaryIO) -> int:
    """How many a file asks for; a line that cannot be read asks for one."""
    return sum(_read_count(line) for line in stream if line.strip())


def write_manifest(stream: BinaryIO, models: ServedModels, storage: Storage, key: str) -> None:
    """The same lines with every served name replaced by what it is served from."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.jsonl"
        with path.open("wb") as sink:
            sink.writelines(_translate(stream, models))
        storage.upload_file(path, key)


def describe_problem(code: str, message: str, param: str | None = None, line: int | None = None) -> dict[str, Any]:
    """An entry of a batch's `errors.data`."""
    return {"code": code, "message": message, "param": param, "line": line}


def _translate(stream: BinaryIO, models: ServedModels) -> Iterator[bytes]:
    for line in stream:
        model = _read_model(line)
        if model is None or (source := models.find_source(model)) == model:
            yield line
            continue
        request = orjson.loads(line)
        request["body"]["model"] = source
        yield orjson.dumps(request) + b"\n"


def _read_count(line: bytes) -> int:
    try:
        count = orjson.loads(line)["body"].get("n", 1)
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return 1
    return max(count, 1) if isinstance(count, int) else 1


def _read_model(line: bytes) -> str | None:
    """None where a line names none; a broken line is told in the error file, with the reason."""
    try:
        model = orjson.loads(line)["body"]["model"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    return model if isinstance(model, str) else None
