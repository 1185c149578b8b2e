"""Where a shard's pictures go: loose files, one WebDataset tar, or one Parquet file."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from dgate_core.runs import layout
from dgate_core.runs.spec import Container
from dgate_core.safety.guard import Verdict
from dgate_core.storage import Storage

ROWS_PER_GROUP = 256
"""Pictures per Parquet row group: what a reader must fetch to see one of them."""


@dataclass(frozen=True, slots=True)
class PictureFile:
    """One encoded picture on its way to storage."""

    ordinal: int
    sha256: str
    suffix: str
    data: bytes
    prompt: str
    verdict: Verdict | None = None
    """Of the safety checker; None when nobody looked."""


class Sink(Protocol):
    """Takes a batch's files at once, and the whole shard at its end."""

    def put(self, number: int, files: Sequence[PictureFile]) -> list[str]:
        """Stores a batch; returns each file's path relative to the run's folder."""
        ...

    def finish(self, rows: pa.Table) -> pa.Table:
        """Brings the shard into its final form; returns the rows with their final paths."""
        ...


class LooseFiles:
    """A file per picture, named by ordinal and content."""

    def __init__(self, storage: Storage, shard: int, pool: Executor) -> None:
        self.storage, self.shard, self.pool = storage, shard, pool

    def put(self, number: int, files: Sequence[PictureFile]) -> list[str]:  # noqa: ARG002 - part of the contract
        """See `Sink`; files are written by the pool, side by side."""
        return list(self.pool.map(self._put_one, files))

    def _put_one(self, file: PictureFile) -> str:
        key = layout.name_image(self.shard, file.ordinal, file.sha256, file.suffix)
        self.storage.write_bytes(key, file.data, durable=False)
        return key

    def finish(self, rows: pa.Table) -> pa.Table:
        """Nothing is left to do."""
        return rows


class PackedFiles:
    """Batches are kept as small tars until the shard's end, then packed into one WebDataset tar or Parquet file."""

    def __init__(self, storage: Storage, shard: int, token: str, container: Container) -> None:
        self.storage, self.shard, self.token, self.container = storage, shard, token, container

    def put(self, number: int, files: Sequence[PictureFile]) -> list[str]:
        """See `Sink`; paths are `KEY#MEMBER`."""
        key = layout.name_part(self.shard, self.token, number).removesuffix("parquet") + "tar"
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w") as tar:
            for file in files:
                _add_member(tar, f"{file.ordinal:08d}.{file.suffix}", file.data)
        self.storage.write_bytes(key, sink.getvalue(), durable=False)
        return [f"{key}#{file.ordinal:08d}.{file.suffix}" for file in files]

    def finish(self, rows: pa.Table) -> pa.Table:
        """Packs the pictures in the order of the rows."""
        if not any(rows.column("path").to_pylist()):
            return rows
        suffix = "tar" if self.container == "webdataset" else "parquet"
        with tempfile.TemporaryDirectory() as folder:
            packed = Path(folder) / f"images.{suffix}"
            members = self._write_tar(packed, rows) if suffix == "tar" else self._write_parquet(packed, rows)
            with packed.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            key = f"{layout.name_shard_folder(self.shard)}/images-{digest[:8]}.{suffix}"
            self.storage.upload_file(packed, key, durable=False)
        paths = [f"{key}#{member}" if member is not None else None for member in members]
        return rows.set_column(rows.schema.get_field_index("path"), "path", pa.array(paths, pa.string()))

    def _write_tar(self, packed: Path, rows: pa.Table) -> list[str | None]:
        members: list[str | None] = []
        with tarfile.open(packed, "w") as tar:
            for row, name, data in self._read_pictures(rows):
                members.append(name)
                if name is not None:
                    stem = name.partition(".")[0]
                    _add_member(tar, name, data)
                    _add_member(tar, f"{stem}.txt", row["prompt"].encode())
                    described = {field: row[field] for field in ("id", "image_index", "row_id", "seed", "sha256")}
                    _add_member(tar, f"{stem}.json", json.dumps(described).encode())
        return members

    def _write_parquet(self, packed: Path, rows: pa.Table) -> list[str | None]:
        # The struct of bytes and path is what Hugging Face datasets read as an image column.
        image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        schema = pa.schema([("ordinal", pa.int64()), ("id", pa.string()), ("prompt", pa.string()), ("image", image)])
        members: list[str | None] = []
        records: list[dict[str, Any]] = []
        count = 0
        with pq.ParquetWriter(packed, schema, compression="none") as writer:
            for row, name, data in self._read_pictures(rows):
                members.append(None if name is None else str(count))
                if name is None:
                    continue
                picture = {"bytes": data, "path": name}
                records.append({"ordinal": row["ordinal"], "id": row["id"], "prompt": row["prompt"], "image": picture})
                count += 1
                if len(records) == ROWS_PER_GROUP:
                    writer.write_table(pa.Table.from_pylist(records, schema))
                    records.clear()
            writer.write_table(pa.Table.from_pylist(records, schema))
        return members

    def _read_pictures(self, rows: pa.Table) -> Iterator[tuple[dict, str | None, bytes]]:
        """Each row with its member's name and bytes; one part is held in memory at a time."""
        opened: tuple[str, tarfile.TarFile] | None = None
        for row in rows.to_pylist():
            if not row["path"]:
                yield row, None, b""
                continue
            key, _, name = row["path"].partition("#")
            if opened is None or opened[0] != key:
                opened = key, tarfile.open(fileobj=io.BytesIO(self.storage.read_bytes(key)))  # noqa: SIM115
            member: IO[bytes] | None = opened[1].extractfile(name)
            assert member is not None  # only regular files are added
            yield row, name, member.read()


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
