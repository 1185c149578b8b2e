"""Log lines: one JSON object each, with whose they are, and without anybody's secrets."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from dgate_core.telemetry.logs import HIDDEN, LogOptions, Secrets, log_fields, set_up_logs
from dgate_core.telemetry.server import ServerTelemetry
from tests.telemetry.records import REQUEST, fill_metrics, request

logger = logging.getLogger("dgate_core.somewhere")


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Whatever a test sets up is gone after it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def read_lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_an_object_with_whose_it_is() -> None:
    stream = io.StringIO()
    set_up_logs(LogOptions(fields={"run": "runs/a"}, read_fields=lambda: {"request_id": "req_1"}), stream)
    with log_fields(lane="lane-3"):
        logger.info("made %d", 7)
    logger.warning("two\nlines", extra={"lane": "lane-4", "unknown": 1})
    logging.getLogger("urllib3").info("a library's chatter")
    first, second = read_lines(stream)
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "info",
        "logger": "dgate_core.somewhere",
        "message": "made 7",
        "request_id": "req_1",
        "run": "runs/a",
        "lane": "lane-3",
    }
    assert (second["message"], second["lane"]) == ("two\nlines", "lane-4")
    assert "unknown" not in second


def test_threads_do_not_share_fields() -> None:
    stream = io.StringIO()
    set_up_logs(stream=stream)
    with log_fields(lane="lane-0"):
        thread = threading.Thread(target=logger.info, args=("elsewhere",))
        thread.start()
        thread.join()
    assert "lane" not in read_lines(stream)[0]


def test_people_get_text_and_pipes_get_json() -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        set_up_logs(LogOptions(fields={"run": "runs/a"}), terminal)
        logger.error("no room")
        terminal.flush()
        assert os.read(ours, 1000).decode().strip() == "error dgate_core.somewhere: no room [run=runs/a]"
    os.close(ours)


def test_an_exception_is_one_line_of_json() -> None:
    stream = io.StringIO()
    set_up_logs(stream=stream)
    try:
        raise ValueError("Authorization: Bearer abcdefghijklmnop")
    except ValueError:
        logger.exception("it failed")
    (line,) = read_lines(stream)
    assert "Traceback" in line["exception"]
    assert "abcdefghijklmnop" not in stream.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer SECRETSECRET1234",
        "{'authorization': 'Basic SECRETSECRET1234'}",
        'headers={"x-api-key": "SECRETSECRET1234"}',
        "password=SECRETSECRET1234&user=me",
        "AWS_SECRET_ACCESS_KEY=SECRETSECRET1234",
        "https://me:SECRETSECRET1234@storage.example/bucket",
        "https://s3.example/b/k?X-Amz-Signature=SECRETSECRET1234&X-Amz-Date=2",
        "the key sk-SECRETSECRET1234abcd was refused",
        "hf_SECRETSECRET1234abcd",
        "it is whatever-the-environment-holds",
    ],
)
def test_secrets_are_hidden(text: str) -> None:
    hidden = Secrets({"MY_API_KEY": "whatever-the-environment-holds", "HOME": "/home/me"}).hide(text)
    assert HIDDEN in hidden
    assert "SECRET1234" not in hidden
    assert "whatever" not in hidden


@pytest.mark.parametrize(
    "text",
    [
        "max_tokens: 77, 3 of 4 rows, model=starter-unet",
        "a basic boat, the bearer of flags, at /home/me",
        "GET http://localhost:8000/v1/images/generations 200",
        "the keyboard: a picture of a secretary bird",
    ],
)
def test_ordinary_words_stay(text: str) -> None:
    assert Secrets({"HOME": "/home/me", "SHORT_KEY": "boat"}).hide(text) == text


def test_every_request_has_a_line_and_machines_that_ask_are_quiet() -> None:
    stream = io.StringIO()
    set_up_logs(stream=stream)
    telemetry = ServerTelemetry(fill_metrics())
    telemetry.on_request(request(503, "out_of_memory"))
    quiet = request()
    object.__setattr__(quiet, "route", "/metrics")
    telemetry.on_request(quiet)
    (line,) = read_lines(stream)
    assert line["message"] == "POST /v1/images/generations 503"
    assert (line["request_id"], line["status"], line["error_code"]) == (REQUEST, 503, "out_of_memory")
