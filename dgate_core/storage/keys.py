"""Keys: relative posix paths that mean the same in a folder and in a bucket."""

from __future__ import annotations

import re

from dgate_core.errors import StorageError

DRAFT_PREFIX = ".dgate-draft-"
"""Start of the name of a file that is still being written; never listed and never a key."""

_NAME = rf"(?!\.{{1,2}}(?:/|$))(?!{re.escape(DRAFT_PREFIX)})[^/\\\x00-\x1f\x7f\ud800-\udfff]+"
_KEY = re.compile(rf"{_NAME}(?:/{_NAME})*")


def check_key(key: str) -> str:
    """Return the key unchanged; raises StorageError if it is absolute, empty, climbs out or cannot be stored."""
    if _KEY.fullmatch(key) is None:
        raise StorageError(
            f"the key {key!r} is not valid",
            "a relative path with '/' between names, such as 'shards/00012/rows.parquet', without '.', '..', "
            "empty names, backslashes or control characters",
            "rename the file, or give the folder to open as an address of its own",
        )
    return key


def check_prefix(prefix: str) -> str:
    """Return the start of a key unchanged; it may be empty, end with '/', or end inside a name."""
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix


def join_keys(prefix: str, key: str) -> str:
    """Return key under prefix, which may be empty."""
    return f"{prefix}/{key}" if prefix else key
