"""Pictures that a request names by their url: only from hosts that the operator allows, never from inside.

What is attacked here is server-side request forgery: a name that resolves to a private address, or to another one the
second time (DNS rebinding), or a redirect to it. So a name is resolved once, every address is checked, and the
connection goes to the address that was checked; a redirect begins all over again.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

from dgate_core.api.errors import ApiError

PARAM = "image"
MOST_REDIRECTS = 3
CHUNK_BYTES = 64 << 10
LONGEST_URL = 2048
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SIXTY_FOUR = ipaddress.ip_network("64:ff9b::/96")
"""NAT64: an IPv4 address in IPv6's clothes (RFC 6052)."""
_INSIDE = tuple(map(ipaddress.ip_network, ("::/96", "::ffff:0:0:0/96", "64:ff9b:1::/48", "fec0::/10")))
"""Old or local ways to write an address, which `ipaddress` takes for the internet at large: IPv4-compatible (RFC 4291),
IPv4-translated (RFC 2765), local NAT64 (RFC 8215), site-local (RFC 3879)."""

Resolve = Callable[[str, int], Sequence[str]]
"""Addresses of a host's name."""


@dataclass(frozen=True, slots=True)
class FetchRules:
    """What may be fetched."""

    hosts: tuple[str, ...] = ()
    """Names, `*.example.org` with all below it; empty allows none."""
    ports: tuple[int, ...] = (443,)
    """Of the server; others are refused."""
    schemes: tuple[str, ...] = ("https",)
    """http shows the picture, and where it comes from, to everybody on the way."""
    most_bytes: int = 32 << 20
    """Of a picture."""
    seconds: float = 15.0
    """For everything, redirects included."""
    inside: bool = False
    """Whether private addresses may be connected to: for a store of pictures in the same network."""


def resolve_host(host: str, port: int) -> list[str]:
    """All addresses of a name; raises OSError."""
    return list(dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


def fetch_picture(url: str, rules: FetchRules, resolve: Resolve = resolve_host) -> bytes:
    """The bytes behind a url, which may be of any kind: whoever opens them must expect the worst.

    Raises:
        ApiError: 400, the url is not allowed, or there is no picture; 413, it is too large.
    """
    deadline = time.monotonic() + rules.seconds
    try:
        for _ in range(MOST_REDIRECTS + 1):
            place = check_url(url, rules)
            address = choose_address(place, rules, resolve)
            found = _get(place, address, rules, deadline)
            if isinstance(found, bytes):
                return found
            url = urljoin(url, found)
    except (OSError, http.client.HTTPException) as error:
        raise _refuse("the picture could not be fetched", "fetch_failed") from error
    raise _refuse(f"more than {MOST_REDIRECTS} redirects", "fetch_failed")


def check_url(url: str, rules: FetchRules) -> SplitResult:
    """The parts of a url that may be asked; raises ApiError 400."""
    if len(url) > LONGEST_URL or any(character <= " " or character == "\\" for character in url):
        raise _refuse("not a url", "url_not_allowed")
    try:
        place = urlsplit(url)
        port = find_port(place)
    except ValueError as error:
        raise _refuse("not a url", "url_not_allowed") from error
    if place.scheme not in rules.schemes:
        raise _refuse(f"got the scheme {place.scheme[:16]!r}, expected {' or '.join(rules.schemes)}", "url_not_allowed")
    if place.username is not None or place.password is not None:
        raise _refuse("a url with a name or password in it", "url_not_allowed")
    if not is_allowed_host(place.hostname or "", rules.hosts) or port not in rules.ports:
        raise _refuse("this server fetches nothing from there", "url_not_allowed")
    return place


def is_allowed_host(host: str, allowed: Sequence[str]) -> bool:
    """Whether a name stands in the list, or below an entry `*.NAME`."""
    host = host.rstrip(".").lower()
    return any(host == each or (each.startswith("*.") and host.endswith(each[1:])) for each in allowed)


def choose_address(place: SplitResult, rules: FetchRules, resolve: Resolve) -> str:
    """The address to connect to; one private address among many refuses them all.

    Raises:
        ApiError: 400, the name leads inside or nowhere.
    """
    addresses = resolve(place.hostname or "", find_port(place))
    if not addresses:
        raise _refuse("the host has no address", "fetch_failed")
    if not rules.inside and not all(is_public(address) for address in addresses):
        # The same words as for a host that is not listed: the answer must not map the network inside.
        raise _refuse("this server fetches nothing from there", "url_not_allowed")
    return addresses[0]


def is_public(text: str) -> bool:
    """Whether an address belongs to the internet at large, also the IPv4 address inside an IPv6 one."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if address in _SIXTY_FOUR:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if any(address in network for network in _INSIDE):
            return False
    return address.is_global and not address.is_multicast


def find_port(place: SplitResult) -> int:
    """The port that a url names or its scheme implies; raises ValueError."""
    return place.port or (80 if place.scheme == "http" else 443)


def _get(place: SplitResult, address: str, rules: FetchRules, deadline: float) -> bytes | str:
    """The body, or where a redirect leads."""
    connection = http.client.HTTPConnection(place.hostname or "", find_port(place))
    target = f"{place.path or '/'}{'?' + place.query if place.query else ''}"
    headers = {"host": place.netloc, "accept": "image/*", "user-agent": "d-gate", "connection": "close"}
    with socket.create_connection((address, find_port(place)), _measure_left(deadline)) as plain:
        try:
            connection.sock = _secure(plain, place)
            with _end_at(deadline, connection.sock):
                connection.request("GET", target, headers=headers)
                response = connection.getresponse()
                if response.status in _REDIRECTS:
                    return response.getheader("location") or ""
                if response.status != http.client.OK:
                    raise _refuse(f"the other server answered {response.status}", "fetch_failed")
                return _read_body(response, rules, deadline)
        finally:
            connection.close()


def _secure(plain: socket.socket, place: SplitResult) -> socket.socket:
    """With TLS for https; the certificate is checked against the name, though the connection goes to the address."""
    if place.scheme == "http":
        return plain
    return ssl.create_default_context().wrap_socket(plain, server_hostname=place.hostname)


@contextmanager
def _end_at(deadline: float, line: socket.socket) -> Iterator[None]:
    """Breaks the line off at the deadline: the socket's own timeout begins anew with every byte of a slow server."""
    timer = threading.Timer(_measure_left(deadline), _break_off, (line,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _break_off(line: socket.socket) -> None:
    with suppress(OSError):  # it has ended meanwhile
        line.shutdown(socket.SHUT_RDWR)


def _read_body(response: http.client.HTTPResponse, rules: FetchRules, deadline: float) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := response.read1(CHUNK_BYTES):
        parts.append(part)
        size += len(part)
        if size > rules.most_bytes:
            raise ApiError(413, f"{PARAM}: larger than {rules.most_bytes:,} bytes", "file_too_large", PARAM)
    _measure_left(deadline)  # a line that was broken off looks like an end
    return b"".join(parts)


def _measure_left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time for fetching is over")
    return left


def _refuse(why: str, code: str) -> ApiError:
    return ApiError(400, f"{PARAM}: {why}", code, PARAM)
