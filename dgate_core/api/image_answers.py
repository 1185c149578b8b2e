"""Finished pictures as OpenAI's clients read them."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from dgate_core.api.image_request import ImageRequest
from dgate_core.api.picture_store import PictureStore
from dgate_core.api.waiting_room import Made
from dgate_core.engine.provenance import SUFFIXES

LARGE_BYTES = 1 << 20
"""More than this is put into JSON off the event loop."""


@dataclass(frozen=True, slots=True)
class Answering:
    """What an answer depends on besides its pictures."""

    asked: ImageRequest
    base_url: str
    """Where the client reached the server."""
    pictures: PictureStore
    model: str
    """As it is served."""


async def write_answer(made: Sequence[Made], answering: Answering) -> bytes:
    """The JSON of an answer."""
    if sum(len(each.data or b"") for each in made) > LARGE_BYTES:
        return await asyncio.to_thread(_write_answer, made, answering)
    return _write_answer(made, answering)


def _write_answer(made: Sequence[Made], answering: Answering) -> bytes:
    return orjson.dumps(
        {
            "created": int(time.time()),
            "model": answering.model,
            "data": [describe_picture(each, answering) for each in made],
            **describe_frame(made[0].row, answering.asked),
            "usage": describe_usage(made),
        }
    )


def describe_picture(made: Made, answering: Answering) -> dict[str, Any]:
    """One entry of `data`."""
    entry: dict[str, Any] = {}
    if made.data is None:
        entry["b64_json"] = None
    elif answering.asked.response_format == "url":
        format_name = answering.asked.output_format or "png"
        name = answering.pictures.put(made.data, f"image/{format_name}")
        entry["url"] = f"{answering.base_url}/pictures/{name}.{SUFFIXES[format_name]}"
    else:
        entry["b64_json"] = base64.b64encode(made.data).decode()
    entry |= {"revised_prompt": made.row["prompt"], "seed": made.row["seed"], "id": made.row["row_id"]}
    if warnings := [*made.warnings, *answering.asked.list_warnings()]:
        entry["warnings"] = warnings
    return entry if made.verdict is None else {**entry, "safety": dict(made.verdict)}


def describe_frame(row: Mapping[str, Any], asked: ImageRequest) -> dict[str, Any]:
    """What all pictures of a request share."""
    return {
        "size": f"{row['width']}x{row['height']}",
        "output_format": asked.output_format or "png",
        "background": "opaque",
    }


def describe_usage(made: Sequence[Made]) -> dict[str, Any]:
    """Nothing is counted in tokens; pictures, steps and milliseconds are."""
    return {
        "input_tokens": 0,
        "output_tokens": 0,
        "total_tokens": 0,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
        "images": len(made),
        "steps": sum(each.row["num_inference_steps"] for each in made),
        "queue_ms": round(1000 * max(each.queue_seconds for each in made), 3),
        "device_ms": round(1000 * max(each.device_seconds for each in made), 3),
        "batch_size": max(each.batch_size for each in made),
    }
