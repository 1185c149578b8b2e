"""Fetches a model from a mirror: in pieces, many at once, to be gone on with, and seen whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Final

from dgate_core.errors import ModelError, StorageError
from dgate_core.models.mirror import FILES_FOLDER, locate_pulled, open_model, read_manifest, read_pulled
from dgate_core.models.model_manifest import MANIFEST_NAME, FileSum, ModelManifest, manifest_to_bytes
from dgate_core.storage import Storage
from dgate_core.storage.files import os_errors, place_file

PIECE_BYTES: Final = 32 << 20
_JOURNAL: Final = ".pieces"
Tell = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class PullOptions:
    """How a mirror is read."""

    workers: int = 8
    """Pieces under way at once."""
    piece_bytes: int = PIECE_BYTES
    """Of a file, fetched by one request; a pull that was killed loses no more than those under way."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull brought."""

    path: Path
    """Folder or single file, whole."""
    manifest: ModelManifest
    """Its files."""
    fetched_bytes: int
    """Read from the mirror by this call."""
    kept_bytes: int
    """Of a pull that was cut off before."""


def pull_from_mirror(mirror: str, name: str, options: PullOptions, tell: Tell) -> Pulled:
    """Fetches a model into the cache; what a killed pull had fetched is kept, and nothing is seen until all is there.

    Args:
        mirror: `s3://bucket/models`, or a folder.
        name: Of the model in it.
        options: Pieces and workers.
        tell: Takes progress lines.

    Raises:
        ModelError: no such model, no manifest, or a file with another sha256.
        StorageError: no room on the disk, or the mirror does not answer.
    """
    storage = open_model(mirror, name)
    manifest = read_manifest(storage)
    folder = locate_pulled(name)
    with _hold(folder):
        present = read_pulled(name)
        if present is not None and present[1] == manifest:
            return Pulled(*present, fetched_bytes=0, kept_bytes=manifest.size)
        draft = folder.with_name(f".{name}.partial")
        fetch = _Fetch(storage, manifest, draft, options)
        kept = fetch.count_kept()
        _check_room(draft, manifest.size - kept)
        told = f", {kept / 1e6:.1f} MB are here already" if kept else ""
        tell(f"{name}: {len(manifest.files)} files, {manifest.size / 1e6:.1f} MB from {storage.uri}{told}")
        fetch.run()
        _put_in_place(draft, folder, manifest)
    return Pulled(folder / FILES_FOLDER / manifest.entry, manifest, manifest.size - kept, kept)


class _Fetch:
    """Pieces of files into a draft folder; a journal says which are there.

    Args:
        storage: Of the model in the mirror.
        manifest: What to fetch.
        draft: The folder, perhaps with pieces of a pull that was killed.
        options: Pieces and workers.
    """

    def __init__(self, storage: Storage, manifest: ModelManifest, draft: Path, options: PullOptions) -> None:
        self._storage, self._manifest, self._draft, self._options = storage, manifest, draft, options
        self._lock = threading.Lock()
        self._files, journal = draft / FILES_FOLDER, draft / _JOURNAL
        told = set(journal.read_text().splitlines()) if journal.is_file() else set()
        there = [file for file in manifest.files if self._is_allocated(file)]
        self._done = {
            name for file in there for start, _ in self._cut(file) if (name := self._name(file, start)) in told
        }

    def count_kept(self) -> int:
        """Bytes that need not be fetched."""
        return sum(size for file in self._manifest.files for start, size in self._cut(file) if self._has(file, start))

    def run(self) -> None:
        """Fetches what is missing, then checks every file."""
        with os_errors(self._draft):
            for file in self._manifest.files:
                self._allocate(file)
            missing = [(file, *piece) for file in self._manifest.files for piece in self._cut(file)]
            missing = [piece for piece in missing if not self._has(piece[0], piece[1])]
            with ThreadPoolExecutor(self._options.workers) as pool:
                try:
                    list(pool.map(lambda piece: self._fetch(*piece), missing))
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
                list(pool.map(self._check, self._manifest.files))

    def _cut(self, file: FileSum) -> Iterator[tuple[int, int]]:
        """(start, size) of the file's pieces."""
        step = self._options.piece_bytes
        for start in range(0, file.size, step):
            yield start, min(step, file.size - start)

    def _has(self, file: FileSum, start: int) -> bool:
        return self._name(file, start) in self._done

    def _name(self, file: FileSum, start: int) -> str:
        """By content too, so that pieces of a file that has changed since do not count."""
        return f"{file.sha256} {self._options.piece_bytes} {start} {file.path}"

    def _allocate(self, file: FileSum) -> None:
        path = self._files / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if not self._is_allocated(file):
            with path.open("wb") as stream:
                stream.truncate(file.size)

    def _is_allocated(self, file: FileSum) -> bool:
        path = self._files / file.path
        return path.is_file() and path.stat().st_size == file.size

    def _fetch(self, file: FileSum, start: int, size: int) -> None:
        with self._storage.open_read(file.path) as source:
            source.seek(start)
            data = source.read(size)
        if len(data) != size:
            raise ModelError(
                f"{self._storage.uri_of(file.path)} is shorter than the manifest says",
                f"{file.size} bytes",
                "have the model imported into the mirror again",
            )
        with (self._files / file.path).open("r+b") as target:
            target.seek(start)
            target.write(data)
        with self._lock, (self._draft / _JOURNAL).open("a") as journal:
            journal.write(self._name(file, start) + "\n")

    def _check(self, file: FileSum) -> None:
        path = self._files / file.path
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != file.sha256:
            path.unlink()
            raise ModelError(
                f"{self._storage.uri_of(file.path)} has sha256 {found[:16]}…",
                f"sha256 {file.sha256[:16]}… as its manifest says",
                "give the same command again; when it fails again, have the model imported into the mirror anew",
            )


def _check_room(draft: Path, missing: int) -> None:
    near = next(folder for folder in draft.parents if folder.exists())
    free = shutil.disk_usage(near).free
    if missing > free:
        raise StorageError(
            f"{near} has {free / 1e9:.2f} GB free",
            f"{missing / 1e9:.2f} GB for the model",
            "free some space, or set DGATE_CACHE to a folder on another disk",
        )


def _put_in_place(draft: Path, folder: Path, manifest: ModelManifest) -> None:
    """One rename shows the whole model; one that was there before goes away."""
    with os_errors(folder):
        wanted = {draft / FILES_FOLDER / file.path for file in manifest.files}
        for stale in [path for path in (draft / FILES_FOLDER).rglob("*") if path.is_file() and path not in wanted]:
            stale.unlink()
        place_file(draft / MANIFEST_NAME, lambda file: file.write(manifest_to_bytes(manifest)))
        former = folder.with_name(f".{folder.name}.{token_hex(4)}")
        if folder.exists():
            folder.replace(former)
        draft.replace(folder)
        (folder / _JOURNAL).unlink(missing_ok=True)
        shutil.rmtree(former, ignore_errors=True)


@contextmanager
def _hold(folder: Path) -> Iterator[None]:
    """One pull of a model at a time on this machine; the lock dies with its process."""
    path = folder.with_name(f".{folder.name}.lock")
    with os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
