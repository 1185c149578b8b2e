"""S3 when it is busy, slow, cuts connections, refuses, or is not there."""

from __future__ import annotations

import io
import multiprocessing
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dgate_core.errors import StorageError
from dgate_core.storage import Storage, open_storage, s3_client
from tests.chaos_proxy import ChaosPlan, ChaosProxy
from tests.s3_server import BUCKET, SECRET_KEY, S3Server, find_free_ports

MIB = 1 << 20
StartChaos = Callable[[ChaosPlan], ChaosProxy]
ROUGH = ChaosPlan(seed=7, busy=0.08, delay=0.1, cut_upload=0.08, cut_answer=0.08, cut_download=0.12)


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits shorter between attempts, for tests in which every attempt fails."""
    monkeypatch.setattr(s3_client, "FIRST_DELAY_SECONDS", 0.005)


def list_open_uploads(uri: str) -> list[str]:
    prefix = uri.removeprefix(f"s3://{BUCKET}/")
    answer = boto3.session.Session().client("s3").list_multipart_uploads(Bucket=BUCKET, Prefix=prefix)
    return [upload["Key"] for upload in answer.get("Uploads", [])]


class TestRoughNetwork:
    def test_two_hundred_small_objects(self, s3_uri: str, chaos: StartChaos) -> None:
        proxy = chaos(ROUGH)
        storage = open_storage(s3_uri)
        content = {f"images/{number:03d}.png": Random(number).randbytes(3_000) for number in range(200)}
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda key: storage.write_bytes(key, content[key]), content))
            assert dict(zip(content, pool.map(storage.read_bytes, content), strict=True)) == content
        assert [info.key for info in storage.list_objects()] == sorted(content)
        assert min(proxy.counts[fate] for fate in ("busy", "delay", "cut_upload", "cut_answer", "cut_download")) >= 5

    @pytest.mark.parametrize("same_bytes", [False, True])
    def test_create_tells_the_truth(self, s3_uri: str, chaos: StartChaos, same_bytes: bool) -> None:
        proxy = chaos(ChaosPlan(seed=3, busy=0.05, cut_upload=0.05, cut_answer=0.3))
        storage = open_storage(s3_uri)

        def claim(number: int) -> bool:
            return storage.create_bytes(f"claims/{number // 2}", b"same" if same_bytes else b"lane %d" % (number % 2))

        with ThreadPoolExecutor(16) as pool:
            made = list(pool.map(claim, range(32)))
        assert [made[n] + made[n + 1] for n in range(0, 32, 2)] == [1] * 16
        if not same_bytes:
            winners = [b"lane 0" if made[n] else b"lane 1" for n in range(0, 32, 2)]
            assert [storage.read_bytes(f"claims/{n}") for n in range(16)] == winners
        assert proxy.counts["cut_answer"] >= 8

    def test_large_file_is_seen_whole_or_not_at_all(self, s3_uri: str, chaos: StartChaos, tmp_path: Path) -> None:
        direct = boto3.session.Session().client("s3")
        proxy = chaos(ChaosPlan(seed=5, busy=0.15, delay=0.2, cut_upload=0.2, cut_answer=0.1, cut_download=0.25))
        storage, key = open_storage(s3_uri), s3_uri.removeprefix(f"s3://{BUCKET}/")
        content = Random(1).randbytes(24 * MIB)
        (tmp_path / "up").write_bytes(content)
        done = threading.Event()
        seen: set[int] = set()

        def watch() -> None:
            while not done.wait(0.01):
                listed = direct.list_objects_v2(Bucket=BUCKET, Prefix=key).get("Contents", [])
                seen.update(entry["Size"] for entry in listed)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            storage.upload_file(tmp_path / "up", "model.safetensors")
            storage.download_file("model.safetensors", tmp_path / "down")
        finally:
            done.set()
            watcher.join()
        assert seen == {len(content)}
        assert (tmp_path / "down").read_bytes() == content
        with storage.open_read("model.safetensors") as file:
            assert file.read() == content
        assert proxy.faults >= 5

    def test_upload_that_cannot_be_done_leaves_nothing(
        self, s3_uri: str, chaos: StartChaos, tmp_path: Path, quick_retries: None
    ) -> None:
        proxy = chaos(ChaosPlan(seed=1, cut_upload=1.0))
        (tmp_path / "up").write_bytes(bytes(24 * MIB))
        with pytest.raises(StorageError, match="connection broke off again and again"):
            open_storage(s3_uri).upload_file(tmp_path / "up", "model.safetensors")
        with pytest.raises(StorageError, match="connection broke off again and again"):
            open_storage(s3_uri).write_bytes("small", bytes(100_000))
        proxy.plan = ChaosPlan()
        assert list(open_storage(s3_uri).list_objects()) == []
        assert list_open_uploads(s3_uri) == []

    def test_download_that_cannot_be_done_leaves_nothing(
        self, s3_uri: str, chaos: StartChaos, tmp_path: Path, quick_retries: None
    ) -> None:
        open_storage(s3_uri).write_bytes("a", bytes(100_000))
        chaos(ChaosPlan(seed=1, cut_download=1.0))
        storage = open_storage(s3_uri)
        with pytest.raises(StorageError, match="connection broke off again and again"):
            storage.download_file("a", tmp_path / "down")
        with pytest.raises(StorageError, match="connection broke off again and again"):
            storage.read_bytes("a")
        with storage.open_read("a") as file, pytest.raises(StorageError, match="connection broke off"):
            file.read()
        assert list(tmp_path.iterdir()) == []

    def test_busy_server_is_named(self, s3_uri: str, chaos: StartChaos, quick_retries: None) -> None:
        proxy = chaos(ChaosPlan(busy=1.0))
        with pytest.raises(StorageError, match="overloaded"):
            open_storage(s3_uri).write_bytes("a", b"1")
        assert proxy.counts["busy"] == s3_client.ATTEMPTS

    def test_server_that_restarts_is_waited_for(self, s3_uri: str, chaos: StartChaos) -> None:
        proxy = chaos(ChaosPlan())
        storage = open_storage(s3_uri)
        storage.write_bytes("before", b"1")
        proxy.plan = ChaosPlan(cut_upload=1.0)
        threading.Timer(0.8, lambda: setattr(proxy, "plan", ChaosPlan())).start()
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda number: storage.write_bytes(f"during/{number:02d}", b"22"), range(48)))
        assert len(list(storage.list_objects("during/"))) == 48


class TestReading:
    def test_one_column_of_parquet_costs_few_requests(self, s3_uri: str, chaos: StartChaos, tmp_path: Path) -> None:
        proxy = chaos(ChaosPlan())
        storage = open_storage(s3_uri)
        blobs = [Random(number).randbytes(12_000) for number in range(1_000)]
        pq.write_table(pa.table({"id": range(1_000), "blob": blobs}), tmp_path / "x.parquet", row_group_size=100)
        storage.upload_file(tmp_path / "x.parquet", "x.parquet")
        proxy.counts.clear()
        with storage.open_read("x.parquet") as file:
            assert pq.ParquetFile(file).read(["id"])["id"].to_pylist() == list(range(1_000))
        assert proxy.counts.total() <= 13, "a HEAD, the footer, and one GET for each row group"
        proxy.counts.clear()
        with storage.open_read("x.parquet") as file:
            assert sum(len(batch) for batch in pq.ParquetFile(file).iter_batches()) == 1_000
        assert proxy.counts.total() <= 30

    def test_lines_of_text_cost_few_requests(self, s3_uri: str, chaos: StartChaos) -> None:
        proxy = chaos(ChaosPlan())
        storage = open_storage(s3_uri)
        storage.write_bytes("prompts.jsonl", b'{"prompt": "a red boat on the sea"}\n' * 200_000)
        proxy.counts.clear()
        with storage.open_read("prompts.jsonl") as file, io.TextIOWrapper(file, encoding="utf-8") as text:
            assert sum(1 for _ in text) == 200_000
        assert proxy.counts.total() <= 7

    def test_object_replaced_meanwhile_is_noticed(self, s3_uri: str) -> None:
        storage = open_storage(s3_uri)
        storage.write_bytes("a", b"a" * 6 * MIB)
        with storage.open_read("a") as file:
            assert file.read(1) == b"a"
            storage.write_bytes("a", b"b" * 6 * MIB)
            file.seek(5 * MIB)
            with pytest.raises(StorageError, match="replaced while it was read"):
                file.read()

    def test_pictures_and_pages_carry_their_type(self, s3_uri: str) -> None:
        open_storage(s3_uri).write_bytes("report/index.html", b"<html>")
        prefix = s3_uri.removeprefix(f"s3://{BUCKET}/")
        head = boto3.session.Session().client("s3").head_object(Bucket=BUCKET, Key=f"{prefix}/report/index.html")
        assert head["ContentType"] == "text/html"


class TestRefusals:
    def test_wrong_secret(self, s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-and-secret")
        self.assert_all_refuse(open_storage(s3_uri), r"secret key is wrong|credentials are wrong", "wrong-and-secret")

    def test_unknown_access_key(self, s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stranger")
        self.assert_all_refuse(open_storage(s3_uri), r"not known to the server|credentials are wrong")

    def test_missing_bucket(self, s3_uri: str) -> None:
        self.assert_all_refuse(open_storage("s3://no-such-bucket/runs"), "no-such-bucket.*there is no such bucket")

    def test_no_credentials(self, s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        self.assert_all_refuse(open_storage(s3_uri), "no usable credentials")

    def test_unknown_profile(self, s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_PROFILE", "nobody")
        self.assert_all_refuse(open_storage(s3_uri), "nobody")

    def test_unreachable_server(self, s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
        (port,) = find_free_ports(1)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://user:{SECRET_KEY}@127.0.0.1:{port}")
        began = time.monotonic()
        self.assert_all_refuse(open_storage(s3_uri), f"no connection to http://127.0.0.1:{port}")
        assert time.monotonic() - began < 10

    def test_nonsense_endpoint(self, s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "not a url")
        self.assert_all_refuse(open_storage(s3_uri), "endpoint is not a URL")

    def assert_all_refuse(self, storage: Storage, words: str, secret: str = SECRET_KEY) -> None:
        for use in (
            lambda: storage.write_bytes("a", b"1"),
            lambda: storage.create_bytes("a", b"1"),
            lambda: storage.read_bytes("a"),
            lambda: storage.exists("a"),
            lambda: storage.open_read("a"),
            lambda: list(storage.list_objects()),
            lambda: storage.delete_many(["a"]),
        ):
            with pytest.raises(StorageError, match=words) as caught:
                use()
            assert secret not in f"{caught.value} {caught.value.__cause__!r}"


class TestClient:
    def test_one_client_for_all_threads(self, s3_uri: str) -> None:
        with ThreadPoolExecutor(16) as pool:
            assert len({id(client) for client in pool.map(lambda _: s3_client.s3_client(), range(64))}) == 1

    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_other_processes_use_their_own(self, s3_uri: str, method: str) -> None:
        storage = open_storage(s3_uri)
        storage.write_bytes("parent", b"1")
        context: Any = multiprocessing.get_context(method)
        children = [context.Process(target=storage.write_bytes, args=(f"child/{n}", b"1")) for n in range(2)]
        for child in children:
            child.start()
        for _ in range(20):
            assert storage.read_bytes("parent") == b"1"
        for child in children:
            child.join(60)
        assert [info.key for info in storage.list_objects()] == ["child/0", "child/1", "parent"]

    def test_leftover_uploads_are_removed(self, s3_uri: str, s3_server: S3Server) -> None:
        prefix = s3_uri.removeprefix(f"s3://{BUCKET}/")
        client = boto3.session.Session().client("s3", endpoint_url=s3_server.endpoint)
        client.create_multipart_upload(Bucket=BUCKET, Key=f"{prefix}/half")
        client.create_multipart_upload(Bucket=BUCKET, Key=f"{prefix}-other/half")
        storage = open_storage(s3_uri)
        assert storage.remove_leftovers() == 0
        assert storage.remove_leftovers(older_than_seconds=0) == 1
        assert (list_open_uploads(s3_uri), list(storage.list_objects())) == ([f"{prefix}-other/half"], [])
