"""Reading from S3 when connections break in the middle of a body, which botocore does not retry."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dgate_core.storage.s3_client import retry_while, s3_client
from dgate_core.storage.s3_errors import BODY_ERRORS, BodyCutError, s3_errors

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from botocore.response import StreamingBody

LEAST_AHEAD_BYTES, MOST_AHEAD_BYTES = 256 << 10, 8 << 20


@dataclass(frozen=True, slots=True)
class S3Version:
    """One version of one object."""

    bucket: str
    """Name of the bucket."""
    key: str
    """The whole key, with the storage's prefix."""
    size: int
    """Length in bytes."""
    etag: str
    """The server's mark of this content; reading stops with an error when the object is replaced meanwhile."""


def fetch_object(bucket: str, key: str) -> bytes:
    """Return a whole object, read again when the connection breaks."""

    def fetch() -> bytes:
        return _read_body(s3_client().get_object(Bucket=bucket, Key=key)["Body"])

    return retry_while(_is_cut, fetch)


def fetch_range(version: S3Version, start: int, stop: int) -> bytes:
    """Return bytes start to stop (exclusive, start < stop <= size), read again when the connection breaks."""

    def fetch() -> bytes:
        answer = s3_client().get_object(
            Bucket=version.bucket, Key=version.key, Range=f"bytes={start}-{stop - 1}", IfMatch=version.etag
        )
        return _read_body(answer["Body"])

    return retry_while(_is_cut, fetch)


class S3RangeReader(io.RawIOBase):
    """A seekable stream over one version of an object, read by ranged GETs.

    It keeps one block ahead of the reader: small after a jump, as in a Parquet file, and doubled while reading goes
    straight on. The block is here and not in a BufferedReader because that one passes the 8 KiB reads
    of a text wrapper straight through.
    """

    def __init__(self, version: S3Version) -> None:
        self._version = version
        self._position = 0
        self._block_start, self._block = 0, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._version.size}[whence] + offset
        if position < 0:
            raise ValueError(f"cannot seek to {position}, which is before the start")
        self._position = position
        return position

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        data = self._read_some(len(view))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        """Return the rest with one request; the inherited method would ask for 8 KiB at a time."""
        data = self._fetch(max(self._version.size - self._position, 0))
        self._position += len(data)
        return data

    def _read_some(self, count: int) -> memoryview:
        """Return up to count bytes from here on: from the block, or from the server when the block has none of them."""
        if not 0 <= self._position - self._block_start < len(self._block):
            straight_on = self._block and self._position == self._block_start + len(self._block)
            ahead = min(2 * len(self._block), MOST_AHEAD_BYTES) if straight_on else LEAST_AHEAD_BYTES
            self._block_start, self._block = self._position, self._fetch(max(count, ahead))
        offset = self._position - self._block_start
        return memoryview(self._block)[offset : offset + count]

    def _fetch(self, count: int) -> bytes:
        stop = min(self._position + count, self._version.size)
        if stop <= self._position:
            return b""
        with s3_errors(f"s3://{self._version.bucket}/{self._version.key}"):
            return fetch_range(self._version, self._position, stop)


def _read_body(body: StreamingBody) -> bytes:
    try:
        return body.read()
    except BODY_ERRORS as error:
        raise BodyCutError from error


def _is_cut(error: Exception) -> bool:
    return isinstance(error, BodyCutError)
