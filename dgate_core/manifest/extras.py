"""Unknown columns, which travel through untouched: each in the type that fits all its values, or as JSON text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa

ExtraTypes = Mapping[str, pa.DataType | None]
"""Type of each unknown column; None stands for JSON text."""

_NO_FIT = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError)


def infer_type(values: Sequence[Any]) -> pa.DataType | None:
    """Arrow type of JSON values, None when they have none in common."""
    try:
        found = pa.array(values).type
    except _NO_FIT:
        return pa.float64() if _are_numbers(values) else None
    return None if _has_empty_struct(found) else found


def merge_types(first: pa.DataType | None, second: pa.DataType | None) -> pa.DataType | None:
    """The type that holds values of both, None when there is none."""
    if first is None or second is None or first.equals(second):
        return first if second is not None else None
    schemas = [pa.schema([pa.field("x", item)]) for item in (first, second)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except _NO_FIT:
        return None


def merge_extras(first: ExtraTypes, second: ExtraTypes) -> dict[str, pa.DataType | None]:
    """Columns of both in order of appearance, each in the type that holds all its values."""
    merged = dict(first)
    for name, data_type in second.items():
        merged[name] = merge_types(first.get(name, pa.null()), data_type)
    return merged


def settle_type(data_type: pa.DataType | None) -> pa.DataType:
    """The type in which a column is kept: text for JSON text and for a column without any value."""
    if data_type is None or pa.types.is_null(data_type):
        return pa.string()
    return settle_type(data_type.value_type) if pa.types.is_dictionary(data_type) else data_type


def values_to_extra(values: Sequence[Any], data_type: pa.DataType | None) -> pa.Array:
    """Python values in the type that was found for their column."""
    if data_type is None:
        return pa.array([None if value is None else _dump_json(value) for value in values], pa.string())
    try:
        return pa.array(values, settle_type(data_type))
    except pa.ArrowInvalid:
        if not pa.types.is_float64(data_type):
            raise
        # JSON knows one kind of number; beside fractions a whole number above 2^53 is the nearest double.
        return pa.array([None if value is None else float(value) for value in values], data_type)


def array_to_extra(array: pa.Array, data_type: pa.DataType | None) -> pa.Array:
    """An Arrow array in the type that was found for its column over all files."""
    if data_type is None:
        return values_to_extra(array.to_pylist(), None)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    target = settle_type(data_type)
    return array if array.type.equals(target) else array.cast(target)


def _dump_json(value: Any) -> str:
    return orjson.dumps(value, default=str).decode()


def _are_numbers(values: Sequence[Any]) -> bool:
    """Whether only a whole number above 2^53 keeps values from being doubles, as it would not in another batch."""
    return set(map(type, values)) <= {int, float, type(None)} and all(
        -(2**63) <= value < 2**63 for value in values if isinstance(value, int)
    )


def _has_empty_struct(data_type: pa.DataType) -> bool:
    """Parquet cannot hold a struct without fields, the type of `{}`."""
    if pa.types.is_list(data_type):
        return _has_empty_struct(data_type.value_type)
    if pa.types.is_struct(data_type):
        return data_type.num_fields == 0 or any(_has_empty_struct(field.type) for field in data_type)
    return False
