"""Turns what stands in a known column into that column's Arrow type, and says of each cell that cannot be why.

Three ways in, for three kinds of source: Python values (JSON), texts (CSV), Arrow arrays (Parquet). Each tries
the whole column at once and goes cell by cell when that fails. Nothing is repaired: a number in quotes is a number in
CSV only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from dgate_core.manifest.columns import KNOWN_COLUMNS, RANGE_CODES, Kind
from dgate_core.manifest.lora import LORA_FORMS, parse_lora
from dgate_core.manifest.problems import show_value

_INT64 = range(-(2**63), 2**63)
_WHOLE = re.compile(r"[+-]?\d+(\.0*)?")
_PLAIN_TYPES: dict[Kind, set[type]] = {
    Kind.TEXT: {str, type(None)},
    Kind.INTEGER: {int, type(None)},
    Kind.NUMBER: {int, float, type(None)},
}
_EXPECTED = {
    Kind.TEXT: "a text",
    Kind.INTEGER: "a whole number",
    Kind.NUMBER: "a number",
    Kind.LORA: LORA_FORMS,
    Kind.TAGS: "a list of texts, or one text with commas",
}


class Issue(NamedTuple):
    """Something wrong with a row of a batch."""

    row: int
    """Row in the batch."""
    column: str
    code: str
    got: str
    expected: str


class CellError(ValueError):
    """A value that a column cannot take; carries the problem's code."""

    def __init__(self, code: str, expected: str = "") -> None:
        super().__init__(code, expected)
        self.code, self.expected = code, expected


Cells = tuple[pa.Array, list[Issue]]


def read_values(column: str, values: Sequence[Any]) -> Cells:
    """Read Python values as JSON gives them; None is unsaid."""
    kind = KNOWN_COLUMNS[column]
    types = set(map(type, values))
    if types <= {type(None)}:
        return pa.nulls(len(values), kind.arrow_type), []
    if types <= _PLAIN_TYPES.get(kind, set()):
        try:
            return pa.array(values, kind.arrow_type), []
        except (OverflowError, pa.ArrowInvalid):
            pass  # some number does not fit: the cells are looked at one by one below
    if types <= {str, type(None)} and kind in (Kind.LORA, Kind.TAGS):
        return _read_distinct(column, pa.array(values, pa.string()))
    return _read_each(column, values, _CELL_READERS[kind])


def read_texts(column: str, texts: pa.Array) -> Cells:
    """Read an array of strings as CSV gives them; an empty cell is unsaid."""
    kind = KNOWN_COLUMNS[column]
    said = pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
    if said.null_count == len(said):
        return pa.nulls(len(said), kind.arrow_type), []
    if kind is Kind.TEXT:
        return said, []
    if kind in (Kind.LORA, Kind.TAGS):
        return _read_distinct(column, said)
    try:
        return pc.utf8_trim_whitespace(said).cast(kind.arrow_type), []
    except pa.ArrowInvalid:
        return _read_each(column, said.to_pylist(), _NUMBER_TEXT_READERS[kind])


def read_array(column: str, array: pa.Array) -> Cells:
    """Read an Arrow array of any type."""
    kind = KNOWN_COLUMNS[column]
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if array.null_count == len(array):
        return pa.nulls(len(array), kind.arrow_type), []
    issues: list[Issue] = []
    if is_text(array.type):
        array, issues = check_utf8(column, array)
        if kind is Kind.TEXT:
            return array, issues
        if kind in (Kind.LORA, Kind.TAGS):
            cells, more = _read_distinct(column, array)
            return cells, issues + more
    try:
        if _casts_plainly(kind, array.type):
            return _cast_plainly(array, kind.arrow_type), issues
    except pa.ArrowInvalid:
        pass  # a fraction or a number that does not fit: the cells are looked at one by one below
    cells, more = _read_each(column, array.to_pylist(), _CELL_READERS[kind])
    return cells, issues + more


def texts_to_array(column: str, texts: Sequence[str | None]) -> Cells:
    """Strings as an array; those decoded with `surrogateescape` from bytes that are no UTF-8 are reported."""
    try:
        return pa.array(texts, pa.string()), []
    except UnicodeEncodeError:
        array, issues = _read_each("", texts, _read_text)
        return array, [issue._replace(column=column) for issue in issues]


def is_text(data_type: pa.DataType) -> bool:
    """Whether an Arrow type is one of the string types."""
    return bool(
        pa.types.is_string(data_type) or pa.types.is_large_string(data_type) or pa.types.is_string_view(data_type)
    )


