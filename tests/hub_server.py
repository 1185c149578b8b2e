"""A model hub on loopback: as much of its protocol as the client asks for, over a folder of repositories."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "c" * 40


@dataclass
class Hub:
    """Repositories by name; `refusals` gives the status and error code of those that nobody may read."""

    repositories: dict[str, Path]
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    wrong_sums: bool = False
    endpoint: str = ""


@contextmanager
def run_hub(hub: Hub) -> Iterator[Hub]:
    """Serves until the block ends."""

    class Handler(_Handler):
        served = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    served: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path).path.strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        parts = parts[2:] if is_api else parts
        name, rest = "/".join(parts[:2]), parts[2:]
        if name in self.served.refusals or name not in self.served.repositories:
            status, code = self.served.refusals.get(name, (404, "RepoNotFound"))
            self._answer(status, b"refused", {"X-Error-Code": code, "X-Error-Message": "refused"})
        elif is_api:
            self._answer(200, json.dumps(self._describe(name, rest)).encode(), {"Content-Type": "application/json"})
        else:
            self._send_file(self.served.repositories[name] / "/".join(rest[2:]))

    def _describe(self, name: str, rest: list[str]) -> object:
        folder = self.served.repositories[name]
        files = [self._describe_file(folder, file) for file in sorted(folder.rglob("*")) if file.is_file()]
        if rest[:1] == ["tree"]:
            return [{"type": "file", "path": each["rfilename"], **each} for each in files]
        return {"id": name, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "siblings": files}

    def _describe_file(self, folder: Path, file: Path) -> dict[str, object]:
        about: dict[str, object] = {"rfilename": file.relative_to(folder).as_posix(), "size": file.stat().st_size}
        about["oid"] = about["blobId"] = hashlib.sha1(file.read_bytes()).hexdigest()
        if file.suffix == ".safetensors":
            sha256 = "0" * 64 if self.served.wrong_sums else hashlib.sha256(file.read_bytes()).hexdigest()
            about["lfs"] = {"sha256": sha256, "oid": sha256, "size": about["size"], "pointerSize": 130}
        return about

    def _send_file(self, file: Path) -> None:
        data = file.read_bytes()
        is_large = file.suffix == ".safetensors"
        etag = (hashlib.sha256 if is_large else hashlib.sha1)(data).hexdigest()
        self._answer(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "X-Linked-Size": str(len(data))})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the tests' output quiet."""
