"""The promises of every storage, kept by a folder and by a real S3 server."""

from __future__ import annotations

import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dgate_core.errors import ObjectNotFoundError, StorageError
from dgate_core.storage import Storage, open_object, open_storage, split_uri

MIB = 1 << 20
BAD_KEYS = [
    "",
    "/etc/passwd",
    "../up",
    "a/../b",
    "a/./b",
    "a//b",
    ".",
    "..",
    "a\\b",
    "a\nb",
    "a\0b",
    ".dgate-draft-1",
]
ODD_KEYS = ["with blank/and+plus.png", "percent%20.txt", "q?a=b&c#d.txt", "ü/雪.png", "..dots", "~tilde", "a=1,b=[2]"]


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "s3":
        return open_storage(request.getfixturevalue("s3_uri"))
    return open_storage(tmp_path / "root")


class TestContract:
    def test_object_lives_from_write_to_delete(self, storage: Storage) -> None:
        storage.write_bytes("a/b.bin", b"first")
        storage.write_bytes("a/b.bin", b"second, longer")
        assert storage.read_bytes("a/b.bin") == b"second, longer"
        info = storage.info("a/b.bin")
        assert info is not None
        assert (info.key, info.size) == ("a/b.bin", 14)
        assert info.modified > 1_700_000_000
        assert storage.exists("a/b.bin")
        storage.delete("a/b.bin")
        storage.delete("a/b.bin")
        assert not storage.exists("a/b.bin")
        assert list(storage.list_objects()) == []

    def test_missing_object_is_named(self, storage: Storage, tmp_path: Path) -> None:
        assert storage.info("no/such") is None
        for read in (storage.read_bytes, storage.open_read, lambda key: storage.download_file(key, tmp_path / "x")):
            with pytest.raises(ObjectNotFoundError, match="no/such"):
                read("no/such")
        assert not (tmp_path / "x").exists()

    def test_folder_is_no_object(self, storage: Storage) -> None:
        storage.write_bytes("folder/file", b"1")
        assert not storage.exists("folder")
        with pytest.raises(ObjectNotFoundError):
            storage.read_bytes("folder")
        with pytest.raises(ObjectNotFoundError):
            storage.read_bytes("folder/file/deeper")
        assert list(storage.list_objects("folder/file/")) == []

    def test_empty_object(self, storage: Storage) -> None:
        assert storage.create_bytes("empty", b"")
        assert storage.read_bytes("empty") == b""
        with storage.open_read("empty") as file:
            assert file.read() == b""
        assert [info.size for info in storage.list_objects()] == [0]

    def test_odd_names_come_back(self, storage: Storage) -> None:
        for key in ODD_KEYS:
            storage.write_bytes(key, key.encode())
        assert [info.key for info in storage.list_objects()] == sorted(ODD_KEYS)
        assert [storage.read_bytes(key).decode() for key in ODD_KEYS] == ODD_KEYS

    @pytest.mark.parametrize("key", BAD_KEYS)
    def test_bad_key_is_refused(self, storage: Storage, key: str, tmp_path: Path) -> None:
        source = tmp_path / "source"
        source.write_bytes(b"1")
        for use in (
            storage.read_bytes,
            storage.exists,
            storage.delete,
            storage.open_read,
            storage.child,
            storage.uri_of,
            storage.local_path,
            lambda key: storage.write_bytes(key, b"1"),
            lambda key: storage.create_bytes(key, b"1"),
            lambda key: storage.delete_many([key]),
            lambda key: storage.upload_file(source, key),
        ):
            with pytest.raises(StorageError, match="not valid"):
                use(key)

    def test_create_happens_once(self, storage: Storage) -> None:
        assert storage.create_bytes("claims/1", b"mine")
        assert not storage.create_bytes("claims/1", b"yours")
        assert not storage.create_bytes("claims/1", b"mine")
        assert storage.read_bytes("claims/1") == b"mine"
        storage.delete("claims/1")
        assert storage.create_bytes("claims/1", b"yours")

    def test_one_of_sixteen_threads_creates(self, storage: Storage) -> None:
        barrier = Barrier(16)
        # SeaweedFS lets the losers of a race wait for a second each.
        rounds = 1 if storage.uri.startswith("s3://") else 20

        def claim(lane: int, key: str) -> bool:
            barrier.wait(30)
            return storage.create_bytes(key, b"lane %d" % lane)

        with ThreadPoolExecutor(16) as pool:
            for key in (f"claims/{number}" for number in range(rounds)):
                made = list(pool.map(claim, range(16), [key] * 16))
                assert made.count(True) == 1
                assert storage.read_bytes(key) == b"lane %d" % made.index(True)

    def test_more_than_a_thousand_keys(self, storage: Storage) -> None:
        keys = sorted([f"n/{number:05d}" for number in range(1_050)] + ["n-1", "n.txt", "n/00001-b", "m/1", "n0/x"])
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: storage.write_bytes(key, b"1", durable=False), keys))
        assert [info.key for info in storage.list_objects()] == keys
        assert [info.key for info in storage.list_objects("n/")] == [key for key in keys if key.startswith("n/")]
        assert [info.key for info in storage.list_objects("n/0000")] == [k for k in keys if k.startswith("n/0000")]
        assert [info.key for info in storage.list_objects("n")] == [key for key in keys if key.startswith("n")]
        assert [info.key for info in storage.child("n").list_objects("00001")] == ["00001", "00001-b"]
        storage.delete_many(key for key in [*keys, "n/never-there"] if key != "n.txt")
        assert [info.key for info in storage.list_objects()] == ["n.txt"]

    def test_readers_never_see_a_mixture(self, storage: Storage) -> None:
        bodies = [bytes([letter]) * (256 << 10) for letter in b"abc"]
        storage.write_bytes("hot", bodies[0])
        with ThreadPoolExecutor(4) as pool:
            writing = [pool.submit(storage.write_bytes, "hot", bodies[n % 3], durable=False) for n in range(40)]
            reading = [pool.submit(storage.read_bytes, "hot") for _ in range(40)]
            assert all(read.result() in bodies for read in reading)
            for each in writing:
                each.result()

    @pytest.mark.parametrize("size", [0, 1, 20 * MIB + 7])
    def test_files_go_up_and_come_down(self, storage: Storage, tmp_path: Path, size: int) -> None:
        content = (bytes(range(251)) * (size // 251 + 1))[:size]
        (tmp_path / "up").write_bytes(content)
        storage.upload_file(tmp_path / "up", "big/file.bin")
        storage.download_file("big/file.bin", tmp_path / "new" / "down")
        assert (tmp_path / "new" / "down").read_bytes() == content
        storage.write_bytes("big/bytes.bin", content)
        assert storage.read_bytes("big/bytes.bin") == content
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["down"]

    def test_upload_of_a_missing_file_says_so(self, storage: Storage, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match=r"nowhere\.bin: there is no such file"):
            storage.upload_file(tmp_path / "nowhere.bin", "key")
        assert not storage.exists("key")

    def test_stream_seeks_and_reads_lines(self, storage: Storage) -> None:
        content = b"".join(b"line %07d\n" % number for number in range(700_000))
        storage.write_bytes("lines.txt", content)
        with storage.open_read("lines.txt") as file:
            assert file.seekable()
            assert file.readline() == b"line 0000000\n"
            file.seek(-13, io.SEEK_END)
            assert file.read() == b"line 0699999\n"
            assert file.seek(6 * MIB) == 6 * MIB
            assert file.read(100) == content[6 * MIB : 6 * MIB + 100]
            file.seek(0)
            assert sum(1 for _ in file) == 700_000
            file.seek(len(content) + 5)
            assert file.read(10) == b""

    def test_parquet_reads_through_a_stream(self, storage: Storage, tmp_path: Path) -> None:
        table = pa.table({"id": range(50_000), "prompt": [f"a red boat {number}" for number in range(50_000)]})
        pq.write_table(table, tmp_path / "prompts.parquet", row_group_size=10_000)
        storage.upload_file(tmp_path / "prompts.parquet", "prompts.parquet")
        with storage.open_read("prompts.parquet") as file:
            assert pq.ParquetFile(file).read_row_group(3, ["prompt"])["prompt"][5].as_py() == "a red boat 30005"
        with storage.open_read("prompts.parquet") as file:
            batches = list(pq.ParquetFile(file).iter_batches(batch_size=7_000))
        assert pa.Table.from_batches(batches).equals(table)

    def test_addresses_lead_back(self, storage: Storage) -> None:
        storage.write_bytes("a/b c.txt", b"1")
        again, key = open_object(storage.uri_of("a/b c.txt"))
        assert (again.read_bytes(key), key) == (b"1", "b c.txt")
        assert again == storage.child("a") == storage.child("a/") == pickle.loads(pickle.dumps(again))
        assert open_storage(storage.uri) == open_storage(storage.uri + "/") == storage
        path = storage.local_path("a/b c.txt")
        assert (path is None) == storage.uri.startswith("s3://")
        assert path is None or path.read_bytes() == b"1"

    def test_sync_and_leftovers_of_nothing(self, storage: Storage) -> None:
        storage.write_bytes("shards/0/a.png", b"1", durable=False)
        storage.sync("shards/0")
        storage.sync()
        assert storage.remove_leftovers(older_than_seconds=0) == 0
        assert storage.exists("shards/0/a.png")


class TestAddresses:
    @pytest.mark.parametrize(
        "uri", ["http://host/x", "gs://b/x", "S4://b", "s3://", "s3:///x", "s3://b/../x", "file://host/x", "", "/a\0b"]
    )
    def test_address_that_cannot_be_opened(self, uri: str) -> None:
        with pytest.raises(StorageError, match="s3://bucket/prefix"):
            open_storage(uri)

    def test_path_that_swallowed_a_slash(self) -> None:
        with pytest.raises(StorageError, match="s3:/bucket/x"):
            open_storage(Path("s3://bucket/x"))

    def test_files_by_url_and_by_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert open_storage(f"file://{tmp_path}/a%20b") == open_storage(tmp_path / "a b") == open_storage("a b")
        assert split_uri("prompts.csv") == (str(tmp_path), "prompts.csv")
        assert split_uri("/prompts.csv") == ("/", "prompts.csv")
        assert split_uri("s3://bucket/p/q/prompts.csv") == ("s3://bucket/p/q", "prompts.csv")
        assert split_uri("s3://bucket/prompts.csv") == ("s3://bucket", "prompts.csv")

    @pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/folder/", "folder/", "/"])
    def test_address_of_no_file(self, uri: str) -> None:
        with pytest.raises(StorageError, match="does not name a file"):
            split_uri(uri)
