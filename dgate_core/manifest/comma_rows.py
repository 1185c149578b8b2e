"""CSV with a header: commas, quotes that may span lines, UTF-8 with or without a byte order mark."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa

from dgate_core.manifest.columns import KNOWN_COLUMNS
from dgate_core.manifest.extras import ExtraTypes
from dgate_core.manifest.problems import show_value
from dgate_core.manifest.rows import BATCH_BYTES, BATCH_ROWS, FileFacts, RowBatch, make_batch
from dgate_core.manifest.source import DAMAGED, Source, open_content, open_hashed, unpack
from dgate_core.manifest.values import Cells, Issue, read_texts, texts_to_array


class Records(NamedTuple):
    """A run of records below the header."""

    lines: list[int]
    """Line on which each starts, from 1."""
    fields: list[list[str]]
    """Texts; a broken record is one empty list."""
    broken: list[Issue]


class CommaReader:
    """Reads `.csv`."""

    def scan(self, source: Source) -> FileFacts:
        """Read the header; unknown columns stay text, for nothing in a CSV says more."""
        with open_hashed(source) as raw:
            try:
                header, found = _look_at(unpack(source, raw))
                trouble = _explain_header(header, found)
            except DAMAGED as error:
                header, trouble = [], f"the file is damaged: {error}"
            sha256 = raw.finish()
        extras = {name: pa.string() for name in header if name not in KNOWN_COLUMNS}
        return FileFacts(sha256, tuple(header), extras, trouble=(trouble,) if trouble else ())

    def read(self, source: Source, facts: FileFacts, extras: ExtraTypes) -> Iterator[RowBatch]:
        """Yield the rows; a record that cannot be read or has another number of fields is a row with a problem."""
        with open_content(source) as stream:
            for records in _read_records(stream, facts.columns):
                columns = list(zip(*(fields or [""] * len(facts.columns) for fields in records.fields), strict=True))
                texts = {name: texts_to_array(name, columns[i]) for i, name in enumerate(facts.columns)}
                cells = {name: _type_cells(name, texts[name]) for name in texts if name in KNOWN_COLUMNS}
                empty = pa.nulls(len(records.lines), pa.string())
                others = [texts[name][0] if name in texts else empty for name in extras]
                batch = make_batch(source, np.array(records.lines, np.int64), cells, others)
                batch.report(records.broken)
                batch.report(issue for name in texts if name in extras for issue in texts[name][1])
                yield batch


def _type_cells(name: str, texts: Cells) -> Cells:
    array, issues = read_texts(name, texts[0].fill_null(""))
    return array, texts[1] + issues


def _open_texts(stream: BinaryIO) -> io.TextIOWrapper:
    # What is no UTF-8 becomes surrogates, which Arrow refuses cell by cell: so a bad byte spoils its row and no other.
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _look_at(stream: BinaryIO) -> tuple[list[str], bool]:
    """The header, with names for nameless columns, and whether anything stands below it."""
    texts = _open_texts(stream)
    reader = csv.reader(texts, strict=True)
    try:
        header = next(reader, [])
    except csv.Error:
        header = []
    below = any(not line.isspace() for line in texts)
    return [name.strip() or f"column_{number}" for number, name in enumerate(header, 1)], below


def _explain_header(header: list[str], found: bool) -> str:
    doubled = sorted({name for name in header if header.count(name) > 1})
    if not header:
        return "the file is empty"
    if doubled:
        return f"the header names {', '.join(doubled)} more than once"
    if any(not name.replace("\t", "").isprintable() for name in header):
        return "the header is not UTF-8 text"
    return "" if found else "the file is empty below its header"


def _read_records(stream: BinaryIO, header: tuple[str, ...]) -> Iterator[Records]:
    """Yield records below the header by BATCH_ROWS, or fewer when they are long."""
    reader = csv.reader(_open_texts(stream), strict=True)
    next(reader)
    records, size, line = Records([], [], []), 0, reader.line_num + 1
    while (fields := _next_record(reader)) is not None:
        if fields:
            _add_record(records, line, fields, len(header))
            size += sum(map(len, records.fields[-1]))
        line = reader.line_num + 1
        if len(records.lines) >= BATCH_ROWS or size >= BATCH_BYTES:
            yield records
            records, size = Records([], [], []), 0
    if records.lines:
        yield records


def _next_record(reader: Iterator[list[str]]) -> list[str] | csv.Error | None:
    """The next record, empty for a blank line; the error where it is broken; None at the end."""
    try:
        return next(reader, None)
    except csv.Error as error:
        return error


def _add_record(records: Records, line: int, fields: list[str] | csv.Error, width: int) -> None:
    index = len(records.lines)
    records.lines.append(line)
    if isinstance(fields, csv.Error):
        records.broken.append(Issue(index, "", "broken_line", str(fields), "fields with closed quotes"))
    elif len(fields) != width:
        got = f"{len(fields)} fields ({show_value(','.join(fields))})"
        records.broken.append(Issue(index, "", "broken_line", got, f"{width} fields as in the header"))
    else:
        records.fields.append(fields)
        return
    records.fields.append([])
