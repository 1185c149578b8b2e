"""A real S3 server for tests: SeaweedFS on loopback, started once a session and always stopped."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.chaos_proxy import ChaosPlan, ChaosProxy

ACCESS_KEY, SECRET_KEY = "postcard-access", "postcard-secret-never-printed"
BUCKET = "postcards"
START_SECONDS = 60.0
_PARTS = ("master", "volume", "filer", "s3")
# Has the kernel kill the server when the tests are killed: prctl(PR_SET_PDEATHSIG, SIGKILL), then the command.
_DEATH_PACT = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"
_DIE_WITH_PARENT = [sys.executable, "-c", _DEATH_PACT] if sys.platform == "linux" else []


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running server with one empty bucket."""

    port: int
    """Where it listens on 127.0.0.1."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """Return the variables that lead boto3 here (or to a proxy in front) and to nothing else."""
        return {
            "AWS_ENDPOINT_URL_S3": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The server; no variable is set yet."""
    folder = tmp_path_factory.mktemp("seaweedfs")
    with run_s3_server(folder) as server:
        yield server
    shutil.rmtree(folder)


@pytest.fixture
def s3_uri(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty place of this test's own, `s3://postcards/<random>`, with the variables set."""
    _point_boto3_to(monkeypatch, s3_server.environment())
    return f"s3://{BUCKET}/{token_hex(6)}"


@pytest.fixture
def chaos(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[ChaosPlan], ChaosProxy]]:
    """Starts a proxy in front of the server, and leads boto3 to it from then on."""
    with ExitStack() as stack:

        def start(plan: ChaosPlan) -> ChaosProxy:
            proxy = stack.enter_context(ChaosProxy(s3_server.port, plan))
            _point_boto3_to(monkeypatch, s3_server.environment(proxy.endpoint))
            return proxy

        yield start


@contextmanager
def run_s3_server(folder: Path) -> Iterator[S3Server]:
    """Run a server whose files lie in folder; another try with other ports when one was taken meanwhile."""
    for last_try in (False, False, True):
        ports = find_free_ports(2 * len(_PARTS))
        with _run_weed(folder, ports) as process:
            server = S3Server(ports[2 * len(_PARTS) - 2])
            if _await_bucket(server, process):
                yield server
                return
        if last_try:
            raise RuntimeError(f"SeaweedFS does not start:\n{(folder / 'log').read_text()[-4000:]}")


def find_free_ports(count: int) -> list[int]:
    """Return loopback ports that nothing listens on right now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


@contextmanager
def _run_weed(folder: Path, ports: list[int]) -> Iterator[subprocess.Popen[bytes]]:
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir(exist_ok=True)
    command = [str(Path(sysconfig.get_path("scripts"), "weed")), "server", f"-dir={folder}/data"]
    command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.config={folder}/s3.json"]
    command += [
        "-s3.autoCreateBucket=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.localSocket={folder}/s3.sock",
        "-master.telemetry=false",
    ]
    command += ["-volume.max=20", "-master.volumeSizeLimitMB=64", f"-filer.localSocket={folder}/filer.sock"]
    for part, port, grpc_port in zip(_PARTS, ports[::2], ports[1::2], strict=True):
        command += [f"-{part}.port={port}", f"-{part}.port.grpc={grpc_port}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*_DIE_WITH_PARENT, *command], stdout=log, stderr=log, cwd=folder)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for part, grpc_port in zip(_PARTS, ports[1::2], strict=True):
            Path(f"/tmp/seaweedfs-{part}-grpc-{grpc_port}.sock").unlink(missing_ok=True)


def _await_bucket(server: S3Server, process: subprocess.Popen[bytes]) -> bool:
    """Make the bucket and store an object, as soon as the server can; False if the process ended before."""
    config = Config(retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=5)
    client = boto3.session.Session(ACCESS_KEY, SECRET_KEY, region_name="us-east-1").client(
        "s3", endpoint_url=server.endpoint, config=config
    )
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"yes")
            client.delete_object(Bucket=BUCKET, Key="ready")
            return True
        except client.exceptions.BucketAlreadyOwnedByYou:
            client.delete_bucket(Bucket=BUCKET)
        except (BotoCoreError, ClientError):
            time.sleep(0.1)
    return False


def _point_boto3_to(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
