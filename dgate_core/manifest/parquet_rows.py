"""Parquet files, read a few thousand rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dgate_core.manifest.columns import KNOWN_COLUMNS
from dgate_core.manifest.extras import ExtraTypes, array_to_extra
from dgate_core.manifest.rows import BATCH_BYTES, BATCH_ROWS, FileFacts, RowBatch, make_batch
from dgate_core.manifest.source import DAMAGED, Source, open_hashed
from dgate_core.manifest.values import check_utf8, is_text, read_array

_BUFFER_BYTES = 1 << 20


class ParquetReader:
    """Reads `.parquet`."""

    def scan(self, source: Source) -> FileFacts:
        """Read the footer and hash the bytes."""
        with open_hashed(source) as raw:
            sha256 = raw.finish()
        try:
            with source.storage.open_read(source.key) as stream:
                parquet = pq.ParquetFile(stream)
                schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
        except (pa.ArrowException, *DAMAGED) as error:
            return FileFacts(sha256, trouble=(f"the Parquet file is broken: {error}",))
        trouble = _explain_schema(schema, rows)
        extras = {field.name: field.type for field in schema if field.name not in KNOWN_COLUMNS}
        return FileFacts(sha256, tuple(schema.names), extras, trouble=(trouble,) if trouble else ())

    def read(self, source: Source, facts: FileFacts, extras: ExtraTypes) -> Iterator[RowBatch]:
        """Yield the rows; their lines are their numbers in the file."""
        known = [name for name in KNOWN_COLUMNS if name in facts.columns]
        with source.storage.open_read(source.key) as stream:
            # A row group may be larger than memory allows: a buffer makes the reader fetch it piece by piece.
            parquet, row = pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES), 1
            for piece in _read_pieces(parquet):
                cells = {name: read_array(name, piece.column(name)) for name in known}
                texts = {name: check_utf8(name, piece.column(name)) for name in extras if _is_text(piece, name)}
                arrays = {name: array for name, (array, _) in texts.items()}
                others = [_read_extra(piece, arrays, name, kind) for name, kind in extras.items()]
                batch = make_batch(source, np.arange(row, row + piece.num_rows), cells, others)
                batch.report(issue for _, issues in texts.values() for issue in issues)
                row += piece.num_rows
                yield batch


def _read_pieces(parquet: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    """Yield batches; the reader keeps something of every row group until its end, so each gets few of them."""
    rows = _choose_batch_rows(parquet.metadata)
    for groups in _join_groups(parquet.metadata, rows):
        yield from parquet.iter_batches(rows, row_groups=groups)


def _join_groups(metadata: pq.FileMetaData, rows: int) -> Iterator[list[int]]:
    """Yield runs of row groups that hold at least this many rows, the last perhaps fewer."""
    run, held = [], 0
    for group in range(metadata.num_row_groups):
        run.append(group)
        held += metadata.row_group(group).num_rows
        if held >= rows:
            yield run
            run, held = [], 0
    if run:
        yield run


def _choose_batch_rows(metadata: pq.FileMetaData) -> int:
    """BATCH_ROWS, or fewer when they would be more than BATCH_BYTES."""
    size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    return int(min(BATCH_ROWS, max(64, BATCH_BYTES * metadata.num_rows / max(1, size))))


def _explain_schema(schema: pa.Schema, rows: int) -> str:
    doubled = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if doubled:
        return f"the columns {', '.join(doubled)} stand there more than once"
    return "" if rows else "the file is empty: it has no rows"


def _is_text(piece: pa.RecordBatch, name: str) -> bool:
    return name in piece.schema.names and is_text(piece.column(name).type)


def _read_extra(
    piece: pa.RecordBatch, texts: dict[str, pa.Array], name: str, data_type: pa.DataType | None
) -> pa.Array:
    if name not in piece.schema.names:
        return pa.nulls(piece.num_rows, array_to_extra(pa.nulls(0), data_type).type)
    return array_to_extra(texts.get(name, piece.column(name)), data_type)
