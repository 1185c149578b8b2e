"""Hostile clients against a real server on loopback: too large, too slow, malformed, half closed, from elsewhere."""

from __future__ import annotations

import io
import json
import resource
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from dgate_core.api import guarded_protocol, request_limits
from dgate_core.api.edit_routes import MOST_BYTES
from dgate_core.api.settings import ApiSettings
from tests.api.conftest import Live, run_server
from tests.run_lab import wait_for

JSON = {"content-type": "application/json"}
GENERATE = "/v1/images/generations"


@pytest.fixture(scope="module")
def live(settings: ApiSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("hostile")
    own = replace(settings, folder=str(folder / "api"), upload_bytes=100_000, steps_limit=2)
    with run_server(own) as live:
        yield live


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded_protocol, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(guarded_protocol, "READ_SECONDS", 0.5)
    monkeypatch.setattr(request_limits, "BODY_SECONDS", 0.5)


def connect(live: Live) -> socket.socket:
    line = socket.create_connection(("127.0.0.1", int(live.url.rpartition(":")[2])), 10)
    line.settimeout(10)
    return line


def read_all(line: socket.socket) -> bytes:
    """Until the server ends the connection; fails when it does not."""
    parts = []
    try:
        while part := line.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def read_one(line: socket.socket) -> bytes:
    """One answer of a connection that stays open."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        part = line.recv(65536)
        assert part, answer
        answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    length = next(int(row.split(b":")[1]) for row in head.lower().splitlines() if row.startswith(b"content-length"))
    while len(body) < length:
        body += line.recv(65536)
    return head + b"\r\n\r\n" + body


def write_head(live: Live, path: str = GENERATE, method: str = "POST", **headers: str) -> bytes:
    own = {"host": live.url.removeprefix("http://"), **JSON, **headers}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in own.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def read_error(answer: bytes) -> tuple[int, str]:
    """Status and code of an answer with the envelope."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"x-request-id" in head.lower(), head
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def is_well(live: Live) -> bool:
    body = {"prompt": "a red boat", "size": "64x64", "num_inference_steps": 1}
    return httpx.post(f"{live.url}{GENERATE}", json=body, timeout=30).status_code == 200


def send_until_refused(line: socket.socket, data: bytes, most: float) -> float:
    """Seconds until the other side is gone, `most` when it is not."""
    started = time.monotonic()
    with suppress(BrokenPipeError, ConnectionResetError):
        while time.monotonic() - started < most:
            line.sendall(data)
            time.sleep(0.02)
    return time.monotonic() - started


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b'"' + b"a" * 1000, b"[" * 200_000, b'{"prompt":' * 50_000,
        b'{"prompt": "a", "seed": ' + b"9" * 10_000 + b"}", b'{"prompt": "a", "guidance_scale": NaN}',
        b'{"prompt": "a", "guidance_scale": 1e999}', b'{"prompt": "\\ud800"}', b'{"prompt": "\\u0000", "n": -1}',
        b'{"prompt": {"a": 1}}', b'{"prompt": "a", "model": "../../etc/passwd"}', b'{"prompt": "a", "__proto__": 1}',
        b'{"prompt": "a", "lora": "/etc/passwd:1"}', b'{"prompt": "a", "size": "99999999x99999999"}',
        b'{"prompt": "a", "size": "0x0"}', b'{"prompt": "a", "n": true}', b'{"prompt": "a", "seed": 1.5}',
    ],
    ids=lambda data: data[:24].decode("latin-1"),
)  # fmt: skip
def test_malformed_bodies_are_told_in_the_envelope(live: Live, data: bytes) -> None:
    answer = httpx.post(f"{live.url}{GENERATE}", content=data, headers=JSON, timeout=30)
    assert answer.status_code in {400, 404}, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert len(answer.text) < 5000
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    "data",
    [
        b"GARBAGE\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00" + b"\x00" * 64,
        b"GET /v1/models HTTP/1.1\r\n\r\n", b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 200_000 + b"\r\n\r\n", b"GET /\x00 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
    ],
    ids=lambda data: data[:20].decode("latin-1"),
)  # fmt: skip
def test_what_is_no_http_is_answered_and_closed(live: Live, data: bytes) -> None:
    with connect(live) as line:
        line.sendall(data)
        answer = read_all(line)
    assert not answer or answer.split()[1] in {b"400", b"403"}, answer[:200]
    assert not answer or b'"error"' in answer
    assert is_well(live)


def test_bodies_that_are_too_large_are_refused_before_they_are_read(live: Live) -> None:
    for path, kind, length in ((GENERATE, "application/json", 2 << 20), ("/v1/files", "multipart/form-data", 9 << 30)):
        with connect(live) as line:
            line.sendall(write_head(live, path, **{"content-type": kind}, content_length=str(length)))
            assert read_error(read_one(line)) == (413, "too_large")
    for digits, error in ((18, (413, "too_large")), (400, (400, "invalid_http"))):
        with connect(live) as line:
            line.sendall(write_head(live, content_length="9" * digits))
            assert read_error(read_one(line)) == error


