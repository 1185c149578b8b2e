"""A folder that is full, read-only or in the way, and writers that are killed."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import pytest

from dgate_core.errors import StorageError
from dgate_core.storage import open_storage
from dgate_core.storage.files import place_file

ROOT = Path(__file__).resolve().parents[2]
MountTmpfs = Callable[[str], Path]


@pytest.fixture
def mount_tmpfs(tmp_path: Path) -> Iterator[MountTmpfs]:
    """Mounts a small file system of its own with the given options."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "dgate-test", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"mounting needs rights that are not there: {done.stderr.strip()}")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_keeps_what_was_there(mount_tmpfs: MountTmpfs, tmp_path: Path) -> None:
    folder = mount_tmpfs("size=1m")
    storage = open_storage(folder)
    storage.write_bytes("kept", b"old")
    (tmp_path / "big").write_bytes(bytes(2 << 20))
    for write in (
        lambda: storage.write_bytes("kept", bytes(2 << 20)),
        lambda: storage.create_bytes("new", bytes(2 << 20)),
        lambda: storage.upload_file(tmp_path / "big", "kept"),
    ):
        with pytest.raises(StorageError, match=r"(?s)the disk is full.*free space.*free some space"):
            write()
    assert storage.read_bytes("kept") == b"old"
    assert [path.name for path in folder.iterdir()] == ["kept"]


def test_file_over_the_limit_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(StorageError, match="larger than this system allows"):
            open_storage(tmp_path).write_bytes("a", bytes(2 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_read_only_folder(mount_tmpfs: MountTmpfs) -> None:
    storage = open_storage(mount_tmpfs("ro,size=1m"))
    for write in (lambda: storage.write_bytes("b", b"1"), lambda: storage.create_bytes("b", b"1")):
        with pytest.raises(StorageError, match=r"(?s)/b: the file system is read-only.*choose another folder"):
            write()
    assert list(storage.list_objects()) == []


def test_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    storage = open_storage(tmp_path / "file" / "run")
    with pytest.raises(StorageError, match="a file stands where a folder should be"):
        storage.write_bytes("a", b"1")
    with pytest.raises(StorageError, match="a file stands where a folder should be"):
        open_storage(tmp_path).create_bytes("file/a", b"1")
    with pytest.raises(StorageError, match="is a file"):
        list(open_storage(tmp_path / "file").list_objects())
    assert not storage.exists("a")
    storage.delete("a")


def test_folder_where_a_file_should_be(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    storage.write_bytes("folder/a", b"1")
    with pytest.raises(StorageError, match="a folder stands where a file should be"):
        storage.write_bytes("folder", b"1")
    with pytest.raises(StorageError, match="a folder stands where a file should be"):
        storage.create_bytes("folder", b"1")
    with pytest.raises(StorageError, match="the name is too long"):
        storage.write_bytes("x" * 300, b"1")
    assert [info.key for info in storage.list_objects()] == ["folder/a"]


def test_no_permission() -> None:
    """Root may write anywhere, so a child of root becomes nobody first."""

    def write_as_nobody(folder: Path) -> None:
        if os.getuid() == 0:
            os.setuid(65534)
        try:
            open_storage(folder).write_bytes("a", b"1")
        except StorageError as error:
            os._exit(42 if "permission denied" in str(error) else 1)

    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        process = multiprocessing.get_context("fork").Process(target=write_as_nobody, args=(Path(folder),))
        process.start()
        process.join()
        assert process.exitcode == 42
        assert list(Path(folder).iterdir()) == []


def test_killed_writer_leaves_nothing_visible(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    storage.write_bytes("shards/0/rows.parquet", b"old")

    def write_half() -> None:
        def fill(file: BinaryIO) -> None:
            file.write(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

        place_file(tmp_path / "shards/0/rows.parquet", fill)

    process = multiprocessing.get_context("fork").Process(target=write_half)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert storage.read_bytes("shards/0/rows.parquet") == b"old"
    assert [info.key for info in storage.list_objects()] == ["shards/0/rows.parquet"]
    assert len(list((tmp_path / "shards/0").iterdir())) == 2
    assert storage.remove_leftovers(older_than_seconds=3600) == 0
    assert storage.remove_leftovers("shards/0", older_than_seconds=0) == 1
    assert [path.name for path in (tmp_path / "shards/0").iterdir()] == ["rows.parquet"]


def test_files_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        open_storage(tmp_path).write_bytes("a", b"1")
        open_storage(tmp_path).create_bytes("b", b"1")
    finally:
        os.umask(old)
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in "ab"} == {0o640}


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "prompts.csv").write_text("prompt\na boat\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifests").symlink_to(tmp_path / "data")
    (tmp_path / "run" / "broken").symlink_to(tmp_path / "nowhere")
    assert [info.key for info in open_storage(tmp_path / "run").list_objects()] == ["manifests/prompts.csv"]


def test_storage_imports_no_heavy_package() -> None:
    code = (
        "import dgate_core.storage, sys; print({'boto3', 'botocore', 'pyarrow', 'torch', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"


def test_sync_while_others_delete(tmp_path: Path) -> None:
    """A lane that was given up syncs its shard while the one that took over gives its claim back."""
    storage, done = open_storage(tmp_path), threading.Event()

    def write_and_delete() -> None:
        keys = [f"shards/0/_claim-{number:04d}" for number in range(40)]
        while not done.is_set():
            for key in keys:
                storage.write_bytes(key, b"x", durable=False)
            storage.delete_many(keys)

    thread = threading.Thread(target=write_and_delete)
    thread.start()
    try:
        for _ in range(40):
            storage.sync("shards/0/")
    finally:
        done.set()
        thread.join()
    storage.write_bytes("shards/0/_COMMIT", b"x")
    storage.sync("shards/0/")
    assert [item.key for item in storage.list_objects("shards/")] == ["shards/0/_COMMIT"]
