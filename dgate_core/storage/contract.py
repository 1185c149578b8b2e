"""What every storage promises, whether it is a folder or a bucket."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One stored object, as a listing shows it."""

    key: str
    """Where it is, relative to the storage that listed it."""
    size: int
    """Length in bytes."""
    modified: float
    """When it was last written, POSIX seconds."""


class Storage(Protocol):
    """Objects under one root; keys are relative posix paths such as `shards/00012/rows.parquet`.

    An object is seen whole or not at all, also when the writer is killed. Every method raises StorageError with what to
    do next when the storage refuses, is full or does not answer, and when a key is not valid.
    Instances are plain values: equal, picklable, and safe to share between threads and processes.
    """

    @property
    def uri(self) -> str:
        """The root: an absolute path, or `s3://bucket/prefix`."""

    def read_bytes(self, key: str) -> bytes:
        """Return the whole object; raises ObjectNotFoundError."""

    def write_bytes(self, key: str, data: bytes, *, durable: bool = True) -> None:
        """Write or replace an object; with durable=False it may be lost in a power cut until `sync` is called."""

    def create_bytes(self, key: str, data: bytes) -> bool:
        """Write the object if there is none; True if this call made it, False if it was there. Always durable."""

    def delete(self, key: str) -> None:
        """Delete an object; one that is not there is fine."""

    def delete_many(self, keys: Iterable[str]) -> None:
        """Delete objects in as few requests as possible; those that are not there are fine."""

    def exists(self, key: str) -> bool:
        """Say whether there is an object under this key."""

    def info(self, key: str) -> ObjectInfo | None:
        """Return size and time of an object, or None if there is none."""

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield every object whose key starts with prefix (which may end inside a name), sorted by key."""

    def open_read(self, key: str) -> BinaryIO:
        """Open an object as a seekable, buffered stream; raises ObjectNotFoundError."""

    def upload_file(self, path: Path, key: str, *, durable: bool = True) -> None:
        """Store a local file, whole or not at all, without holding it in memory."""

    def download_file(self, key: str, path: Path) -> None:
        """Write an object to a local file, whole or not at all; raises ObjectNotFoundError."""

    def sync(self, prefix: str = "") -> None:
        """Return when everything under prefix, a folder, would survive a power cut."""

    def remove_leftovers(self, prefix: str = "", older_than_seconds: float = 86_400.0) -> int:
        """Remove what killed writers left under prefix, a folder (never listed, but it takes room); return how many."""

    def child(self, prefix: str) -> Storage:
        """Return the storage rooted at prefix inside this one."""

    def uri_of(self, key: str) -> str:
        """Return the full address of a key."""

    def local_path(self, key: str) -> Path | None:
        """Return the path of a key in a local folder, None where there is no such path."""