def check_utf8(column: str, array: pa.Array) -> Cells:
    """A string array with the cells that are no UTF-8 set to null and reported (Parquet readers do not check)."""
    try:
        array.validate(full=True)
        return array.cast(pa.string()), []
    except pa.ArrowInvalid:
        cells, issues = _read_each("", array.cast(pa.large_binary()).to_pylist(), _decode_text)
        return cells, [issue._replace(column=column) for issue in issues]


def _casts_plainly(kind: Kind, data_type: pa.DataType) -> bool:
    number = pa.types.is_integer(data_type) or pa.types.is_floating(data_type) or pa.types.is_decimal(data_type)
    if kind is Kind.TAGS:
        return bool(pa.types.is_list(data_type) and is_text(data_type.value_type))
    return bool(number and kind in (Kind.INTEGER, Kind.NUMBER)) or (
        kind is Kind.TEXT and bool(pa.types.is_integer(data_type))
    )


def _cast_plainly(array: pa.Array, target: pa.DataType) -> pa.Array:
    # 7.1 as float32 shall be the 7.1 of a CSV and not 7.0999999, else the same row would get another row_id.
    if pa.types.is_float16(array.type) or pa.types.is_float32(array.type):
        array = array.cast(pa.float32()).cast(pa.string()).cast(pa.float64())
    return array.cast(target)


def _read_each(column: str, values: Sequence[Any], read: Callable[[str, Any], Any]) -> Cells:
    """Cell by cell: what can be read, and an issue for what cannot."""
    kind, cells, issues = KNOWN_COLUMNS.get(column, Kind.TEXT), [], []
    for index, value in enumerate(values):
        try:
            cells.append(None if value is None else read(column, value))
        except CellError as error:
            cells.append(None)
            issues.append(Issue(index, column, error.code, show_value(value), error.expected or _EXPECTED[kind]))
    return pa.array(cells, kind.arrow_type), issues


def _read_distinct(column: str, texts: pa.Array) -> Cells:
    """Texts of which a manifest repeats few: each distinct one is read once."""
    encoded = texts.dictionary_encode()
    cells, issues = _read_each(column, encoded.dictionary.to_pylist(), _CELL_READERS[KNOWN_COLUMNS[column]])
    rows_of = [(issue, pc.indices_nonzero(pc.equal(encoded.indices, issue.row)).to_pylist()) for issue in issues]
    return cells.take(encoded.indices), [issue._replace(row=row) for issue, rows in rows_of for row in rows]


def _decode_text(_column: str, value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CellError("bad_utf8", f"UTF-8, broken at byte {error.start}") from error


def _read_text(column: str, value: Any) -> str:
    if isinstance(value, str):
        return _decode_text(column, value.encode("utf-8", "surrogateescape"))
    if column == "id" and isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1:
        return str(int(value))
    raise CellError("bad_type")


def _read_integer(column: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CellError("bad_type")
    if value not in (float("inf"), float("-inf")) and value == value // 1:
        return _check_int64(column, int(value))
    raise CellError("bad_type")


def _read_integer_text(column: str, text: str) -> int:
    if not _WHOLE.fullmatch(text.strip()):
        raise CellError("bad_type")
    return _check_int64(column, int(text.strip().partition(".")[0]))


def _check_int64(column: str, value: int) -> int:
    if value not in _INT64:
        raise CellError(RANGE_CODES[column], "a number of 64 bits")
    return value


def _read_number(column: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CellError("bad_type")
    try:
        return float(value)
    except OverflowError as error:
        raise CellError(RANGE_CODES[column], "a number that a double can hold") from error


def _read_number_text(_column: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise CellError("bad_type") from error


def _read_lora(_column: str, value: Any) -> str:
    try:
        return parse_lora(value)
    except ValueError as error:
        expected = LORA_FORMS if isinstance(error, json.JSONDecodeError) else str(error)
        raise CellError("bad_type", expected) from error


def _read_tags(_column: str, value: Any) -> list[str]:
    if isinstance(value, str):
        return [tag.strip() for tag in value.split(",") if tag.strip()]
    if isinstance(value, list) and all(isinstance(tag, str) for tag in value):
        return value
    raise CellError("bad_type")


_CELL_READERS: dict[Kind, Callable[[str, Any], Any]] = {
    Kind.TEXT: _read_text,
    Kind.INTEGER: _read_integer,
    Kind.NUMBER: _read_number,
    Kind.LORA: _read_lora,
    Kind.TAGS: _read_tags,
}
_NUMBER_TEXT_READERS: dict[Kind, Callable[[str, Any], Any]] = {
    Kind.INTEGER: _read_integer_text,
    Kind.NUMBER: _read_number_text,
}
