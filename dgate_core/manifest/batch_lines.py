"""Request lines of the OpenAI Batch API for /v1/images/generations, and the columns that they mean.

A line is {"custom_id", "method": "POST", "url", "body"}; the body's prompt, model, n and size are OpenAI's, while
negative_prompt, num_inference_steps, guidance_scale, seed, lora and style_preset are extensions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dgate_core.manifest.problems import show_value
from dgate_core.manifest.values import Issue

IMAGES_URL = "/v1/images/generations"
_SIZE = re.compile(r"(\d{1,9})x(\d{1,9})")

Row = Mapping[str, Any]


def is_batch_line(row: Row) -> bool:
    """Whether an object of a JSON Lines file is a request of the Batch API."""
    return "custom_id" in row and ("body" in row or "url" in row)


def request_to_row(index: int, request: Row) -> tuple[Row, list[Issue]]:
    """The row that a request means, and what is wrong with the request."""
    if not request:
        return {}, []  # a broken line, reported as such
    body = request.get("body")
    issues = _check_target(index, request)
    if not isinstance(body, dict):
        return {"id": request.get("custom_id")}, [
            *issues,
            Issue(index, "body", "bad_type", show_value(body), "an object with at least a prompt"),
        ]
    row = {**{name: value for name, value in body.items() if name not in ("n", "size")}, "id": request.get("custom_id")}
    if body.get("n") is not None:
        row["num_images"] = body["n"]
    issues += _read_size(index, body.get("size"), row)
    return row, issues


def _check_target(index: int, request: Row) -> list[Issue]:
    wanted = {"method": "POST", "url": IMAGES_URL}
    return [
        Issue(index, name, "unsupported_url", show_value(request.get(name)), repr(value))
        for name, value in wanted.items()
        if request.get(name) != value
    ]


def _read_size(index: int, size: Any, row: dict[str, Any]) -> list[Issue]:
    """Put "512x768" into the row as width and height; "auto" leaves both to the model."""
    if size is None or size == "auto":
        return []
    match = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if match is None:
        return [Issue(index, "size", "bad_size", show_value(size), '"WIDTHxHEIGHT" such as "512x512", or "auto"')]
    row["width"], row["height"] = int(match[1]), int(match[2])
    return []
