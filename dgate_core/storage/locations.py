"""Addresses: from a path, `file://` or `s3://` to the storage behind it."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from dgate_core.errors import StorageError
from dgate_core.storage.contract import Storage
from dgate_core.storage.keys import check_key
from dgate_core.storage.local import LocalStorage

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/+)(.*)", re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_EXPECTED = "a path, file:///folder or s3://bucket/prefix"


def open_storage(uri: str | Path) -> Storage:
    """Open the folder or bucket at a path, `file://` or `s3://bucket/prefix`; nothing is read or made yet."""
    scheme, place = _split_scheme(uri)
    if scheme == "file":
        return LocalStorage(Path(place))
    # S3 pulls in boto3 only for those who use it.
    from dgate_core.storage.s3 import S3Storage

    bucket, _, prefix = place.partition("/")
    return S3Storage(bucket, prefix)


def open_object(uri: str | Path) -> tuple[Storage, str]:
    """Open the storage that holds one object; returns it and the object's key, which need not exist."""
    root, key = split_uri(uri)
    return open_storage(root), key


def split_uri(uri: str | Path) -> tuple[str, str]:
    """Split an object's address into its folder and its name: s3://bucket/x/y.csv -> s3://bucket/x, y.csv."""
    scheme, place = _split_scheme(uri)
    folder, _, name = place.rpartition("/")
    if not name or (scheme == "s3" and not folder) or str(uri).endswith("/"):
        raise StorageError(f"{str(uri)!r} does not name a file", f"{_EXPECTED} that ends with a file's name")
    return (f"s3://{folder}" if scheme == "s3" else folder or "/"), name


def _split_scheme(uri: str | Path) -> tuple[str, str]:
    """Return ("file", absolute path) or ("s3", bucket/prefix), both without a slash at the end."""
    text = str(uri)
    match = _SCHEME.fullmatch(text)
    if match is None:
        if not text:
            raise StorageError("the address is empty", _EXPECTED)
        return "file", _absolute(text)
    scheme, slashes, place = match.group(1).lower(), match.group(2), match.group(3)
    if scheme not in ("file", "s3"):
        raise StorageError(f"{text!r} has the scheme {scheme!r}, which is not known", _EXPECTED)
    if scheme == "s3":
        return "s3", _check_bucket_path(text, slashes, place)
    host, _, path = ("", "", place) if len(slashes) != 2 else place.partition("/")
    if host not in ("", "localhost"):
        raise StorageError(f"{text!r} names another machine", _EXPECTED)
    return "file", _absolute("/" + unquote(path))


def _absolute(path: str) -> str:
    if "\0" in path:
        raise StorageError(f"the path {path!r} holds a zero byte", _EXPECTED)
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError as error:
        raise StorageError(f"{path!r} begins with the home of nobody on this machine", _EXPECTED) from error


def _check_bucket_path(uri: str, slashes: str, place: str) -> str:
    bucket, _, prefix = place.rstrip("/").partition("/")
    # One slash is what pathlib makes of an address: Path("s3://bucket") is s3:/bucket.
    if slashes != "//" or _BUCKET.fullmatch(bucket) is None:
        raise StorageError(f"{uri!r} does not name a bucket", "s3://bucket/prefix", "give the address as a string")
    if prefix:
        check_key(prefix)
    return place.rstrip("/")
