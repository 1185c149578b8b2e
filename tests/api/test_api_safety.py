"""Verdicts in the API: the same policy for pictures on demand and of batches, in the answer as data."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from dgate_core.api.services import Parts
from dgate_core.api.settings import ApiSettings
from dgate_core.safety.guard import blur_pixels
from tests.api.batch_lab import ThreadRunner, make_line, read_lines, start_batch, wait_for_batch, write_lines
from tests.api.conftest import Live, run_server

ALL = {"safety": "tests.dark_checker:DarkChecker", "safety_threshold": 0.0}
"""A threshold under which every picture is flagged."""
BODY = {"prompt": "a red boat", "size": "64x64", "num_inference_steps": 2, "seed": 7}


@contextmanager
def serve(settings: ApiSettings, policy: Any, **other: Any) -> Iterator[Live]:
    own = replace(settings, safety_policy=policy, **{**ALL, **other})
    with run_server(own, Parts(runner=ThreadRunner())) as live:
        yield live


def ask(live: Live, **other: Any) -> dict[str, Any]:
    answer = httpx.post(f"{live.url}/v1/images/generations", json=BODY | other, timeout=60)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["data"][0]
    return found


def decode(entry: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(entry["b64_json"]))).convert("RGB"))


def test_answer_carries_the_verdict_and_what_was_done(own_settings: ApiSettings) -> None:
    with serve(own_settings, "keep") as live:
        kept = ask(live)
    with serve(own_settings, "blur") as live:
        blurred = ask(live)
    with serve(own_settings, "blur", safety_threshold=1.0) as live:
        harmless = ask(live)
    assert kept["safety"]["action"] == "keep"
    assert kept["safety"]["label"] == "dark"
    assert kept["safety"]["checker"] == ALL["safety"]
    assert blurred["safety"] == kept["safety"] | {"action": "blur"}
    assert (decode(blurred) == blur_pixels(decode(kept))).all()
    if harmless["safety"]["score"] < 1.0:
        assert harmless["b64_json"] == kept["b64_json"]
        assert (harmless["safety"]["label"], harmless["safety"]["action"]) == ("bright", "keep")


def test_withheld_pictures_leave_in_no_way(own_settings: ApiSettings) -> None:
    with serve(own_settings, "quarantine") as live:
        for form in ("b64_json", "url"):
            entry = ask(live, response_format=form)
            assert entry["b64_json"] is None
            assert "url" not in entry
            assert entry["safety"]["action"] == "quarantine"
        streamed = httpx.post(
            f"{live.url}/v1/images/generations", json=BODY | {"stream": True, "partial_images": 3}, timeout=60
        ).text
        assert "image_generation.completed" in streamed
        assert "partial_image" not in streamed
    (aside,) = (Path(own_settings.folder) / "quarantine").iterdir()
    assert Image.open(aside).size == (64, 64)


def test_batches_meet_the_same_policy(own_settings: ApiSettings, tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "b.jsonl", [make_line(number, size="64x64") for number in range(2)])
    with serve(own_settings, "drop") as live:
        batch = wait_for_batch(live.client(), start_batch(live.client(), lines).id)
        assert batch.request_counts is not None
        assert (batch.status, batch.request_counts.failed) == ("completed", 2)
        errors = read_lines(live.client(), batch.error_file_id)
    assert {line["error"]["code"] for line in errors.values()} == {"safety_dropped"}


def test_batches_tell_the_verdict(own_settings: ApiSettings, tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "b.jsonl", [make_line(0, size="64x64")])
    with serve(own_settings, "keep") as live:
        batch = wait_for_batch(live.client(), start_batch(live.client(), lines).id)
        (line,) = read_lines(live.client(), batch.output_file_id).values()
    (image,) = line["response"]["body"]["data"]
    assert image["safety"]["action"] == "keep"
    assert image["safety"]["label"] == "dark"


def test_checker_that_fails_is_an_error_and_no_picture(own_settings: ApiSettings) -> None:
    with serve(own_settings, "keep", safety="tests.dark_checker:BrokenChecker") as live:
        answer = httpx.post(f"{live.url}/v1/images/generations", json=BODY, timeout=60)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "safety_failed"


def test_unknown_checker_is_told_before_the_server_starts(own_settings: ApiSettings) -> None:
    with pytest.raises(Exception, match="did you mean 'opennsfw'"), serve(own_settings, "keep", safety="opennsfv"):
        pass