def test_bodies_without_a_length_are_counted(live: Live) -> None:
    with connect(live) as line:
        line.sendall(write_head(live, transfer_encoding="chunked"))
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        for _ in range(17):
            line.sendall(chunk)
        assert read_error(read_one(line)) == (413, "too_large")
    form = httpx.post(f"{live.url}/v1/files", data={"purpose": "batch"}, files={"file": b"x" * 150_000})
    assert (form.status_code, form.json()["error"]["code"]) == (413, "file_too_large")
    form = httpx.post(f"{live.url}/v1/files", data={"purpose": "batch"}, files={"file": iter_bytes(2 << 20)})
    assert (form.status_code, form.json()["error"]["code"]) == (413, "too_large")
    assert is_well(live)


def iter_bytes(count: int) -> Any:
    return io.BytesIO(b"x" * count)


@pytest.mark.parametrize(
    ("path", "kind", "status"),
    [
        (GENERATE, "text/plain", 415), (GENERATE, "application/x-www-form-urlencoded", 415), (GENERATE, "", 415),
        (GENERATE, "multipart/form-data; boundary=x", 415), (GENERATE, "application/json; charset=utf-16", 415),
        (GENERATE, "application/json; charset=UTF-8", 200), (GENERATE, "application/jsonx", 415),
        ("/v1/files", "application/json", 415), ("/v1/images/edits", "application/json", 415),
        ("/v1/batches", "text/plain", 415),
    ],
)  # fmt: skip
def test_only_the_content_type_that_is_meant(live: Live, path: str, kind: str, status: int) -> None:
    body = b'{"prompt": "a red boat", "size": "64x64", "num_inference_steps": 1}'
    answer = httpx.post(f"{live.url}{path}", content=body, headers={"content-type": kind}, timeout=30)
    assert answer.status_code == status, answer.text
    assert status == 200 or answer.json()["error"]["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"}, {"host": "evil.example"}, {"host": "evil.example:8000"},
        {"sec-fetch-site": "cross-site"}, {"origin": "null"}, {"host": "127.0.0.1.evil.example"},
    ],
)  # fmt: skip
def test_pages_from_elsewhere_cannot_use_an_open_server(live: Live, headers: dict[str, str]) -> None:
    answer = httpx.get(f"{live.url}/v1/models", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_origin")
    port = live.url.rpartition(":")[2]
    for host in (f"localhost:{port}", f"[::1]:{port}", "127.0.0.1"):
        own = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
        assert httpx.get(f"{live.url}/v1/models", headers=own).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1/files/../../../../etc/passwd", "/v1/files/%2e%2e%2f%2e%2e%2fetc%2fpasswd/content", "/v1/files/file-x",
        "/pictures/..%2f..%2fetc%2fpasswd", "/pictures/batch_x/..%2f..", "/v1/batches/..%2f..%2fetc",
        "/pictures/batch_00000000000000000000000000000000/%00", "/v1/models/..%2f..%2fetc%2fpasswd", "/%00",
    ],
)  # fmt: skip
def test_no_path_of_a_client_reaches_the_file_system(live: Live, path: str) -> None:
    with connect(live) as line:
        line.sendall(write_head(live, path, "GET", connection="close"))
        answer = read_all(line)
    assert int(answer.split()[1]) in {400, 404}, answer[:300]
    assert b"root:" not in answer


def test_names_of_uploads_are_names_only(live: Live) -> None:
    for name in ("../../../../tmp/evil.jsonl", "/etc/passwd", "..\\..\\evil", "a\x00b", "x" * 5000):
        answer = httpx.post(
            f"{live.url}/v1/files", data={"purpose": "batch"}, files={"file": (name, b"{}\n")}, timeout=30
        )
        if answer.status_code == 200:
            shown = answer.json()["filename"]
            assert "/" not in shown
            assert "\\" not in shown
            assert len(shown) <= 255
        else:
            assert answer.status_code == 400
    folder = Path(live.services.settings.folder)
    names = [path.name for path in folder.rglob("*") if path.is_file()]
    assert names
    assert all(name.startswith("file-") for name in names), names


