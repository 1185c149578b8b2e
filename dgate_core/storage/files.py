"""Local files that appear whole or not at all, and what the operating system's refusals mean."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

from dgate_core.errors import StorageError
from dgate_core.storage.keys import DRAFT_PREFIX

_ROOM = ("free space", "free some space or choose another folder, then give the same command again")
_WRITABLE = ("a folder that can be written", "choose another folder, or have its permissions changed")
_REASONS: dict[int, tuple[str, str, str]] = {
    errno.ENOSPC: ("the disk is full", *_ROOM),
    errno.EDQUOT: ("the disk quota is used up", *_ROOM),
    errno.EFBIG: ("the file is larger than this system allows", "a higher limit (ulimit -f)", _ROOM[1]),
    errno.EROFS: ("the file system is read-only", *_WRITABLE),
    errno.EACCES: ("permission denied", *_WRITABLE),
    errno.EPERM: ("the operation is not permitted", *_WRITABLE),
    errno.ENOENT: ("there is no such file", "an existing file", "check the path"),
    errno.ENOTDIR: ("a file stands where a folder should be", "a folder", "choose another path"),
    errno.EEXIST: ("a file stands where a folder should be", "a folder", "choose another path"),
    errno.EISDIR: ("a folder stands where a file should be", "a file", "choose another path"),
    errno.ENAMETOOLONG: ("the name is too long", "names of at most 255 bytes", "shorten the name"),
    errno.EMFILE: ("too many files are open", "a higher limit (ulimit -n)", "raise the limit"),
}
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


def os_error_to_storage_error(error: OSError, path: Path) -> StorageError:
    """Say in words what the operating system refused."""
    named = Path(error.filename) if isinstance(error.filename, str) else path
    where = path if named.name.startswith(DRAFT_PREFIX) else named
    unknown = (os.strerror(error.errno) if error.errno else str(error), "a disk that answers", "check the disk")
    got, expected, next_step = _REASONS.get(error.errno or 0, unknown)
    return StorageError(f"{where}: {got}", expected, next_step)


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a StorageError that names path."""
    try:
        yield
    except OSError as error:
        raise os_error_to_storage_error(error, path) from error


def place_file(
    path: Path, fill: Callable[[BinaryIO], object], *, durable: bool = True, exclusive: bool = False
) -> bool:
    """Have a file written beside path and put it in place in one step.

    Args:
        path: Where the file goes; missing folders are made.
        fill: Writes the content to the stream that it is given.
        durable: Wait until the file and its name would survive a power cut.
        exclusive: Leave a file that is there alone, and return False; exactly one of several callers gets True.
    """
    draft = path.with_name(f"{DRAFT_PREFIX}{token_hex(8)}")
    with os_errors(path):
        try:
            with _create_file(draft) as file:
                fill(file)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            placed = _link_file(draft, path) if exclusive else _replace_file(draft, path)
        finally:
            draft.unlink(missing_ok=True)
        if durable and placed:
            sync_path(path.parent)
    return placed


def sync_path(path: Path) -> None:
    """Wait until a file's content, or a folder's names, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create_file(path: Path) -> BinaryIO:
    try:
        return path.open("xb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")


def _replace_file(draft: Path, path: Path) -> bool:
    draft.replace(path)
    return True


def _link_file(draft: Path, path: Path) -> bool:
    try:
        os.link(draft, path)
    except FileExistsError as error:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path)) from error
        # Over NFS a repeated request may find the link that its first try made: the count of links knows.
        return draft.stat().st_nlink == 2
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        raise StorageError(
            f"{path.parent}: this file system has no hard links, so a file cannot be created exactly once",
            "a POSIX file system or s3://",
            "choose another folder; for a mounted bucket give its s3:// address",
        ) from error
    return True
