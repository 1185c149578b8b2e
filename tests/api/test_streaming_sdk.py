"""Progress, previews and pictures by server-sent events, read by OpenAI's SDK."""

from __future__ import annotations

import base64
import io
import json

import httpx
import openai
import pytest
from PIL import Image

from tests.api.conftest import Live
from tests.run_lab import wait_for


def test_a_stream_tells_progress_previews_and_the_picture(live: Live) -> None:
    client = live.client()
    body = {"num_inference_steps": 8, "seed": 3}
    stream = client.images.generate(prompt="a red boat", stream=True, partial_images=2, extra_body=body)
    events = list(stream)
    kinds = [event.type for event in events]
    assert kinds[-1] == "image_generation.completed"
    assert kinds.count("image_generation.partial_image") == 2
    assert "image_generation.progress" in kinds
    previews = [event for event in events if event.type == "image_generation.partial_image"]
    assert [event.partial_image_index for event in previews] == [0, 1]
    for event in [*previews, events[-1]]:
        assert Image.open(io.BytesIO(base64.b64decode(event.b64_json))).size == (32, 32)  # type: ignore[union-attr]
    plain = client.images.generate(prompt="a red boat", extra_body=body)
    assert plain.data is not None
    assert events[-1].b64_json == plain.data[0].b64_json


def test_every_picture_of_a_stream_completes(live: Live) -> None:
    stream = live.client().images.generate(prompt="a boat", n=3, stream=True, extra_body={"num_inference_steps": 2})
    done = [event for event in stream if event.type == "image_generation.completed"]
    assert sorted(event.image_index for event in done) == [0, 1, 2]  # type: ignore[attr-defined]


def test_a_request_that_is_wrong_fails_before_its_stream(live: Live) -> None:
    with pytest.raises(openai.BadRequestError):
        live.client().images.generate(prompt="a boat", stream=True, size="1x1")


def test_a_client_that_closes_its_stream_frees_its_places(live: Live) -> None:
    body = {"prompt": "a boat", "stream": True, "n": 10, "num_inference_steps": 50}
    with httpx.stream("POST", f"{live.url}/v1/images/generations", json=body, timeout=30) as answer:
        line = next(line for line in answer.iter_lines() if line.startswith("data:"))
        assert json.loads(line[5:])["type"] == "image_generation.progress"
    wait_for(lambda: len(live.services.engine.room) == 0, 20)