def test_heads_that_come_drop_by_drop_are_cut_off(live: Live, impatient: None) -> None:
    lines = [connect(live) for _ in range(20)]
    started = time.monotonic()
    for line in lines[:10]:
        line.sendall(b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\n")  # the others say nothing at all
    assert is_well(live)
    for number in range(3):
        time.sleep(0.1)
        for line in lines[:10]:
            with suppress(BrokenPipeError, ConnectionResetError):  # cut off already
                line.sendall(f"x-{number}: 1\r\n".encode())
    for line in lines:
        assert read_all(line) == b""
        line.close()
    assert time.monotonic() - started < 5


def test_bodies_that_come_drop_by_drop_are_cut_off(live: Live, impatient: None) -> None:
    for path, kind in ((GENERATE, "application/json"), ("/v1/files", "multipart/form-data; boundary=x")):
        with connect(live) as line:
            line.sendall(write_head(live, path, **{"content-type": kind}, content_length="1000"))
            line.sendall(b"{" if path == GENERATE else b"--x")
            started = time.monotonic()
            assert read_error(read_one(line)) == (408, "request_timeout")
            assert time.monotonic() - started < 5
    assert is_well(live)


def test_senders_that_go_on_after_the_answer_are_cut_off(live: Live, impatient: None) -> None:
    with connect(live) as line:
        line.sendall(write_head(live, **{"content-type": "text/plain"}, transfer_encoding="chunked"))
        assert read_error(read_one(line))[0] == 415
        assert send_until_refused(line, b"1\r\n \r\n", 8.0) < 5.0


def test_clients_that_do_not_read_are_cut_off(live: Live, impatient: None) -> None:
    body = {"prompt": "a red boat", "size": "512x512", "num_inference_steps": 1, "n": 10, "output_format": "png"}
    data = json.dumps(body).encode()
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect(("127.0.0.1", int(live.url.rpartition(":")[2])))
        line.sendall(write_head(live, content_length=str(len(data))) + data)
        # A busy machine may not have taken the connection yet, and has none then either.
        wait_for(lambda: bool(live.server.server_state.connections), 30)
        wait_for(lambda: not live.server.server_state.connections, 60)
        line.settimeout(5)
        assert len(read_all(line)) < 3_000_000


def test_half_closed_and_broken_connections_leave_nothing_behind(live: Live) -> None:
    data = b'{"prompt": "a red boat", "size": "64x64", "num_inference_steps": 2}'
    for how in ("half", "reset", "in the head", "in the body"):
        for _ in range(10):
            line = connect(live)
            head = write_head(live, content_length=str(len(data)))
            line.sendall({"in the head": head[:40], "in the body": head + data[:10]}.get(how, head + data))
            if how == "half":
                line.shutdown(socket.SHUT_WR)
                read_all(line)
            elif how == "reset":
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            line.close()
    wait_for(lambda: not live.server.server_state.connections and not live.services.engine.unfinished, 30)
    assert len(live.services.engine.room) == 0
    assert is_well(live)


def make_bomb(side: int) -> bytes:
    """A PNG of a few kilobytes that would fill memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1_000_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def make_text_bomb() -> bytes:
    """A PNG whose text unpacks to 50 MB."""
    sink = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(sink, "png")
    data = b"comment\0\0" + zlib.compress(b"a" * 50_000_000, 9)
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    plain = sink.getvalue()
    return plain[:33] + chunk + plain[33:]


@pytest.mark.parametrize(
    "data",
    [make_bomb(20_000), make_bomb(60_000), make_text_bomb(), b"", b"GIF89a" + b"\0" * 100, b"<svg/>", b"%!PS-Adobe",
     b"RIFF\xff\xff\xff\xffWEBPVP8X" + b"\xff" * 50, b"\x89PNG\r\n\x1a\n" + b"\0" * 50],
    ids=["bomb", "huge bomb", "text bomb", "nothing", "gif", "svg", "postscript", "webp", "png"],
)  # fmt: skip
def test_pictures_that_are_bombs_are_refused_before_they_are_decoded(
    live: Live, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(data) < MOST_BYTES
    form = {"prompt": "a red boat", "size": "64x64", "num_inference_steps": "1"}
    answer = httpx.post(f"{live.url}/v1/images/edits", data=form, files={"image": ("a.png", data)}, timeout=30)
    assert answer.status_code in {400, 413}, answer.text
    assert answer.json()["error"]["param"] == "image"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kibibytes


def test_urls_of_pictures_are_fetched_from_nowhere_by_default(live: Live) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    for url in ("http://127.0.0.1:1/a.png", "file:///etc/passwd", "https://example.org/a.png", "ftp://x", "x"):
        fields = {"prompt": "a red boat", "image": url}
        parts = [
            f'--x\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}' for name, value in fields.items()
        ]
        body = "\r\n".join([*parts, "--x--", ""])
        answer = httpx.post(f"{live.url}/v1/images/edits", content=body, headers=headers, timeout=30)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "url_not_allowed")


def test_one_connection_too_many_is_not_let_in(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for(lambda: not live.server.server_state.connections, 30)
    monkeypatch.setattr(guarded_protocol, "MOST_CONNECTIONS", 5)
    lines = [connect(live) for _ in range(8)]
    wait_for(lambda: len(live.server.server_state.connections) == 5, 10)
    for line in lines[5:]:
        assert read_all(line) == b""
    for line in lines:
        line.close()
    wait_for(lambda: not live.server.server_state.connections, 10)
    assert is_well(live)
