"""Sets of pictures, wherever they are: a folder, WebDataset tars, Parquet, a run, or scenes drawn on the spot."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dgate_core.evaluation.expected import read_expected
from dgate_core.evaluation.pictures import Picture, decode_picture
from dgate_core.evaluation.postcard_suites import draw_postcards
from dgate_core.evaluation.results import EvaluationError
from dgate_core.manifest.suites import find_suite
from dgate_core.postcards import render_scene
from dgate_core.runs.layout import RESULTS_FILE, RUN_FILE
from dgate_core.runs.pictures import PictureReader
from dgate_core.storage import Storage, open_object, open_storage

SourceKind = Literal["postcards", "folder", "webdataset", "parquet", "run"]
PICTURE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
TAR_SUFFIXES: Final = (".tar", ".tar.gz", ".tgz")
_SUFFIXES: Final[Mapping[str, tuple[str, ...]]] = {
    "folder": PICTURE_SUFFIXES,
    "webdataset": TAR_SUFFIXES,
    "parquet": (".parquet", ".pq"),
}
_BATCH: Final = 32


@dataclass(frozen=True, slots=True)
class PictureSource:
    """Where the pictures of a set come from."""

    kind: SourceKind
    """How they are kept, or that they are drawn."""
    uri: str | None = None
    """A file or a folder, a path or s3://; None where everybody has them elsewhere, and for postcards."""
    column: str | None = None
    """Parquet: the column of the pictures; None takes the first that holds bytes."""
    suite: str | None = None
    """Postcards: the suite whose scenes are drawn, `NAME@VERSION`."""
    size: int = 64
    """Postcards: side in pixels."""


def find_source(uri: str) -> PictureSource:
    """What lies at an address: a tar, a Parquet file, a run's folder, or a folder of one of the three kinds.

    Raises:
        EvaluationError: no pictures are there.
    """
    kinds: tuple[SourceKind, ...] = ("folder", "webdataset", "parquet")
    for kind in kinds[1:]:
        if uri.lower().endswith(_SUFFIXES[kind]):
            return PictureSource(kind, uri)
    folder = open_storage(uri)
    if folder.exists(RUN_FILE):
        return PictureSource("run", uri)
    for kind in kinds:
        if any(_list_keys(folder, kind)):
            return PictureSource(kind, uri)
    raise EvaluationError(
        f"{uri} holds no pictures",
        f"a folder with {', '.join(PICTURE_SUFFIXES)}, WebDataset tars or Parquet, or a run",
        "check the address",
    )


def read_source(source: PictureSource) -> Iterator[Picture]:
    """Every picture of a set, one at a time, in the order of names; decoded only when it is asked for.

    Raises:
        EvaluationError: there are none, or one of them cannot be read.
    """
    if source.kind == "postcards":
        return draw_pictures(source)
    if source.uri is None:
        raise EvaluationError("the set says of no address where its pictures are", "a folder, a path or s3://", "")
    if source.kind == "run":
        return _read_run(open_storage(source.uri))
    return _read_files(source)


def list_files(source: PictureSource) -> list[tuple[str, int, float]]:
    """Address, size and time of every file of the set: the same list means the same pictures."""
    if source.kind == "run":
        storage, keys = open_storage(source.uri or ""), [RESULTS_FILE]
    else:
        storage, keys = _locate_files(source)
    found = [storage.info(key) for key in keys]
    return [(storage.uri_of(item.key), item.size, item.modified) for item in found if item is not None]


def draw_pictures(source: PictureSource) -> Iterator[Picture]:
    """Renders the scenes of a suite; each picture's hash covers its caption and its pixels."""
    if source.suite is None:
        raise EvaluationError("a source of postcards without a suite", "suite: NAME@VERSION", "name it in the card")
    for postcard in draw_postcards(find_suite(source.suite)):
        pixels = render_scene(postcard.scene, source.size)
        sha256 = hashlib.sha256(postcard.prompt.encode() + b"\0" + pixels.tobytes()).hexdigest()
        yield Picture(postcard.id, sha256, pixels.view)


