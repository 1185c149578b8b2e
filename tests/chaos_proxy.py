"""A proxy in front of an HTTP server that is busy, slow or breaks connections on a seeded schedule."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

_BUSY_ANSWER = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class ChaosPlan:
    """How often what goes wrong; each share is a probability, and together they are at most 1."""

    seed: int = 0
    """Start of the schedule: the n-th request of a kind meets the same fate in every run."""
    busy: float = 0.0
    """Share of requests answered 503 without reaching the server."""
    delay: float = 0.0
    """Share of requests held back for delay_seconds."""
    cut_upload: float = 0.0
    """Share of requests with a body that break off after half of it."""
    cut_answer: float = 0.0
    """Share of requests that the server carries out, but whose answer is lost."""
    cut_download: float = 0.0
    """Share of answers with a body that break off after half of it."""
    delay_seconds: float = 0.05
    """How long a held back request waits."""

    def draw(self, generator: random.Random, method: str, has_body: bool) -> str:
        """Return the fate of the next request: pass, or the name of one of the shares."""
        download = method == "GET"
        fates = {
            "busy": self.busy,
            "delay": self.delay,
            "cut_upload": self.cut_upload * has_body,
            "cut_answer": self.cut_answer * (not download),
            "cut_download": self.cut_download * download,
        }
        weights = [*fates.values(), 1.0 - sum(fates.values())]
        return generator.choices([*fates, "pass"], weights)[0]


class ChaosProxy:
    """Listens on a free loopback port while it is entered; `counts` says what it did to how many requests."""

    def __init__(self, server_port: int, plan: ChaosPlan) -> None:
        self.server_port, self.plan = server_port, plan
        self.counts: Counter[str] = Counter()
        self._generators = {method: random.Random(f"{plan.seed} {method}") for method in _METHODS}
        self._lock = threading.Lock()
        self._front = _Front(("127.0.0.1", 0), _Handler)
        self._front.proxy = self

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._front.server_address[1]}"

    @property
    def faults(self) -> int:
        """How many requests were not simply passed on."""
        return self.counts.total() - self.counts["pass"]

    def next_fate(self, method: str, has_body: bool) -> str:
        """Draw and count what happens to the request that has just come in."""
        with self._lock:
            fate = self.plan.draw(self._generators[method], method, has_body)
            self.counts[fate] += 1
        return fate

    def __enter__(self) -> ChaosProxy:
        threading.Thread(target=self._front.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._front.shutdown()
        self._front.server_close()


_METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE")


class _Front(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    proxy: ChaosProxy

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that hang up on us, as we do on them."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Front

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fate = self.server.proxy.next_fate(self.command, bool(body))
        if fate == "delay":
            time.sleep(self.server.proxy.plan.delay_seconds)
        if fate == "busy":
            self._answer(503, {"Content-Type": "application/xml"}, _BUSY_ANSWER)
        elif fate == "cut_upload":
            self._send_half(body)
            self._cut()
        else:
            self._pass_on(body, fate)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815

    def _pass_on(self, body: bytes, fate: str) -> None:
        upstream = self._connect(body)
        try:
            upstream.send(body)
            response = upstream.getresponse()
            content = response.read()
        finally:
            upstream.close()
        if fate == "cut_answer":
            self._cut()
            return
        hidden = _HOP_HEADERS - {"content-length"} if self.command == "HEAD" else _HOP_HEADERS
        headers = {name: value for name, value in response.getheaders() if name.lower() not in hidden}
        self._answer(response.status, headers, content, cut=fate == "cut_download")

    def _connect(self, body: bytes) -> http.client.HTTPConnection:
        """Open a request to the server with the client's own headers, which it has signed."""
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.proxy.server_port, timeout=30)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _HOP_HEADERS:
                upstream.putheader(name, value)
        upstream.putheader("Content-Length", str(len(body)))
        upstream.endheaders()
        return upstream

    def _send_half(self, body: bytes) -> None:
        """Leave the server with half a body and a broken connection."""
        upstream = self._connect(body)
        upstream.send(body[: len(body) // 2])
        upstream.close()

    def _answer(self, status: int, headers: dict[str, str], content: bytes, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self._cut()

    def _cut(self) -> None:
        """Hang up with a reset, as a crashed machine or a firewall does."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, *_: object) -> None:
        """Keep the test's output quiet."""


_HOP_HEADERS = frozenset({"connection", "content-length", "transfer-encoding", "expect", "keep-alive"})
