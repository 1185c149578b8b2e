"""The files behind a manifest's addresses: which they are, in which format, and their bytes."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Literal, cast

from dgate_core.manifest.suites import SUITE_SCHEME, locate_suite
from dgate_core.runs.layout import RUN_CLAIM_PREFIX, RUN_FILE
from dgate_core.storage import Storage, open_object, open_storage

Format = Literal["parquet", "jsonl", "csv"]
_FORMATS: dict[str, Format] = {"parquet": "parquet", "pq": "parquet", "jsonl": "jsonl", "ndjson": "jsonl", "csv": "csv"}
_SUFFIX = re.compile(r"\.(?:(parquet|pq)|(?P<text>jsonl|ndjson|csv)(?P<packed>\.gz)?)$", re.IGNORECASE)
_RUN_MARK = re.compile(rf"{re.escape(RUN_FILE)}|{RUN_CLAIM_PREFIX}-\d+")
_WHOLE_BUCKET = re.compile(r"s3://[^/]+/?")
DAMAGED = (EOFError, OSError, zlib.error)
"""What reading a damaged file raises; pyarrow's own errors are ValueErrors beside these."""
_CHUNK_BYTES = 1 << 20
SUFFIXES = ".parquet, .pq, .jsonl, .ndjson, .csv, .jsonl.gz, .ndjson.gz or .csv.gz"


@dataclass(frozen=True, slots=True)
class Source:
    """One file of a manifest."""

    name: str
    """Path or address for messages."""
    storage: Storage
    """Where it lies."""
    key: str
    """Its key there."""
    format: Format
    """What its suffix says."""
    compressed: bool
    """Whether it is gzip."""


def find_sources(uris: Sequence[str]) -> tuple[list[Source], list[str]]:
    """Every file behind files, folders (sorted by key) and `suite:NAME`, and what is wrong with the addresses."""
    sources: list[Source] = []
    problems: list[str] = [] if uris else ["no manifest was given"]
    for uri in uris:
        found, trouble = _find_at(str(uri))
        sources += found
        problems += trouble
    formats = sorted({source.format for source in sources})
    if len(formats) > 1:
        first = [next(source.name for source in sources if source.format == name) for name in formats]
        problems.append(f"two formats mixed: {' and '.join(first)}; give files of one format")
    return sources, problems


def _find_at(uri: str) -> tuple[list[Source], list[str]]:
    if uri.startswith(SUITE_SCHEME):
        storage, key = open_object(locate_suite(uri))
        return [Source(uri, storage, key, "jsonl", compressed=False)], []
    if not uri.endswith("/") and not _WHOLE_BUCKET.fullmatch(uri):
        storage, key = open_object(uri)
        if storage.exists(key):
            source = _name_source(uri, storage, key)
            return ([source], []) if source else ([], [f"{uri}: the suffix is not known; expected {SUFFIXES}"])
    folder = open_storage(uri)
    keys = [item.key for item in folder.list_objects()]
    if not keys:
        return [], [f"{uri}: there is no such file or folder"]
    runs = _find_runs(keys)
    if "" in runs:
        return [], [f"{uri}: the folder holds a run; name a file of it, such as {uri.rstrip('/')}/results.parquet"]
    own = [key for key in keys if not _is_hidden(key) and not key.startswith(runs)]
    found = [_name_source(f"{uri.rstrip('/')}/{key}", folder, key) for key in own]
    sources = [source for source in found if source]
    return sources, [] if sources else [f"{uri}: the folder holds no file whose name ends with {SUFFIXES}"]


def _find_runs(keys: Sequence[str]) -> tuple[str, ...]:
    """Prefixes of the runs among the keys, planned or only begun, whose tables are no manifest of the folder around."""
    folders = [key.rpartition("/")[0::2] for key in keys]
    return tuple({f"{folder}/" if folder else "" for folder, name in folders if _RUN_MARK.fullmatch(name)})


def _is_hidden(key: str) -> bool:
    """Names that tools which write tables keep for themselves (`_SUCCESS`, `.part.crc`)."""
    return any(name.startswith((".", "_")) for name in key.split("/"))


def _name_source(name: str, storage: Storage, key: str) -> Source | None:
    match = _SUFFIX.search(key)
    if match is None:
        return None
    suffix = (match.group("text") or match.group(1)).lower()
    return Source(name, storage, key, _FORMATS[suffix], match.group("packed") is not None)


class HashingReader(io.RawIOBase):
    """Passes a stream on and hashes what passes.

    Args:
        inner: The stream.
    """

    def __init__(self, inner: BinaryIO) -> None:
        self.inner = inner
        self._hash = hashlib.sha256()

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill the buffer from the inner stream."""
        data = self.inner.read(len(buffer))
        self._hash.update(data)
        buffer[: len(data)] = data
        return len(data)

    def finish(self) -> str:
        """The sha256 of the whole stream, whatever of it was read."""
        while data := self.inner.read(_CHUNK_BYTES):
            self._hash.update(data)
        return self._hash.hexdigest()


@contextmanager
def open_hashed(source: Source) -> Iterator[HashingReader]:
    """Open a file's raw bytes under a HashingReader."""
    with source.storage.open_read(source.key) as raw:
        yield HashingReader(raw)


def unpack(source: Source, raw: io.RawIOBase | BinaryIO) -> BinaryIO:
    """A buffered stream of the file's content, gzip taken off."""
    buffered = io.BufferedReader(cast(io.RawIOBase, raw), _CHUNK_BYTES)
    if not source.compressed:
        return cast(BinaryIO, buffered)
    return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=buffered)), _CHUNK_BYTES))


@contextmanager
def open_content(source: Source) -> Iterator[BinaryIO]:
    """Open a file's content, gzip taken off."""
    with source.storage.open_read(source.key) as raw:
        yield unpack(source, raw)


def join_hashes(hashes: Sequence[str]) -> str:
    """One sha256 of several files' contents in order, whatever their names; of one file its own."""
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()
