"""Urls in requests: only from the list, never to the inside, whatever the name, the address or a redirect says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dgate_core.api.errors import ApiError
from dgate_core.api.fetching import FetchRules, check_url, fetch_picture, is_public

DATA = b"\x89PNG and so on"


@dataclass
class Store:
    """A server of pictures on loopback, with what it was asked for."""

    port: int
    asked: list[tuple[str, str]] = field(default_factory=list)

    def rules(self, **other: object) -> FetchRules:
        own = {"hosts": ("pictures.example",), "ports": (self.port,), "schemes": ("http",), "inside": True, **other}
        return FetchRules(**own)  # type: ignore[arg-type]


@pytest.fixture
def store() -> Iterator[Store]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append((self.headers["host"], self.path))
            if self.path.startswith("/to/"):
                self.send_response(302)
                self.send_header("location", self.path.removeprefix("/to/").replace("PORT", str(found.port)))
                self.end_headers()
            elif self.path == "/none":
                self.send_error(404)
            else:
                self.send_response(200)
                self.end_headers()
                self._send_body()

        def _send_body(self) -> None:
            if self.path == "/slow":
                with suppress(OSError):  # the other side has given up, as it should
                    for _ in range(100):
                        self.wfile.write(b"x")
                        time.sleep(0.05)
            else:
                self.wfile.write(b"x" * 5000 if self.path == "/large" else DATA)

        def log_message(self, *arguments: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Store(server.server_address[1])
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()


def to_addresses(*answers: list[str]) -> Callable[[str, int], list[str]]:
    """A resolver with one answer after the other."""
    left = iter(answers)
    return lambda _host, _port: next(left)


def to_loopback(host: str, port: int) -> list[str]:
    return ["127.0.0.1"]


def test_connection_goes_to_the_address_that_was_checked(store: Store) -> None:
    url = f"http://pictures.example:{store.port}/a.png?b=c"
    assert fetch_picture(url, store.rules(), to_loopback) == DATA
    assert store.asked == [(f"pictures.example:{store.port}", "/a.png?b=c")]


def test_name_that_leads_inside_is_refused_without_a_connection(store: Store) -> None:
    url = f"http://pictures.example:{store.port}/a.png"
    for addresses in (["127.0.0.1"], ["93.184.216.34", "10.0.0.1"], ["::1"], ["169.254.169.254"], ["::ffff:127.0.0.1"]):
        with pytest.raises(ApiError) as caught:
            fetch_picture(url, store.rules(inside=False), to_addresses(addresses))
        assert (caught.value.status, caught.value.api_code) == (400, "url_not_allowed")
    with pytest.raises(ApiError, match="fetches nothing from there"):
        fetch_picture("http://localhost/", FetchRules(("localhost",), (80,), ("http",)))
    assert store.asked == []


def test_redirects_begin_all_over_again(store: Store) -> None:
    base, rules = f"http://pictures.example:{store.port}", store.rules()
    assert fetch_picture(f"{base}/to/http://pictures.example:PORT/a.png", rules, to_loopback) == DATA
    assert fetch_picture(f"{base}/to//a.png", rules, to_loopback) == DATA
    for target in (
        "http://127.0.0.1:PORT/a.png",
        "http://elsewhere.example/",
        "file:///etc/passwd",
        "https://pictures.example:PORT/",
    ):
        with pytest.raises(ApiError) as caught:
            fetch_picture(f"{base}/to/{target}", rules, to_loopback)
        assert caught.value.api_code == "url_not_allowed", target
    with pytest.raises(ApiError, match="redirects"):
        fetch_picture(f"{base}/to/to/to/to/to/a.png", rules, to_loopback)

    # A name that resolves to another address the second time: each hop is checked by itself.
    with pytest.raises(ApiError):
        fetch_picture(f"{base}/to//a.png", store.rules(seconds=0.5), to_addresses(["127.0.0.1"], ["10.0.0.1"]))


def test_size_and_time_are_limited(store: Store) -> None:
    base = f"http://pictures.example:{store.port}"
    with pytest.raises(ApiError) as caught:
        fetch_picture(f"{base}/large", store.rules(most_bytes=4999), to_loopback)
    assert caught.value.status == 413
    assert len(fetch_picture(f"{base}/large", store.rules(most_bytes=5000), to_loopback)) == 5000
    started = time.monotonic()
    for path in ("/slow", "/none"):
        with pytest.raises(ApiError) as caught:
            fetch_picture(f"{base}{path}", store.rules(seconds=0.4), to_loopback)
        assert caught.value.api_code == "fetch_failed"
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    "url",
    [
        "http://a.example/", "https://b.example/", "https://a.example:444/", "https://user@a.example/", "//a.example/",
        "https://a.example@evil.example/", "https://a.example.evil.example/", "https://evil.example/a.example",
        "https://a.example\\@evil.example/", "https://a.example:99999/", "https://[::1/", "javascript:1", "",
        "a" * 3000,
        "https://sub.a.example/", "https://c.example/", "https://evilc.example/", "https://a.example/\r\nx: y",
        "https://①②⑦.⓪.⓪.①/", "https://2130706433/", "gopher://a.example/", "https://a.example /",
    ],
)  # fmt: skip
def test_urls_that_are_not_in_the_list(url: str) -> None:
    with pytest.raises(ApiError) as caught:
        check_url(url, FetchRules(("a.example", "*.c.example")))
    assert (caught.value.status, caught.value.api_code, caught.value.param) == (400, "url_not_allowed", "image")


def test_urls_that_are() -> None:
    for url in (
        "https://a.example/x.png",
        "https://A.EXAMPLE:443/x",
        "https://deep.below.c.example/",
        "https://a.example./",
    ):
        assert check_url(url, FetchRules(("a.example", "*.c.example"))).scheme == "https"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.216.34", True), ("2606:2800:220:1:248:1893:25c8:1946", True), ("127.0.0.1", False), ("0.0.0.0", False),
        ("10.1.2.3", False), ("172.16.0.1", False), ("192.168.0.1", False), ("169.254.169.254", False), ("::1", False),
        ("100.64.0.1", False), ("fe80::1%eth0", False), ("fd00::1", False), ("::ffff:10.0.0.1", False),
        ("64:ff9b::7f00:1", False), ("64:ff9b::5db8:d822", True), ("2002:7f00:1::", False), ("224.0.0.1", False),
        ("255.255.255.255", False), ("::", False), ("ff02::1", False),
        ("::127.0.0.1", False), ("::ffff:0:127.0.0.1", False), ("64:ff9b:1::7f00:1", False), ("fec0::1", False),
    ],
)  # fmt: skip
def test_addresses_of_the_internet_at_large(address: str, expected: bool) -> None:
    assert is_public(address) is expected
