"""Arrow columns as compact JSON: a constant is written once, a repeated value is an index into a dictionary."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date, datetime, time
from typing import Any

import pyarrow as pa

SAFE_INTEGER = 2**53 - 1
Encoded = dict[str, Any]


def encode_column(column: pa.ChunkedArray) -> Encoded | None:
    """One column as {"c": constant}, {"d": values, "i": indices} or {"v": values}; None when nothing is in it.

    An index of -1 is a null. Integers beyond 2^53 become text, since a browser would round them.
    """
    if column.null_count == len(column):
        return None
    if pa.types.is_nested(column.type):
        return {"v": [to_plain(value) for value in column.to_pylist()]}
    encoded = encode_dictionary(column)
    if len(encoded["d"]) == 1 and column.null_count == 0:
        return {"c": encoded["d"][0]}
    if len(encoded["d"]) * 2 <= len(column):
        return encoded
    is_single = pa.types.is_float32(column.type)
    return {"v": [to_plain(value, is_single) for value in column.to_pylist()]}


def encode_dictionary(column: pa.ChunkedArray) -> Encoded:
    """One column of plain values as {"d": distinct values in order of appearance, "i": an index per row}."""
    merged = column.combine_chunks()
    array = merged if pa.types.is_dictionary(merged.type) else merged.dictionary_encode()
    is_single = pa.types.is_float32(array.dictionary.type)
    values = [to_plain(value, is_single) for value in array.dictionary.to_pylist()]
    return {"d": values, "i": array.indices.fill_null(-1).to_pylist()}


def to_plain(value: Any, is_single: bool = False) -> Any:
    """A value as JSON can hold it without loss of meaning."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return value if abs(value) <= SAFE_INTEGER else str(value)
    if isinstance(value, float):
        return (float(f"{value:.7g}") if is_single else value) if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): to_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(inner) for inner in value]
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    return value.isoformat() if isinstance(value, date | datetime | time) else str(value)
