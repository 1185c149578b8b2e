"""Storage in a folder of this machine."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dgate_core.errors import ObjectNotFoundError, StorageError
from dgate_core.storage.contract import ObjectInfo
from dgate_core.storage.files import os_errors, place_file, sync_path
from dgate_core.storage.keys import DRAFT_PREFIX, check_key, check_prefix

_ABSENT = (FileNotFoundError, NotADirectoryError)
_COPY_BYTES = 1 << 20
_SYNC_THREADS = 16


@dataclass(frozen=True, slots=True)
class LocalStorage:
    """A folder; it is made with the first write, and a folder on the way to a key is no object."""

    root: Path
    """Absolute path of the folder."""

    @property
    def uri(self) -> str:
        return str(self.root)

    def read_bytes(self, key: str) -> bytes:
        with self.open_read(key) as file, os_errors(self.local_path(key)):
            return file.read()

    def write_bytes(self, key: str, data: bytes, *, durable: bool = True) -> None:
        place_file(self.local_path(key), lambda file: file.write(data), durable=durable)

    def create_bytes(self, key: str, data: bytes) -> bool:
        # Looking first spares the usual loser of a race the writing.
        if self.exists(key):
            return False
        return place_file(self.local_path(key), lambda file: file.write(data), exclusive=True)

    def delete(self, key: str) -> None:
        path = self.local_path(key)
        with os_errors(path):
            try:
                path.unlink()
            except _ABSENT:
                return

    def delete_many(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.delete(key)

    def exists(self, key: str) -> bool:
        return self.info(key) is not None

    def info(self, key: str) -> ObjectInfo | None:
        path = self.local_path(key)
        with os_errors(path):
            try:
                status = path.stat()
            except _ABSENT:
                return None
        return ObjectInfo(key, status.st_size, status.st_mtime) if stat.S_ISREG(status.st_mode) else None

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        folder, slash, start = check_prefix(prefix).rpartition("/")
        with os_errors(self.root):
            for entry, key in _walk_folder(self.root / folder, folder + slash, start):
                if not entry.name.startswith(DRAFT_PREFIX):
                    yield from _entry_to_info(entry, key)

    def open_read(self, key: str) -> BinaryIO:
        path = self.local_path(key)
        with os_errors(path):
            try:
                return path.open("rb")
            except (*_ABSENT, IsADirectoryError) as error:
                raise ObjectNotFoundError(f"there is no file {path}", "an existing file", "check the path") from error

    def upload_file(self, path: Path, key: str, *, durable: bool = True) -> None:
        with os_errors(path), path.open("rb") as source:
            place_file(
                self.local_path(key), lambda file: shutil.copyfileobj(source, file, _COPY_BYTES), durable=durable
            )

    def download_file(self, key: str, path: Path) -> None:
        with self.open_read(key) as source:
            place_file(path, lambda file: shutil.copyfileobj(source, file, _COPY_BYTES), durable=False)

    def sync(self, prefix: str = "") -> None:
        folder = check_prefix(prefix).removesuffix("/")
        files = [self.root / info.key for info in self.list_objects(f"{folder}/" if folder else "")]
        # Many at once, for a journal commits those that wait together in one go.
        with os_errors(self.root / folder), ThreadPoolExecutor(_SYNC_THREADS) as pool:
            list(pool.map(_sync_if_present, [*files, *{file.parent for file in files}]))

    def remove_leftovers(self, prefix: str = "", older_than_seconds: float = 86_400.0) -> int:
        folder = check_prefix(prefix).removesuffix("/")
        latest, removed = time.time() - older_than_seconds, 0
        with os_errors(self.root):
            for entry, _ in _walk_folder(self.root / folder, "", ""):
                if entry.name.startswith(DRAFT_PREFIX) and entry.stat().st_mtime <= latest:
                    Path(entry.path).unlink(missing_ok=True)
                    removed += 1
        return removed

    def child(self, prefix: str) -> LocalStorage:
        return LocalStorage(self.local_path(prefix.removesuffix("/")))

    def uri_of(self, key: str) -> str:
        return str(self.local_path(key))

    def local_path(self, key: str) -> Path:
        return self.root / check_key(key)


def _sync_if_present(path: Path) -> None:
    """Another process may delete a file between the listing and this."""
    with suppress(FileNotFoundError):
        sync_path(path)


def _walk_folder(folder: Path, base: str, start: str) -> Iterator[tuple[os.DirEntry[str], str]]:
    """Yield (entry, key) of every file below folder in the order of keys; its own names must begin with start."""
    try:
        with os.scandir(folder) as entries:
            # A folder sorts as "name/", for that is how its keys go on.
            named = sorted((f"{e.name}/" if e.is_dir() else e.name, e) for e in entries if e.name.startswith(start))
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        if base:
            return
        raise StorageError(f"{folder} is a file", "a folder", "give the folder that holds it") from error
    for name, entry in named:
        if name.endswith("/"):
            yield from _walk_folder(Path(entry.path), base + name, "")
        else:
            yield entry, base + name


def _entry_to_info(entry: os.DirEntry[str], key: str) -> Iterator[ObjectInfo]:
    """Yield the object of a directory entry, or nothing if it is no file or has gone meanwhile."""
    try:
        status = entry.stat()
    except FileNotFoundError:
        return
    if stat.S_ISREG(status.st_mode):
        yield ObjectInfo(key, status.st_size, status.st_mtime)
