"""A whole run on S3 through a network that fails: manifest, plan, claims, pictures and results."""

from __future__ import annotations

import hashlib
import io
import json
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
from PIL import Image

from dgate_core.storage import open_storage
from tests.chaos_proxy import ChaosPlan, ChaosProxy
from tests.run_lab import Driver, Order, check_run_is_whole, list_prompts, read_batches, wait_for
from tests.s3_server import BUCKET, SECRET_KEY, S3Server

StartChaos = Callable[[ChaosPlan], ChaosProxy]
ROWS, BATCH = 360, 1
ROUGH = ChaosPlan(seed=11, busy=0.02, delay=0.03, cut_upload=0.02, cut_answer=0.02, cut_download=0.03)


class Watcher:
    """Looks at the bucket while the run is going, past the failing network."""

    def __init__(self, server: S3Server, prefix: str) -> None:
        self._client = boto3.session.Session().client("s3", endpoint_url=server.endpoint)
        self._prefix = prefix
        self._draw = random.Random(3)
        self._stop = threading.Event()
        self.keys: set[str] = set()
        self.looked = 0
        self.broken: list[str] = []

    @contextmanager
    def watch(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=self._prefix)
            keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
            self.keys |= set(keys)
            pictures = [key for key in keys if "/images/" in key]
            for key in self._draw.sample(pictures, min(5, len(pictures))):
                self._look_at(key)

    def _look_at(self, key: str) -> None:
        """A picture's name ends with the beginning of its hash."""
        try:
            data = self._client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        except self._client.exceptions.NoSuchKey:
            return  # of a batch that was made twice; swept by the commit
        self.looked += 1
        Image.open(io.BytesIO(data)).load()
        if not key.endswith(f"-{hashlib.sha256(data).hexdigest()[:8]}.png"):
            self.broken.append(key)


def test_a_whole_run_through_a_failing_network(
    checkpoint: str, s3_server: S3Server, s3_uri: str, chaos: StartChaos, tmp_path: Path
) -> None:
    manifest = "".join(json.dumps(row) + "\n" for row in list_prompts(ROWS, width=16, height=16))
    open_storage(s3_uri).write_bytes("in/m.jsonl", manifest.encode())
    watcher = Watcher(s3_server, f"{s3_uri.removeprefix(f's3://{BUCKET}/')}/run/")
    proxy = chaos(ROUGH)
    settings = {"model": checkpoint, "precision": "float32", "lanes": 3, "rows_per_shard": 30, "batch_size": BATCH}
    environment, log = s3_server.environment(proxy.endpoint), tmp_path / "log"
    order = Order(f"{s3_uri}/run", f"{s3_uri}/in/m.jsonl", settings, environment=environment, batch_log=str(log))
    began = time.monotonic()
    with watcher.watch():
        driver = Driver(order)
        wait_for(lambda: len(read_batches(log, "made")) > 30)
        killed = driver.list_lanes()[1]
        killed.send_signal(signal.SIGKILL)
        answer = driver.wait(240)
    assert not answer.error, answer.message
    assert not watcher.broken
    assert watcher.looked > 20
    storage = open_storage(f"{s3_uri}/run")
    rows = check_run_is_whole(storage, {"ok": ROWS})
    assert {row["lane"] for row in rows} == {"lane-0", "lane-1", "lane-2"}
    keys = watcher.keys | {item.key for item in storage.list_objects()}
    redone = sum(map(len, read_batches(log, "made"))) - ROWS
    print(
        f"\n{len(keys):,} keys, {proxy.counts.total():,} requests with {proxy.faults} faults in"
        f" {time.monotonic() - began:.1f} s, {redone} rows redone; {watcher.looked} pictures looked at meanwhile"
    )
    assert len(keys) > 1000
    assert proxy.faults > 100


@pytest.mark.parametrize(
    ("place", "secret", "said"),
    [("postcards/x", "wrong", "secret key is wrong"), ("no-such-bucket/x", SECRET_KEY, "there is no such bucket")],
)
def test_wrong_secret_and_missing_bucket(
    checkpoint: str, s3_server: S3Server, tmp_path: Path, place: str, secret: str, said: str
) -> None:
    (tmp_path / "m.jsonl").write_text(json.dumps({"prompt": "a boat"}) + "\n")
    environment = {**s3_server.environment(), "AWS_SECRET_ACCESS_KEY": secret}
    settings = {"model": checkpoint, "precision": "float32", "lanes": 2}
    answer = Driver(Order(f"s3://{place}", str(tmp_path / "m.jsonl"), settings, environment=environment)).wait()
    assert answer.error == "storage"
    assert said in answer.message
    assert SECRET_KEY not in answer.message
