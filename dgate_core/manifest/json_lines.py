"""JSON Lines, one object a line, and the request lines of the OpenAI Batch API."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import orjson

from dgate_core.manifest.batch_lines import is_batch_line, request_to_row
from dgate_core.manifest.columns import KNOWN_COLUMNS
from dgate_core.manifest.extras import ExtraTypes, infer_type, merge_extras, values_to_extra
from dgate_core.manifest.problems import show_value
from dgate_core.manifest.rows import BATCH_BYTES, BATCH_ROWS, FileFacts, RowBatch, make_batch
from dgate_core.manifest.source import DAMAGED, Source, open_content, open_hashed, unpack
from dgate_core.manifest.values import Issue, read_values

MAX_LINE_BYTES = 8 << 20
MAX_SHOWN_BYTES = 4096
BOM = b"\xef\xbb\xbf"

Row = Mapping[str, Any]


class Lines(NamedTuple):
    """A run of lines that are not blank."""

    numbers: list[int]
    """From 1."""
    texts: list[bytes]


class JsonLinesReader:
    """Reads `.jsonl`."""

    def scan(self, source: Source) -> FileFacts:
        """Parse every line once for the names and types of its columns; broken lines are left to `read`."""
        columns: dict[str, None] = {}
        extras: dict[str, Any] = {}
        rows, is_batch, trouble = 0, None, ""
        with open_hashed(source) as raw:
            try:
                for lines in _read_lines(unpack(source, raw)):
                    rows += len(lines.texts)
                    parsed, _ = _parse_lines(lines.texts)
                    is_batch = _detect_batch(parsed) if is_batch is None else is_batch
                    plain, _ = _flatten(parsed, bool(is_batch))
                    columns |= dict.fromkeys(chain.from_iterable(plain))
                    extras = merge_extras(extras, _infer_extras(plain))
            except DAMAGED as error:
                trouble = f"the file is damaged: {error}"
            sha256 = raw.finish()
        trouble = trouble or _explain_nothing(rows, is_batch)
        return FileFacts(sha256, tuple(columns), extras, bool(is_batch), (trouble,) if trouble else ())

    def read(self, source: Source, facts: FileFacts, extras: ExtraTypes) -> Iterator[RowBatch]:
        """Yield the rows; a line that cannot be read is a row with a problem."""
        known = [name for name in KNOWN_COLUMNS if name in facts.columns]
        with open_content(source) as stream:
            for lines in _read_lines(stream):
                parsed, broken = _parse_lines(lines.texts)
                rows, unfit = _flatten(parsed, facts.is_batch_api)
                cells = {name: read_values(name, [row.get(name) for row in rows]) for name in known}
                others = [values_to_extra([row.get(name) for row in rows], kind) for name, kind in extras.items()]
                batch = make_batch(source, np.array(lines.numbers, np.int64), cells, others)
                batch.report([*broken, *unfit])
                yield batch


def _read_lines(stream: BinaryIO) -> Iterator[Lines]:
    """Yield lines by BATCH_ROWS, or fewer when they are long."""
    lines, size = Lines([], []), 0
    for number, text in number_lines(stream):
        lines.numbers.append(number)
        lines.texts.append(text)
        size += len(text)
        if len(lines.texts) >= BATCH_ROWS or size >= BATCH_BYTES:
            yield lines
            lines, size = Lines([], []), 0
    if lines.texts:
        yield lines


def number_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield lines that are not blank, and their numbers from 1; of an endless one the first MAX_LINE_BYTES."""
    number = 0
    while text := stream.readline(MAX_LINE_BYTES):
        number += 1
        if len(text) == MAX_LINE_BYTES and not text.endswith(b"\n"):
            while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
        text = text.removeprefix(BOM) if number == 1 else text
        if not text.isspace() and text:
            yield number, text


def _parse_lines(texts: list[bytes]) -> tuple[list[Row], list[Issue]]:
    """Each line as an object; a broken one is an empty object and an issue."""
    try:
        rows = list(map(orjson.loads, texts))
    except orjson.JSONDecodeError:
        rows = [_load_or_none(text) for text in texts]
    if set(map(type, rows)) == {dict}:
        return rows, []
    broken = [index for index, row in enumerate(rows) if not isinstance(row, dict)]
    return [row if isinstance(row, dict) else {} for row in rows], [_explain_broken(i, texts[i]) for i in broken]


def _load_or_none(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None  # told by _explain_broken, which parses it again


def _explain_broken(index: int, text: bytes) -> Issue:
    code, expected = "broken_line", "one JSON object"
    if len(text) >= MAX_LINE_BYTES:
        expected = f"one JSON object of at most {MAX_LINE_BYTES >> 20} MiB a line"
        return Issue(index, "", code, show_value(text[:MAX_SHOWN_BYTES].decode("utf-8", "replace")), expected)
    try:
        text.decode("utf-8")
        orjson.loads(text)
    except UnicodeDecodeError as error:
        code, expected = "bad_utf8", f"UTF-8, broken at byte {error.start + 1}"
    except orjson.JSONDecodeError as error:
        expected = f"one JSON object ({error.msg} at character {error.colno})"
    return Issue(index, "", code, show_value(text.strip().decode("utf-8", "replace")), expected)


def _detect_batch(rows: list[Row]) -> bool | None:
    """Whether the first readable line is one of the Batch API; None while there is none."""
    first = next((row for row in rows if row), None)
    return None if first is None else is_batch_line(first)


def _flatten(rows: list[Row], is_batch: bool) -> tuple[list[Row], list[Issue]]:
    """Rows under our columns' names; they are so already unless they are Batch API requests."""
    if not is_batch:
        return rows, []
    mapped = [request_to_row(index, row) for index, row in enumerate(rows)]
    return [row for row, _ in mapped], [issue for _, issues in mapped for issue in issues]


def _infer_extras(rows: list[Row]) -> dict[str, Any]:
    names = dict.fromkeys(chain.from_iterable(rows))
    unknown = [name for name in names if name not in KNOWN_COLUMNS]
    return {name: infer_type([row.get(name) for row in rows]) for name in unknown}


def _explain_nothing(rows: int, is_batch: bool | None) -> str:
    if not rows:
        return "the file is empty"
    return "no line can be read as one JSON object" if is_batch is None else ""