def _read_run(run: Storage) -> Iterator[Picture]:
    reader = PictureReader(run)
    for expected in read_expected(run):
        if expected.status == "ok" and expected.path and expected.has_picture:
            yield _bytes_to_picture(expected.row_id or expected.path, reader.read(expected.path))


def _read_files(source: PictureSource) -> Iterator[Picture]:
    storage, keys = _locate_files(source)
    for key in keys:
        if source.kind == "folder":
            yield _bytes_to_picture(key, storage.read_bytes(key))
        else:
            read = (
                _read_tar(storage, key) if source.kind == "webdataset" else _read_parquet(storage, key, source.column)
            )
            yield from read


def _locate_files(source: PictureSource) -> tuple[Storage, list[str]]:
    """The storage, and the keys of the set's files in order: of one file, or of all in a folder."""
    uri = source.uri or ""
    if uri.lower().endswith(_SUFFIXES[source.kind]):
        storage, key = open_object(uri)
        return storage, [key]
    storage = open_storage(uri)
    keys = list(_list_keys(storage, source.kind))
    if not keys:
        raise EvaluationError(
            f"{uri} holds no {source.kind} pictures", f"files {', '.join(_SUFFIXES[source.kind])}", "check the address"
        )
    return storage, keys


def _list_keys(storage: Storage, kind: str) -> Iterator[str]:
    for item in storage.list_objects():
        hidden = any(name.startswith((".", "_")) for name in item.key.split("/"))
        if not hidden and item.key.lower().endswith(_SUFFIXES[kind]):
            yield item.key


def _read_tar(storage: Storage, key: str) -> Iterator[Picture]:
    try:
        # As a stream: no seeking, so a tar in a bucket is read once, in one go.
        with storage.open_read(key) as stream, tarfile.open(fileobj=stream, mode="r|*") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None and member.name.lower().endswith(PICTURE_SUFFIXES):
                    yield _bytes_to_picture(f"{key}#{member.name}", file.read())
    except tarfile.TarError as error:
        raise EvaluationError(f"{storage.uri_of(key)} is damaged: {error}", "a whole tar", "copy it again") from error


def _read_parquet(storage: Storage, key: str, column: str | None) -> Iterator[Picture]:
    with storage.open_read(key) as stream:
        try:
            file = pq.ParquetFile(stream)
        except pa.ArrowInvalid as error:
            raise EvaluationError(f"{storage.uri_of(key)} is damaged: {error}", "Parquet", "copy it again") from error
        name = column or _find_picture_column(file.schema_arrow, storage.uri_of(key))
        row = 0
        for batch in file.iter_batches(_BATCH, columns=[name]):
            for value in batch.column(0).to_pylist():
                data = value.get("bytes") if isinstance(value, dict) else value
                yield _bytes_to_picture(f"{key}#{row}", data or b"")
                row += 1


def _find_picture_column(schema: pa.Schema, name: str) -> str:
    """The first column of bytes, or of Hugging Face's struct of bytes and path."""
    for field in schema:
        inner = [child.name for child in field.type.fields] if pa.types.is_struct(field.type) else []
        if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type) or "bytes" in inner:
            return str(field.name)
    raise EvaluationError(
        f"{name} has the columns {', '.join(schema.names)}",
        "a column of bytes, or of {bytes, path}",
        "name it in the card: source: {kind: parquet, column: NAME}",
    )


def _bytes_to_picture(name: str, data: bytes) -> Picture:
    return Picture(name, hashlib.sha256(data).hexdigest(), partial(_decode, name, data))


def _decode(name: str, data: bytes) -> np.ndarray:
    try:
        return decode_picture(data)
    except (OSError, SyntaxError, ValueError) as error:
        raise EvaluationError(
            f"the reference picture {name} cannot be read: {error}",
            "a whole picture of 8 bits per channel",
            "mend it or take it out; the set then has another sha256",
        ) from error
