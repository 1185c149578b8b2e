"""Numbers the distinct combinations that rows come in: batch keys, and settings that share a hash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dgate_core.manifest.identity import RowSettings
from dgate_core.manifest.item import BatchKey, ModelLimits
from dgate_core.manifest.resolve import ResolvedRows
from dgate_core.runs.spec import ImageFormat

Codes = npt.NDArray[np.int64]
_KEY_COLUMNS = ("width", "height", "num_inference_steps", "scheduler", "guidance_scale", "lora")
_SIZE_BESIDE_PNG = {"png": 1.0, "jpeg": 0.3, "webp": 0.2}


@dataclass(slots=True)
class RowGroups:
    """How the good rows of a batch fall into groups."""

    keys: Codes
    """Number of its batch key, for each row."""
    settings: Codes
    """Index into distinct_settings, for each row."""
    distinct_settings: list[RowSettings]


class BatchGroups:
    """All batch keys of a plan, numbered as they appear, with what an image of each costs.

    Args:
        image: Format of the files, for the estimate of their size.
    """

    def __init__(self, image: ImageFormat) -> None:
        self.keys: list[BatchKey] = []
        self.seconds_per_image: list[float] = []
        self.bytes_per_image: list[float] = []
        self._numbers: dict[BatchKey, int] = {}
        self._size = _SIZE_BESIDE_PNG[image.format]

    def group(self, rows: ResolvedRows, good: Codes) -> RowGroups:
        """Group the rows that can be made.

        Args:
            rows: A resolved batch.
            good: Indices of its rows that have no problem.
        """
        columns = [_encode_models(rows)[good], *(_encode(rows, name)[good] for name in _KEY_COLUMNS)]
        keys, first_of_key = number_combinations(columns)
        details = [keys, *(_encode(rows, name)[good] for name in ("negative_prompt", "style_preset"))]
        settings, first_of_settings = number_combinations(details)
        chosen = good[first_of_key]
        limits_of = [rows.limits[place] for place in rows.models[chosen].tolist()]
        taken = zip(limits_of, _take_columns(rows, _KEY_COLUMNS, chosen), strict=True)
        numbers = [self._number(limits, BatchKey(limits.model, **values)) for limits, values in taken]
        distinct = _take_settings(rows, good[first_of_settings])
        return RowGroups(np.array(numbers, np.int64)[keys], settings, distinct)

    def _number(self, limits: ModelLimits, key: BatchKey) -> int:
        if key not in self._numbers:
            self._numbers[key] = len(self.keys)
            self.keys.append(key)
            self.seconds_per_image.append(estimate_seconds(limits, key))
            self.bytes_per_image.append(limits.bytes_per_pixel * key.width * key.height * self._size)
        return self._numbers[key]


def estimate_seconds(limits: ModelLimits, key: BatchKey) -> float:
    """Rough seconds of one image: steps, in proportion to the pixels, half where guidance is switched off."""
    guided = 0.5 if key.guidance_scale <= 1 < limits.guidance_scale else 1.0
    pixels = key.width * key.height / (limits.width * limits.height)
    return limits.seconds_per_step * key.num_inference_steps * pixels * guided


def number_combinations(columns: list[npt.NDArray[Any]]) -> tuple[Codes, Codes]:
    """Number the distinct combinations of values as they appear.

    Returns:
        The number for each row, and the first row of each number.
    """
    codes = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        if len(column) and (column != column[0]).any():
            distinct, column_codes = np.unique(column, return_inverse=True)
            # Renumbered after each column, so that the product never overflows.
            codes = np.unique(codes * len(distinct) + column_codes, return_inverse=True)[1]
    _, firsts, codes = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(firsts)
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order))
    return ranks[codes], firsts[order]


def _encode(rows: ResolvedRows, name: str) -> npt.NDArray[Any]:
    if name in rows.numbers:
        return rows.numbers[name]
    encoded: pa.DictionaryArray = rows.texts[name].dictionary_encode()
    return encoded.indices.fill_null(-1).to_numpy()


def _encode_models(rows: ResolvedRows) -> Codes:
    """Two names of one model are one model."""
    return np.unique([limits.model for limits in rows.limits], return_inverse=True)[1][rows.models]


def _take_columns(rows: ResolvedRows, names: Sequence[str], indices: Codes) -> list[dict[str, Any]]:
    """Some rows as plain values."""
    # Adding 0 makes -0.0, which is the same guidance, 0.0.
    numbers = {name: (column[indices] + 0).tolist() for name, column in rows.numbers.items()}
    texts = {name: column.take(indices).to_pylist() for name, column in rows.texts.items()}
    columns = numbers | texts
    return [dict(zip(names, values, strict=True)) for values in zip(*(columns[name] for name in names), strict=True)]


def _take_settings(rows: ResolvedRows, indices: Codes) -> list[RowSettings]:
    hashes = [rows.limits[place].weights_hash for place in rows.models[indices].tolist()]
    values = _take_columns(rows, [*_KEY_COLUMNS, "negative_prompt", "style_preset"], indices)
    return [RowSettings(weights_hash, **fields) for weights_hash, fields in zip(hashes, values, strict=True)]
