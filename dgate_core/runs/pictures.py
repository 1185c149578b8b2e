"""A run's pictures by the path in its results: loose files, members of a tar, rows of a Parquet file."""

from __future__ import annotations

import tarfile
from collections import OrderedDict
from threading import Lock
from typing import BinaryIO, Protocol, cast

import pyarrow as pa
import pyarrow.parquet as pq

from dgate_core.errors import ObjectNotFoundError, StorageError
from dgate_core.storage import Storage

OPEN_CONTAINERS = 4


def read_picture(run: Storage, path: str) -> bytes:
    """The bytes of one picture; `path` is a key, `KEY.tar#member` or `KEY.parquet#row`.

    Raises:
        ObjectNotFoundError: The run holds no such file, member or row.
    """
    return PictureReader(run).read(path)


class PictureReader:
    """Reads many pictures of one run from any thread; containers stay open, the last few used."""

    def __init__(self, run: Storage) -> None:
        self._run = run
        self._containers: OrderedDict[str, Container] = OrderedDict()
        self._lock = Lock()

    def read(self, path: str) -> bytes:
        """The bytes of one picture, see `read_picture`."""
        key, _, inner = path.partition("#")
        if not inner:
            return self._run.read_bytes(key)
        with self._lock:
            return self._open(key).read(inner)

    def _open(self, key: str) -> Container:
        if key not in self._containers:
            self._containers[key] = open_container(self._run, key)
        self._containers.move_to_end(key)
        while len(self._containers) > OPEN_CONTAINERS:
            self._containers.popitem(last=False)
        return self._containers[key]


class Container(Protocol):
    """One file that holds many pictures."""

    def read(self, inner: str) -> bytes:
        """The bytes of one picture inside."""
        ...


class TarContainer:
    """Pictures in an uncompressed tar, found once by their names."""

    def __init__(self, key: str, stream: BinaryIO) -> None:
        self._key, self._stream = key, stream
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            self._members = {member.name: (member.offset_data, member.size) for member in archive}

    def read(self, inner: str) -> bytes:
        """The bytes of the member of that name."""
        if inner not in self._members:
            raise ObjectNotFoundError(f"{self._key} has no member {inner!r}", "a picture named in the results")
        offset, size = self._members[inner]
        self._stream.seek(offset)
        return self._stream.read(size)


class ParquetContainer:
    """Pictures in the first column of bytes of a Parquet file; the last row group read stays in memory."""

    def __init__(self, key: str, stream: BinaryIO) -> None:
        self._key, self._file = key, pq.ParquetFile(stream)
        columns = [path for entry in self._file.schema_arrow for path in _find_bytes(entry)]
        if not columns:
            names = self._file.schema_arrow.names
            raise StorageError(f"{key} has the columns {names}", "a binary column with the pictures")
        self._column = columns[0]
        self._first_row, self._pictures = 0, self._read_group(0)

    def read(self, inner: str) -> bytes:
        """The bytes in the row of that number, counted from 0."""
        row = int(inner) if inner.isdigit() else -1
        if not 0 <= row < self._file.metadata.num_rows:
            raise ObjectNotFoundError(f"{self._key} has no row {inner}", "a picture named in the results")
        if not self._first_row <= row < self._first_row + len(self._pictures):
            self._seek(row)
        return cast(bytes, self._pictures[row - self._first_row].as_py() or b"")

    def _seek(self, row: int) -> None:
        first_row = 0
        for group in range(self._file.metadata.num_row_groups):
            rows = self._file.metadata.row_group(group).num_rows
            if row < first_row + rows:
                self._first_row, self._pictures = first_row, self._read_group(group)
                return
            first_row += rows

    def _read_group(self, group: int) -> pa.ChunkedArray:
        if group >= self._file.metadata.num_row_groups:
            return pa.chunked_array([], pa.binary())
        return self._file.read_row_group(group, columns=[self._column]).flatten()[self._column]


def _find_bytes(entry: pa.Field) -> list[str]:
    """Paths of a column that hold bytes: itself, or the `bytes` of Hugging Face's image struct."""
    if pa.types.is_struct(entry.type):
        return [f"{entry.name}.{inner.name}" for inner in entry.type.fields if inner.name == "bytes"]
    return [entry.name] if pa.types.is_binary(entry.type) or pa.types.is_large_binary(entry.type) else []


def open_container(run: Storage, key: str) -> Container:
    """Open a tar or Parquet file of pictures by the end of its key."""
    stream = run.open_read(key)
    return ParquetContainer(key, stream) if key.endswith(".parquet") else TarContainer(key, stream)
